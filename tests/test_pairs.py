"""How the halves of a pair become one array: cut or joined, converted, resized."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from pictures import pairs
from pictures.decode import PictureError
from pictures.layouts import Pair
from pictures.pairs import (
    Kinds,
    PairHeader,
    Preparation,
    check_kinds,
    check_pair,
    settle_kinds,
    shape_of,
)
from pictures.sides import Kind

COLOURS: Kinds = (Kind(), Kind())


def preparation(size: int = 32, **changes: Any) -> Preparation:
    """Return the usual preparation, with pictures of so many pixels, and some changes."""
    usual = {
        "load_size": size,
        "crop_size": size,
        "flip": True,
        "seed": 0,
        "direction": "AtoB",
        "input_nc": None,
        "output_nc": None,
        "alpha": "white",
        "max_pixels": None,
        "keep_aspect": False,
        "nearest": "none",
        "check_halves": True,
        "ignore": None,
        "on_bad_picture": "stop",
        "cache_dir": "cache",
        "cache_limit_gb": 16.0,
        "augment": True,
    }
    return Preparation(**(usual | changes))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def read_pair(pair: Pair, used: Preparation) -> np.ndarray:
    kinds = settle_kinds([check_pair(pair, used)], used)
    return pairs.read_pair(pair, used, kinds)[0]


def problem(pair: Pair, used: Preparation | None = None) -> PictureError:
    with pytest.raises(PictureError) as caught:
        check_pair(pair, used or preparation())
    return caught.value


# Two files


def test_two_files_are_stacked_as_the_direction_says(tmp_path: Path) -> None:
    a, b = noise(32, 32, 1), noise(32, 32, 2)
    pair = Pair(saved(tmp_path / "a.png", a), saved(tmp_path / "b.png", b))
    assert np.array_equal(read_pair(pair, preparation()), np.dstack([a, b]))
    turned = preparation(direction="BtoA")
    assert np.array_equal(read_pair(pair, turned), np.dstack([b, a]))
    assert check_pair(pair, preparation()) == PairHeader(32, 32, COLOURS)


def test_files_of_different_scale_are_brought_to_the_same(tmp_path: Path) -> None:
    large, small = noise(64, 64), np.full((32, 32, 3), 7, np.uint8)
    pair = Pair(saved(tmp_path / "a.png", large), saved(tmp_path / "b.png", small))
    assert check_pair(pair, preparation()) == PairHeader(64, 64, COLOURS)
    read = read_pair(pair, preparation())
    assert (read[..., 3:] == 7).all()
    assert np.abs(read[..., :3] - large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))).max() <= 0.5


def test_files_of_different_shape_are_refused(tmp_path: Path) -> None:
    pair = Pair(saved(tmp_path / "a.png", noise(40, 60)), saved(tmp_path / "b.png", noise(40, 40)))
    assert str(problem(pair)) == (
        f"  {pair.a}: it and {pair.b} are 60x40 and 40x40: of different shapes, not of the same "
        f"scene"
    )


def test_both_bad_files_of_a_pair_are_named(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a.png", tmp_path / "b.png")
    assert set(problem(pair).reasons) == {pair.a, pair.b}
    saved(pair.a, noise(32, 32))
    assert set(problem(pair).reasons) == {pair.b}


def test_each_file_is_turned_by_its_own_exif(tmp_path: Path) -> None:
    pixels, exif = noise(32, 48), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pair = Pair(
        saved(tmp_path / "a.png", np.rot90(pixels), exif=exif), saved(tmp_path / "b.png", pixels)
    )
    read = read_pair(pair, preparation(keep_aspect=True))
    assert np.array_equal(read, np.dstack([pixels, pixels]))


# Side by side


def test_exif_turns_both_halves_together(tmp_path: Path) -> None:
    whole, exif = noise(32, 64), Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    pair = Pair(saved(tmp_path / "1.png", np.rot90(whole, -1), exif=exif))
    assert check_pair(pair, preparation()) == PairHeader(32, 32, COLOURS)
    expected = np.dstack([whole[:, :32], whole[:, 32:]])
    assert np.array_equal(read_pair(pair, preparation()), expected)


@pytest.mark.parametrize(
    ("height", "width", "looks"),
    [
        (40, 40, ", but looks like a single picture"),
        (40, 60, ", but looks like a single picture"),
        (90, 160, ", but looks like a single picture"),
        (40, 120, ", but looks like 3 squares in a row"),
        (40, 160, ", but looks like 4 squares in a row"),
        (40, 94, ""),
    ],
)
def test_a_single_picture_is_not_cut(tmp_path: Path, height: int, width: int, looks: str) -> None:
    pair = Pair(saved(tmp_path / "1.png", noise(height, width)))
    expected = f"its size of {width}x{height} is not that of two squares side by side{looks}"
    found = problem(pair)
    assert found.reasons == {pair.a: expected}
    assert "check_halves to False" in found.advice
    assert "set a and b to their folders" in found.advice
    assert check_pair(pair, preparation(check_halves=False)).width == width // 2


@pytest.mark.parametrize("width", [78, 80, 82])
def test_halves_may_be_nearly_square(tmp_path: Path, width: int) -> None:
    pair = Pair(saved(tmp_path / "1.png", noise(40, width)))
    assert check_pair(pair, preparation()) == PairHeader(40, width // 2, COLOURS)


def test_an_odd_width_is_refused(tmp_path: Path) -> None:
    pair = Pair(saved(tmp_path / "1.png", noise(40, 81)))
    expected = {pair.a: "its size of 81x40 has an odd width, so it has no two equal halves"}
    assert problem(pair).reasons == expected
    assert problem(pair, preparation(check_halves=False)).reasons == expected
    single = problem(Pair(saved(tmp_path / "2.png", noise(40, 51))))
    assert str(single).endswith("no two equal halves, but looks like a single picture")
    assert "set a and b to their folders" in single.advice


@pytest.mark.parametrize(("height", "width"), [(1, 2), (15, 30), (15, 200), (200, 30)])
def test_tiny_halves_are_refused(tmp_path: Path, height: int, width: int) -> None:
    pair = Pair(saved(tmp_path / "1.png", noise(height, width)))
    found = problem(pair, preparation(check_halves=False))
    assert "smaller than 16x16" in found.reasons[pair.a]


@pytest.mark.parametrize(("height", "width"), [(16, 600), (300, 32)])
def test_strips_are_refused(tmp_path: Path, height: int, width: int) -> None:
    pair = Pair(saved(tmp_path / "1.png", noise(height, width)))
    found = problem(pair, preparation(check_halves=False))
    assert "more than 16 times as long as broad" in found.reasons[pair.a]


# Depth and channels


def test_the_numbers_of_both_sides_are_kept_as_they_are(tmp_path: Path) -> None:
    deep = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    flat = noise(32, 32)
    pair = Pair(saved(tmp_path / "a.png", deep), saved(tmp_path / "b.png", flat))
    assert check_pair(pair, preparation()).kinds == (Kind(1, "uint16"), Kind())
    read = read_pair(pair, preparation())
    assert read.dtype == np.uint16
    assert np.array_equal(read, np.dstack([deep, flat]))
    np.save(tmp_path / "c.npy", flat[..., 0].astype(np.float64) / 7)
    read = read_pair(Pair(tmp_path / "a.png", tmp_path / "c.npy"), preparation())
    assert read.dtype == np.float32
    assert np.array_equal(read[..., 0], deep)
    assert np.array_equal(read[..., 1], (flat[..., 0] / 7).astype(np.float32))
    with pytest.raises(PictureError, match="changed since it was checked"):
        pairs.read_pair(Pair(tmp_path / "a.png", tmp_path / "c.npy"), preparation(), COLOURS)


def test_one_side_of_8_and_16_bits_becomes_16(tmp_path: Path) -> None:
    deep, flat = np.full((32, 32), 40000, np.uint16), noise(32, 32)[..., 0]
    files = [saved(tmp_path / f"{n}.png", p) for n, p in enumerate((deep, flat))]
    each = [Pair(file, file) for file in files]
    kinds = settle_kinds([check_pair(pair, preparation()) for pair in each], preparation())
    assert kinds == (Kind(1, "uint16"), Kind(1, "uint16"))
    read = pairs.read_pair(each[1], preparation(), kinds)[0]
    assert np.array_equal(read[..., 0], flat.astype(np.uint16) * 257)
    ranged = preparation(ranged=("target",))  # 0 to 4095, say, which 257 times the bytes are not
    check_kinds(each[0], check_pair(each[0], ranged), kinds, ranged)
    with pytest.raises(PictureError, match="target_range is in numbers of uint16"):
        check_kinds(each[1], check_pair(each[1], ranged), kinds, ranged)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros((32, 32), np.float32), "a.npy: it has 1 channel of float32; expected 3 channels"),
        (np.zeros((32, 32, 5), np.uint8), "a.npy: it has 5 channels of uint8; expected 3 channels"),
    ],
)
def test_a_picture_unlike_the_others_is_named(
    tmp_path: Path, odd: np.ndarray, message: str
) -> None:
    usual = Pair(saved(tmp_path / "b.png", noise(32, 32)), tmp_path / "b.png")
    np.save(tmp_path / "a.npy", odd)
    pair = Pair(tmp_path / "a.npy", tmp_path / "b.png")
    headers = [check_pair(p, preparation()) for p in (usual, usual, pair)]
    kinds = settle_kinds(headers, preparation())
    check_kinds(usual, headers[0], kinds, preparation())
    with pytest.raises(PictureError, match=re.escape(message)) as caught:
        check_kinds(pair, headers[2], kinds, preparation())
    assert "input_nc and output_nc" in caught.value.advice


def test_what_is_drawn_over_white_is_told(tmp_path: Path) -> None:
    pixels = np.dstack([noise(32, 32), np.full((32, 32), 255, np.uint8)])
    pair = Pair(saved(tmp_path / "a.png", pixels), saved(tmp_path / "b.png", noise(32, 32)))
    assert not pairs.read_pair(pair, preparation(), COLOURS)[1]
    pixels[0, 0, 3] = 254
    saved(tmp_path / "a.png", pixels)
    assert pairs.read_pair(pair, preparation(), COLOURS)[1]
    assert read_pair(pair, preparation(alpha="keep")).shape[2] == 7


def test_channels_are_converted_for_each_role(tmp_path: Path) -> None:
    a, b = noise(32, 32, 1), noise(32, 32, 2)
    pair = Pair(saved(tmp_path / "a.png", a), saved(tmp_path / "b.png", b))
    grey = np.asarray(Image.fromarray(b).convert("L"))
    read = read_pair(pair, preparation(direction="BtoA", input_nc=1))
    assert np.array_equal(read, np.dstack([grey, a]))


# Resizing


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (48, 48), (100, 33)])
def test_keep_aspect_scales_the_short_side(tmp_path: Path, height: int, width: int) -> None:
    whole = preparation(keep_aspect=True, check_halves=False)
    pair = Pair(saved(tmp_path / "1.png", noise(height, 2 * width)))
    shape = read_pair(pair, whole).shape
    assert min(shape[:2]) == 32
    assert abs(shape[0] / shape[1] - height / width) < 0.5 / 32 * 4
    assert shape == shape_of(check_pair(pair, whole), whole, COLOURS)
    squeezed = preparation(check_halves=False)
    assert (
        read_pair(pair, squeezed).shape
        == (32, 32, 6)
        == shape_of(PairHeader(1, 2, COLOURS), squeezed, COLOURS)
    )


@pytest.mark.parametrize("size", [23, 32, 50])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("nearest", ["none", "input", "target", "both"])
def test_nearest_invents_no_colours(
    tmp_path: Path, size: int, direction: str, nearest: str
) -> None:
    labels = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    drawn = labels[np.random.default_rng(0).integers(0, 3, (40, 80))]
    pair = Pair(saved(tmp_path / "1.png", drawn))
    read = read_pair(pair, preparation(size, direction=direction, nearest=nearest))
    known = {tuple(colour) for colour in labels.tolist()}
    for role, half in (("input", read[..., :3]), ("target", read[..., 3:])):
        seen = {tuple(colour) for colour in half.reshape(-1, 3).tolist()}
        assert (seen <= known) == (nearest in (role, "both"))


def test_nearest_takes_the_pixel_in_the_middle(tmp_path: Path) -> None:
    pixels = noise(96, 192)
    pair = Pair(saved(tmp_path / "1.png", pixels))
    read = read_pair(pair, preparation(nearest="both"))
    assert np.array_equal(read, np.dstack([pixels[1::3, 1:96:3], pixels[1::3, 97::3]]))
