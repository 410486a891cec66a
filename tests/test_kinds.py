"""Pictures of other kinds than photos, from the files through a whole run to files again."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import CPU, TINY
from PIL import Image

from config import Config
from dataset import denormalise, normalise
from evaluate import score_checkpoints
from export import export
from pictures.decode import BadPictures, Picture
from pictures.encode import write
from recipes import resolve
from run.sources import open_data
from samples.heights import draw_heights
from train import train
from translate import Options, translate, translate_files
from utils import load_generator

QUICK = TINY | {"n_epochs": 1, "n_epochs_decay": 0}
RNG = np.random.default_rng(0)


def save_pairs(folder: Path, targets: list[Image.Image]) -> None:
    """Save random photos as A and ``targets`` as B, 40 px."""
    for number, target in enumerate(targets):
        for half in "AB":
            (folder / half).mkdir(parents=True, exist_ok=True)
        photo = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(photo).save(folder / f"A/{number}.png")
        target.save(folder / f"B/{number}.png")


def numbers(*classes: int) -> Image.Image:
    """Return a label picture of 40 px in which each of these numbers of classes occurs."""
    return Image.fromarray(np.resize(np.array(classes, np.uint8), (40, 40)))


def test_from_photos_to_heights_in_metres(capsys: pytest.CaptureFixture[str]):
    draw_heights(Path("hills"), 6, 2, size=64)
    train(Config(dataset="hills", **QUICK))
    assert "targets: 1 channel of float32, 0 to " in capsys.readouterr().out
    header = Path("evaluation/hills/metrics.csv").read_text().splitlines()[0].split(",")
    assert header[-2:] == ["val_mae", "val_rmse"]
    generator = load_generator("checkpoints/hills/generator.pt", "cpu")
    high = generator.sides.target.high
    assert 2 < high < 26

    [summary] = score_checkpoints((Path("checkpoints/hills/generator.pt"),), pictures=1)
    translate_files(
        Path("checkpoints/hills/generator.pt"), "hills/val/A", Path("out"), Options(scale="crop")
    )
    written = [tifffile.imread(path) for path in sorted(Path("out").glob("*.tif"))]
    assert [(found.dtype, found.shape) for found in written] == [(np.float32, (64, 64))] * 2
    assert all(0 <= found.min() <= found.max() <= high for found in written)
    true = [tifffile.imread(path) for path in sorted(Path("hills/val/B").glob("*.tif"))]
    # At crop_size, where scores are, errors are those at full size but for the resizing.
    error = np.abs(np.stack(written) - np.stack(true)).mean()
    assert summary["mae"] == pytest.approx(error, rel=0.2)
    assert summary["rmse"] > summary["mae"] > 0.1

    tifffile.imwrite("hills/train/B/0001.tif", np.full((64, 64), 1000, np.float32))
    with pytest.raises(ValueError, match=r"changed in train: 0001"):
        train(Config(dataset="hills", **QUICK | {"n_epochs": 2}))
    tifffile.imwrite("hills/train/B/0001.tif", np.zeros((64, 64), np.uint16))
    with pytest.raises(
        BadPictures, match="it has 1 channel of uint16; expected 1 channel of float"
    ):
        open_data(resolve(Config(dataset="hills", **QUICK))[0], CPU)


def test_classes_by_number_are_found_learned_and_written():
    palette = [numbers(3, 7), numbers(7, 200), numbers(3, 3, 200)]
    for image in palette:
        image.putpalette([0] * 768)  # as some tools do: their colours say nothing
    save_pairs(Path("masks"), palette)
    train(Config(dataset="masks", labels="target", **QUICK))
    generator = load_generator("checkpoints/masks/generator.pt", "cpu")
    assert list(generator.sides.target.palette) == ["class 3", "class 7", "class 200"]
    [summary] = score_checkpoints((Path("checkpoints/masks/generator.pt"),), pictures=1)
    assert "accuracy" in summary
    output = translate(generator, Image.open("masks/A/0.png"))
    assert output.mode == "P"
    assert set(np.unique(np.asarray(output))) <= {3, 7, 200}


def test_labels_as_inputs_are_seen_as_classes(towns: Path):
    train(Config(dataset=str(towns), direction="BtoA", labels="input", name="b", **QUICK))
    state = torch.load("checkpoints/b/latest.pt", weights_only=True)
    n_classes = len(state["sides"]["input"]["palette"])
    assert 2 < n_classes <= 6
    assert state["generator"]["encoder.0.1.weight"].shape[1] == n_classes
    first = next(iter(state["discriminator"].values()))
    assert first.shape[1] == n_classes + 3
    generator = load_generator("checkpoints/b/generator.pt", "cpu")
    drawn = np.asarray(Image.open(next((towns / "val").iterdir())))[:, 64:]
    noisy = (drawn + RNG.integers(-9, 10, drawn.shape)).clip(0, 255).astype(np.uint8)
    outputs = [translate(generator, Image.fromarray(picture)) for picture in (drawn, noisy)]
    assert np.array_equal(*map(np.asarray, outputs)), "JPEG's noise makes no difference"
    export(Path("checkpoints/b/generator.pt"), Path("b.onnx"))  # which compares the two


def test_masks_that_fill_little_of_their_range_are_noticed(capsys: pytest.CaptureFixture[str]):
    save_pairs(Path("masks"), [numbers(0, 1)] * 3)
    for typed, said in (
        ({}, True),
        ({"target_range": (0, 1)}, False),
        ({"labels": "target"}, False),
    ):
        data = open_data(resolve(Config(dataset="masks", **QUICK | typed))[0], CPU)
        line = "targets fill 0 to 1 of 0 to 255; give --target-range 0 1, or --labels target"
        assert (line in capsys.readouterr().out) == said
    assert data.sides.target.index == "L"


def test_a_range_that_cuts_off_much_is_noticed(capsys: pytest.CaptureFixture[str]):
    save_pairs(Path("masks"), [numbers(0, 1)] * 3)
    for number in range(3):
        sparse = np.zeros((40, 40), np.float32)
        sparse[5:15, 5] = 99
        tifffile.imwrite(f"masks/B/{number}.png", sparse)
    open_data(resolve(Config(dataset="masks", target_range=(0, 2), **QUICK))[0], CPU)
    assert "far beyond 0 to 2, where they are cut off; --target-range 0 " in capsys.readouterr().out
    open_data(resolve(Config(dataset="masks", target_range=(0, 99), **QUICK))[0], CPU)
    assert "cut off" not in capsys.readouterr().out


def test_photos_are_not_taken_for_labels():
    photo = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    save_pairs(Path("photos"), [photo] * 3)
    with pytest.raises(
        ValueError, match=r"targets do not look like label pictures: .*Leave target"
    ):
        open_data(resolve(Config(dataset="photos", labels="target", **QUICK))[0], CPU)


def test_numbers_are_numbers_with_a_palette_or_without_and_unknown_ones_are_told(
    capsys: pytest.CaptureFixture[str],
):
    save_pairs(Path("set/train"), [numbers(1, 2), numbers(1, 2).convert("P"), numbers(2)])
    save_pairs(Path("set/val"), [numbers(1, 9), numbers(1).convert("P")])
    data = open_data(resolve(Config(dataset="set", labels="target", **QUICK))[0], CPU)
    assert list(data.sides.target.palette) == ["class 1", "class 2"]
    assert "1 of 2 targets hold classes that the training" in capsys.readouterr().out


def test_more_numbers_than_can_be_classes_are_refused_not_merged():
    save_pairs(Path("many"), [numbers(*range(100))] * 3)
    with pytest.raises(ValueError, match="they have more than 64 classes"):
        open_data(resolve(Config(dataset="many", labels="target", **QUICK))[0], CPU)


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_numbers_come_through_cache_and_networks_range_and_back(dtype: str, channels: int):
    for half in "AB":
        Path(f"set/{half}").mkdir(parents=True)
        for number in range(3):
            pixels = RNG.uniform(-(2**15), 2**15, (32, 32, channels))
            pixels = pixels + 2**15 if dtype.startswith("u") else pixels
            pixels = (pixels / 256 if dtype == "uint8" else pixels).astype(dtype)
            tifffile.imwrite(f"set/{half}/{number}.tif", pixels, photometric="minisblack")
    typed = QUICK | {"load_size": 32, "flip": False}
    data = open_data(resolve(Config(dataset="set", **typed))[0], CPU)
    batch = data.train.__getitems__([(0, index) for index in range(len(data.train))])
    _, targets = normalise(batch, data.sides)
    for pair, target in zip(data.train.store.pairs, targets, strict=True):
        output = denormalise(target, data.sides.target)
        write(Path("back.tif"), Picture(output), "TIFF")
        expected, found = tifffile.imread(pair.b), tifffile.imread("back.tif")
        assert found.dtype == dtype
        tolerance = 2**16 * 2e-7 if dtype == "float32" else 0
        assert np.allclose(found, expected.reshape(found.shape), rtol=0, atol=tolerance)
