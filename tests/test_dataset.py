"""What reaches the networks: whole pairs, alike on every machine, and clear words when not."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image
from test_cache import draw, noise, save
from test_pairs import preparation

import dataset
from config import Config
from dataset import PairedImages, epoch_order, normalise, training_batches, validation_batches
from machine.workers import batches_from_workers
from pictures.decode import BadPictures
from pictures.layouts import Pair
from pictures.sides import Side, Sides


def marked(path: Path, side: int = 40) -> Pair:
    """Save a pair whose halves are equal and tell of each pixel where it stood."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    half = np.stack([rows, columns, np.full_like(rows, 9)], axis=2)
    return save(path, np.concatenate([half, half], axis=1))


@pytest.fixture
def open_pairs(tmp_path: Path) -> Callable[..., PairedImages]:
    def build(pairs: list[Pair], **changes: Any) -> PairedImages:
        usual = {"load_size": 40, "crop_size": 32, "cache_dir": str(tmp_path / "cache")}
        return PairedImages(pairs, preparation(**(usual | changes)))

    return build


Opener = Callable[..., PairedImages]


def load(pairs: PairedImages, n_epochs: int = 1, **settings: int) -> Iterator[torch.Tensor]:
    """Return the batches of so many epochs."""
    usual = {"batch_size": 1, "num_workers": 0, "n_epochs": n_epochs, "n_epochs_decay": 0}
    with training_batches(pairs, Config(**(usual | settings)), CPU) as batches:
        yield from batches


# Whole pairs


def test_halves_follow_the_direction(tmp_path: Path, open_pairs: Opener) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (10, 20, 30)
    pixels[:, 40:] = (40, 50, 60)
    pair = save(tmp_path / "1.png", pixels)
    for direction, expected in (
        ("AtoB", [10, 20, 30, 40, 50, 60]),
        ("BtoA", [40, 50, 60, 10, 20, 30]),
    ):
        sample = open_pairs([pair], direction=direction)[0, 0]
        assert sample.shape == (6, 32, 32)
        assert (sample == torch.tensor(expected)[:, None, None]).all()


