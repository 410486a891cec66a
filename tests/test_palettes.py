"""Classes are found in label pictures as people see them: no soft edge is one, no photo has any."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from pictures.decode import PictureError, Reading, read_picture
from pictures.palettes import IGNORED, PAINT, TOWNS, find_classes, painted, share_unknown
from samples.towns import draw_pair

BLACK, WHITE, RED, GREY = (0, 0, 0), (255, 255, 255), (200, 30, 30), (128, 128, 128)


def drawn(size: int, *shapes: tuple[tuple[int, ...], tuple[int, int, int]]) -> Image.Image:
    """Return a white picture with rectangles and ellipses (with a fifth number) in colours."""
    image = Image.new("RGB", (size, size), WHITE)
    pen = ImageDraw.Draw(image)
    for (*box, is_round), colour in shapes:
        (pen.ellipse if is_round else pen.rectangle)(tuple(box), fill=colour)
    return image


def colours(*pictures: Image.Image) -> set[tuple[int, ...]]:
    palette, _ = find_classes(np.asarray(picture) for picture in pictures)
    return set(palette.values())


def jpeg(pixels: np.ndarray, quality: int) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("by", [2, 3, 4, 7])
@pytest.mark.parametrize("method", [Image.Resampling.BOX, Image.Resampling.BILINEAR])
def test_soft_edges_are_no_classes(by: int, method: Image.Resampling):
    two = drawn(64 * by, ((10 * by, 10 * by, 50 * by, 53 * by + 1, 1), BLACK))
    three = drawn(
        64 * by, ((10, 10, 41 * by, 60 * by, 1), RED), ((20 * by, 5, 62 * by, 99, 1), GREY)
    )
    assert colours(two.resize((64, 64), method)) == {BLACK, WHITE}
    assert colours(three.resize((64, 64), method)) == {RED, GREY, WHITE}


def test_what_is_exact_is_kept_whole():
    trimap = drawn(64, ((8, 8, 50, 50, 1), GREY), ((14, 14, 44, 44, 1), BLACK))
    assert colours(trimap) == {WHITE, GREY, BLACK}
    lines = drawn(64, ((0, 20, 63, 20, 0), GREY), ((30, 30, 60, 60, 1), BLACK))
    assert colours(lines) == {WHITE, GREY, BLACK}  # of one pixel's width
    rare = drawn(64, ((5, 5, 5, 5, 0), (0, 0, 9)), ((30, 30, 60, 60, 1), BLACK))
    assert colours(rare, *[drawn(64)] * 50) == {WHITE, BLACK, (0, 0, 9)}
    maps = [Image.fromarray(draw_pair(0, "train", n, 64)[1]) for n in range(8)]
    palette, is_exact = find_classes(np.asarray(one) for one in maps)
    assert (set(palette.values()), is_exact) == (set(TOWNS.values()), True)


@pytest.mark.parametrize("quality", [90, 50, 30])
def test_jpeg_is_seen_through(quality: int):
    maps = [jpeg(draw_pair(0, "train", n, 256)[1], quality) for n in range(8)]
    palette, is_exact = find_classes(np.asarray(one) for one in maps)
    assert (len(palette), is_exact) == (len(TOWNS), False)
    for found, colour in zip(sorted(palette.values()), sorted(TOWNS.values()), strict=True):
        assert np.abs(np.subtract(found, colour)).max() <= 8


def test_photos_have_no_classes():
    photos = [draw_pair(0, "train", n, 64)[0] for n in range(4)]
    with pytest.raises(ValueError, match=r"colours are in them, and the .* cover \d+% of the pix"):
        find_classes(photos)
    with pytest.raises(ValueError, match="all show the same, #ffffff"):
        find_classes([np.asarray(drawn(64))] * 3)
    with pytest.raises(ValueError, match="all show the same, #000000"):
        find_classes([painted(np.zeros((8, 8), np.uint8))], shades=False)
    with pytest.raises(ValueError, match="all show the same, nothing"):
        find_classes([painted(np.full((8, 8), 255), ignore=255)], shades=False)


@pytest.mark.parametrize(
    ("dtype", "ignore"),
    [("uint8", 255), ("int16", 255), ("int16", -1), ("float32", 255), ("float32", -1)],
)
def test_a_number_may_be_ignored(tmp_path: Path, dtype: str, ignore: int):
    numbers = np.resize(np.array([0, 3, ignore, 9], dtype), (32, 32))
    tifffile.imwrite(tmp_path / "1.tif", numbers)
    read = read_picture(tmp_path / "1.tif", Reading(labels=True, ignore=ignore)).pixels
    assert (read[numbers == ignore] == IGNORED).all()
    assert (read[numbers == 9] == PAINT[9]).all()
    palette, is_exact = find_classes([read], shades=False)
    assert (set(palette.values()), is_exact) == (
        {tuple(PAINT[n].tolist()) for n in (0, 3, 9)},
        True,
    )
    assert share_unknown(read, palette) == 0
    if ignore < 0:
        with pytest.raises(PictureError, match=r"-1 to 9; .*the one that ignore names"):
            read_picture(tmp_path / "1.tif", Reading(labels=True))


def test_the_colour_of_ignored_pixels_is_no_other():
    assert IGNORED not in map(tuple, PAINT.tolist())