def test_nothing_parts_a_pair_or_bleeds_across_the_seam(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs([marked(tmp_path / "1.png")])
    for epoch in range(50):
        sample = pairs[epoch, 0].int()
        assert torch.equal(sample[:3], sample[3:])
        steps = sample[1].diff(dim=1)
        assert (sample[0].diff(dim=0) == 1).all()
        assert (steps == steps[0, 0]).all()


def test_crops_and_mirroring_are_spread_and_independent(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs([marked(tmp_path / "1.png")])
    samples = [pairs[epoch, 0].int() for epoch in range(600)]
    tops = np.array([s[0].min() for s in samples])
    lefts = np.array([s[1].min() for s in samples])
    mirrored = np.array([bool(s[1, 0, 0] > s[1, 0, -1]) for s in samples])
    assert set(tops) == set(lefts) == set(range(9))  # 40 - 32 leaves 9 places
    for group in (tops < 4, tops > 4, lefts < 4, lefts > 4):
        assert 0.35 < mirrored[group].mean() < 0.65
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2


def test_flip_can_be_turned_off(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs([marked(tmp_path / "1.png")], flip=False)
    assert all((pairs[epoch, 0].int()[1].diff(dim=1) == 1).all() for epoch in range(20))


def test_validation_sees_the_whole_picture_unchanged(tmp_path: Path, open_pairs: Opener) -> None:
    pixels = noise(32, 64)
    pairs = open_pairs([save(tmp_path / "1.png", pixels)], augment=False)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    for epoch in range(8):
        sample = pairs[epoch, 0]
        assert torch.equal(sample[:3], expected[:, :, :32])
        assert torch.equal(sample[3:], expected[:, :, 32:])


def test_shrinking_averages_areas(tmp_path: Path, open_pairs: Opener) -> None:
    pixels = noise(64, 128)
    pairs = open_pairs([save(tmp_path / "1.png", pixels)], augment=False)
    means = pixels.reshape(32, 2, 64, 2, 3).mean(axis=(1, 3))
    expected = np.concatenate([means[:, :32], means[:, 32:]], axis=2).transpose(2, 0, 1)
    assert np.abs(pairs[0, 0].numpy() - expected).max() <= 0.5


def test_enlarging_is_noted(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = [*draw(tmp_path / "small", 2), *draw(tmp_path / "large", 1, 50, 100)]
    opened = open_pairs(pairs, load_size=48)
    assert opened.notes == ["2 of 3 pictures are smaller than load_size 48 and are enlarged"]
    assert opened.store.sizes == [(40, 40), (40, 40), (50, 50)]
    assert opened[0, 0].shape == (6, 32, 32)
    assert open_pairs(pairs).notes == []
    assert len(open_pairs(pairs, load_size=48, cache_limit_gb=1e-6).notes) == 1  # a cache is there
    assert len(open_pairs(pairs, load_size=49, cache_limit_gb=1e-6).notes) == 2


def test_grey_and_colour_are_converted(tmp_path: Path, open_pairs: Opener) -> None:
    colour = save(tmp_path / "colour.png", noise(32, 64))
    pairs = open_pairs([colour], augment=False, input_nc=1, output_nc=3)
    grey = np.asarray(Image.open(colour.a).convert("L"))[:, :32]
    assert pairs[0, 0].shape == (4, 32, 32)
    assert np.array_equal(pairs[0, 0][0].numpy(), grey)
    drawn = save(tmp_path / "grey.png", noise(32, 64)[..., 0])
    assert open_pairs([drawn], augment=False)[0, 0].shape == (2, 32, 32)
    sample = open_pairs([drawn], augment=False, input_nc=3)[0, 0]
    assert torch.equal(sample[0], sample[1])
    assert torch.equal(sample[0], sample[2])


@pytest.mark.parametrize("limit", [16.0, 0.0])
def test_keep_aspect_crops_instead_of_squeezing(
    tmp_path: Path, open_pairs: Opener, limit: float
) -> None:
    rows, columns = np.mgrid[:40, :100].astype(np.uint8)
    half = np.stack([rows, columns, rows], axis=2)
    wide = save(tmp_path / "1.png", np.concatenate([half, half], axis=1))
    high = save(tmp_path / "2.png", noise(100, 80))
    pairs = open_pairs(
        [wide, high], keep_aspect=True, check_halves=False, cache_limit_gb=limit, flip=False
    )
    samples = [pairs[epoch, 0].int() for epoch in range(60)]
    for sample in samples:  # neither squeezed nor parted
        assert (sample[1].diff(dim=1) == 1).all()
        assert torch.equal(sample[:3], sample[3:])
    lefts = [int(sample[1, 0, 0]) for sample in samples]
    assert min(lefts) < 10
    assert max(lefts) > 58  # of 100 - 32
    assert pairs[0, 1].shape == (6, 32, 32)
    assert pairs.store.sizes == [(40, 100), (100, 40)]


def test_keep_aspect_validates_on_the_centre(tmp_path: Path, open_pairs: Opener) -> None:
    half = noise(32, 48)
    pair = save(tmp_path / "1.png", np.concatenate([half, half], axis=1))
    pairs = open_pairs([pair], augment=False, keep_aspect=True, check_halves=False)
    assert np.array_equal(pairs[0, 0][:3].permute(1, 2, 0).numpy(), half[:, 8:40])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_16_bits_reach_the_device(tmp_path: Path, open_pairs: Opener, num_workers: int) -> None:
    deep = (np.arange(32 * 64, dtype=np.uint16) * 32).reshape(32, 64)
    pairs = open_pairs(
        [save(tmp_path / "1.png", deep), *draw(tmp_path / "8bit", 1, 32, 64)],
        load_size=32,
        input_nc=1,
        output_nc=1,
        flip=False,
    )
    loader = load(pairs, batch_size=2, num_workers=num_workers)
    (batch,) = loader
    assert batch.dtype == torch.uint16
    x, _ = normalise(batch, Sides(*[Side(1, "uint16", 0, 65535)] * 2))
    expected = torch.from_numpy(deep[:, :32] / 32767.5 - 1).float()
    assert any(torch.allclose(sample[0], expected, atol=1e-6) for sample in x)


def test_label_colours_survive_both_ways_of_reading(tmp_path: Path, open_pairs: Opener) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    drawn = colours[np.random.default_rng(0).integers(0, 2, (50, 100))]
    pairs = open_pairs([save(tmp_path / "1.png", drawn)], nearest="target", load_size=37)
    sample = pairs[0, 0]
    assert set(sample[3:].unique().tolist()) == {0, 255}
    assert len(sample[:3].unique()) > 2


# The same samples everywhere


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_samples_do_not_depend_on_workers(
    tmp_path: Path, open_pairs: Opener, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    if start_method not in get_all_start_methods():
        pytest.skip("Windows cannot fork")
    pairs = open_pairs(draw(tmp_path, 6))
    alone = torch.cat([*load(pairs, n_epochs=2)])
    fixed = partial(batches_from_workers, method=start_method)
    monkeypatch.setattr(dataset, "batches_from_workers", fixed)
    shared = torch.cat([*load(pairs, batch_size=2, n_epochs=2, num_workers=2)])
    assert torch.equal(shared, alone)


def test_samples_follow_from_seed_epoch_and_index(tmp_path: Path, open_pairs: Opener) -> None:
    pair = marked(tmp_path / "1.png")
    pairs, again = open_pairs([pair, pair]), open_pairs([pair, pair])
    keys = [(epoch, index) for epoch in range(10) for index in range(2)]
    seen = {key: pairs[key] for key in keys}
    for key in reversed(keys):
        assert torch.equal(again[key], seen[key])
    # Neither epochs nor pairs repeat the same augmentation: 162 are possible.
    assert len({tuple(sample.flatten().tolist()) for sample in seen.values()}) > 15
    other = open_pairs([pair, pair], seed=1)
    assert any(not torch.equal(other[key], seen[key]) for key in keys)


def test_a_batch_is_its_samples_stacked(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs(draw(tmp_path, 3))
    batch = pairs.__getitems__([(0, 2), (4, 1)])
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([pairs[0, 2], pairs[4, 1]]))


def test_loaders_draw_nothing_from_global_generators(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs(draw(tmp_path, 4))
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    for num_workers in (0, 1):
        assert len([*load(pairs, batch_size=2, num_workers=num_workers)]) == 2
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_validation_goes_one_by_one_in_order(tmp_path: Path, open_pairs: Opener) -> None:
    pairs = open_pairs(draw(tmp_path, 3), augment=False)
    for numbers, expected in ((None, [0, 1, 2]), ([2, 0], [2, 0])):
        batches = [*validation_batches(pairs, numbers=numbers)]
        assert len(batches) == len(expected)
        for index, batch in zip(expected, batches, strict=True):
            assert torch.equal(batch, pairs[0, index][None])


# The order of a run


def test_an_epoch_shows_each_pair_once_in_its_own_order() -> None:
    batches_ = list(epoch_order(7, batch_size=1, seed=0, n_epochs=3))
    epochs = [[index for ((e, index),) in batches_ if e == epoch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(epoch_order(7, batch_size=1, seed=0, n_epochs=3)) == batches_
    assert list(epoch_order(7, batch_size=1, seed=1, n_epochs=3)) != batches_


def test_an_incomplete_last_batch_is_dropped() -> None:
    order = epoch_order(7, batch_size=3, seed=0, n_epochs=2)
    assert [len(batch) for batch in order] == [3, 3, 3, 3]


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 1), (1, 2), (1, 3), (3, 0)])
def test_a_run_goes_on_with_the_batches_that_are_left(epoch: int, step: int) -> None:
    whole = list(epoch_order(7, batch_size=2, seed=5, n_epochs=3))
    left = epoch_order(7, batch_size=2, seed=5, n_epochs=3, start_epoch=epoch, start_step=step)
    assert list(left) == whole[epoch * 3 + step :]


def test_the_order_of_an_epoch_does_not_depend_on_the_length_of_the_run() -> None:
    short = list(epoch_order(5, batch_size=2, seed=0, n_epochs=1))
    assert list(epoch_order(5, batch_size=2, seed=0, n_epochs=9))[: len(short)] == short


# On the device


@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_normalise_maps_the_whole_range_to_minus_one_and_one(dtype: torch.dtype, full: int) -> None:
    batch = torch.tensor([0, full // 5, full, full]).to(dtype).reshape(1, 4, 1, 1)
    kind = str(dtype).removeprefix("torch.")
    x, y = normalise(batch, Sides(Side(3, kind, 0, full), Side(1, kind, 0, full)))
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert y.tolist() == [[[[1.0]]]]


# Pictures that vanish


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_picture_that_vanishes_during_training_is_named(
    tmp_path: Path, open_pairs: Opener, num_workers: int
) -> None:
    pairs = open_pairs(draw(tmp_path, 2), cache_limit_gb=0)
    (tmp_path / "001.png").unlink()
    loader = load(pairs, batch_size=2, num_workers=num_workers)
    with pytest.raises(BadPictures, match=r"001\.png: it does not exist any more") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    assert str(caught.value).startswith("1 of 2 pairs")
