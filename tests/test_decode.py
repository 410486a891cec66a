"""Every format is read as it looks, and every bad file is named with what is wrong."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps

from pictures import decode, formats
from pictures.decode import BadPictures, Header, PictureError, Reading, read_header
from pictures.encode import HOLDS, can_hold, write
from pictures.palettes import painted
from pictures.sides import OWN_RANGES, Kind

RAMP = np.arange(32 * 48, dtype=np.uint32).reshape(32, 48)
GREY = (RAMP * 255 // RAMP.max()).astype(np.uint8)
DEEP = (RAMP * 65535 // RAMP.max()).astype(np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def read_picture(path: Path, **reading: Any) -> np.ndarray:
    return decode.read_picture(path, Reading(**reading)).pixels


def reason(path: Path) -> str:
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    with pytest.raises(PictureError) as from_header:
        read_header(path)
    assert caught.value.reasons == from_header.value.reasons
    return caught.value.reasons[path]


# Formats


@pytest.mark.parametrize("suffix", ["png", "PNG", "tif", "TIFF", "bmp", "webp"])
def test_colour_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = saved(
        tmp_path / f"Häuser 家.{suffix}", COLOUR, **{"lossless": True} if "w" in suffix else {}
    )
    assert np.array_equal(read_picture(path), COLOUR)
    assert read_header(path) == Header(32, 48, Kind())


def test_jpeg_is_read_nearly(tmp_path: Path) -> None:
    smooth = np.repeat(GREY[..., None], 3, axis=2)
    read = read_picture(saved(tmp_path / "1.JPG", smooth, quality=95))
    assert np.abs(read.astype(int) - smooth).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_a_wrong_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"1.{suffix}", COLOUR, format="PNG")
    assert np.array_equal(read_picture(path), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_stays_grey(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_picture(saved(tmp_path / f"1.{suffix}", GREY)), GREY[..., None])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_depth(tmp_path: Path, suffix: str, order: str) -> None:
    mode = "I;16" if order == "<u2" or suffix == "png" else "I;16B"
    pixels = DEEP.astype("<u2" if mode == "I;16" else ">u2")
    image = Image.frombytes(mode, (48, 32), pixels.tobytes())
    path = saved(tmp_path / f"1.{suffix}", image)
    read = read_picture(path)
    assert read.dtype == np.uint16
    assert np.array_equal(read, DEEP[..., None])
    assert read_header(path) == Header(32, 48, Kind(1, "uint16"))


def test_16_bit_png_of_older_pillow_keeps_its_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "1.png", DEEP)
    real = formats.opened_image

    def as_before_pillow_11(*arguments: Any, **options: Any) -> Image.Image:
        opened = real(*arguments, **options)
        image = opened.convert("I")
        image.format = opened.format
        return image

    monkeypatch.setattr(formats, "opened_image", as_before_pillow_11)
    assert np.array_equal(read_picture(path), DEEP[..., None])


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    for suffix in ("png", "tif", "bmp"):
        path = saved(tmp_path / f"1.{suffix}", Image.fromarray(GREY > 99))
        assert np.array_equal(read_picture(path)[..., 0], np.where(GREY > 99, 255, 0))


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    labels = Image.fromarray((GREY // 64).astype(np.uint8), mode="P")
    colours = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
    labels.putpalette([value for colour in colours for value in colour])
    expected = np.array(colours, np.uint8)[GREY // 64]
    assert np.array_equal(read_picture(saved(tmp_path / "1.png", labels)), expected)
    seen = read_picture(saved(tmp_path / "2.png", labels, transparency=1))
    expected[GREY // 64 == 1] = 255
    assert np.array_equal(seen, expected)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    alpha = np.full_like(GREY, 255)
    alpha[:10], alpha[10:20] = 0, 51
    read = read_picture(saved(tmp_path / "1.png", np.dstack([COLOUR, alpha])))
    over_white = COLOUR * (alpha / 255)[..., None] + 255 - alpha[..., None]
    assert np.abs(read - over_white).max() <= 1
    assert (read[:10] == 255).all()
    assert np.array_equal(read[20:], COLOUR[20:])


def test_grey_with_alpha_stays_grey(tmp_path: Path) -> None:
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    read = read_picture(saved(tmp_path / "1.png", Image.fromarray(np.dstack([GREY, alpha]))))
    assert np.array_equal(read, np.where(GREY > 99, GREY, 255)[..., None])


def test_a_transparent_colour_is_white(tmp_path: Path) -> None:
    read = read_picture(saved(tmp_path / "1.png", GREY, transparency=7))
    assert np.array_equal(read[..., 0], np.where(GREY == 7, 255, GREY))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # magenta and yellow inks: red
    read = read_picture(saved(tmp_path / f"1.{suffix}", image))
    assert np.abs(read.astype(int) - (255, 0, 0)).max() <= 3


TURNED = {
    1: COLOUR,
    2: COLOUR[:, ::-1],
    3: COLOUR[::-1, ::-1],
    4: COLOUR[::-1],
    5: COLOUR.transpose(1, 0, 2),
    6: np.rot90(COLOUR, -1),
    7: COLOUR[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(COLOUR),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_turns_the_picture_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"1.{suffix}", COLOUR, exif=exif, **options)
    expected = TURNED[orientation]
    assert np.array_equal(read_picture(path), expected)
    assert read_header(path) == Header(*expected.shape[:2], Kind())


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_tiff_in_other_colours_is_turned_once(tmp_path: Path, mode: str, orientation: int) -> None:
    smooth = np.dstack([GREY, GREY, GREY])
    image = Image.fromarray(smooth)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    path = saved(tmp_path / "1.tif", image.convert(mode), tiffinfo={274: orientation})
    expected = np.rot90(smooth, {3: 2, 6: -1}[orientation])
    assert read_header(path) == Header(*expected.shape[:2], Kind())
    assert np.abs(read_picture(path).astype(int) - expected).max() <= 3


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on the damage
def test_damaged_exif_is_passed_over(tmp_path: Path) -> None:
    path = saved(tmp_path / "1.jpg", COLOUR, exif=b"Exif\x00\x00broken")
    assert read_picture(path).shape == COLOUR.shape


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_picture_whose_exif_is_damaged_elsewhere_is_turned(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.XResolution] = 3, 72.0
    damaged = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")  # called a text
    path = saved(tmp_path / f"1.{kind}", COLOUR, exif=damaged)
    with Image.open(path) as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)  # the damage that this is about
    plain = read_picture(saved(tmp_path / f"2.{kind}", COLOUR))
    with Image.open(path) as image:
        for _ in range(2):  # and stays as it was
            assert np.array_equal(decode.decode(image).pixels, plain[::-1, ::-1])


def test_a_phone_picture_with_a_second_picture_in_it_is_read(tmp_path: Path) -> None:
    second = Image.fromarray(GREY)
    path = saved(tmp_path / "1.jpg", COLOUR, format="MPO", save_all=True, append_images=[second])
    assert read_picture(path).shape == COLOUR.shape


# Any channels, any depth


def numbers(dtype: str, channels: int) -> np.ndarray:
    """Return random numbers of all of a type's range, (32, 48, channels)."""
    random = np.random.default_rng(0)
    if dtype == "float32":
        return random.normal(0, 1e4, (32, 48, channels)).astype(np.float32)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max + 1, (32, 48, channels)).astype(dtype)


KEPT = [
    (suffix, dtype, n)
    for suffix in (".png", ".tif", ".npy")
    for dtype in OWN_RANGES
    for n in (1, 2, 3, 4, 5, 100)
    if can_hold(suffix, dtype, n)
]


@pytest.mark.parametrize(("suffix", "dtype", "channels"), KEPT)
def test_what_is_written_is_read_to_the_last_bit(
    tmp_path: Path, suffix: str, dtype: str, channels: int
) -> None:
    path, expected = tmp_path / f"1{suffix}", numbers(dtype, channels)
    write(path, decode.Picture(expected), HOLDS[suffix][0])
    # PNG calls the second and fourth channel opacity.
    read = read_picture(path, alpha="keep")
    assert read.dtype == expected.dtype
    assert np.array_equal(read, expected)
    assert read_header(path, Reading("keep")).kind == Kind(channels, dtype)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate", "photometric": "minisblack"},
    "BigTIFF": {"bigtiff": True},
    "big end first": {"byteorder": ">"},
    "LZW": {"compression": "lzw", "predictor": True},
    "pages": {"photometric": "minisblack"},
    "pages in one piece": {"photometric": "minisblack", "truncate": True},  # as ImageJ writes
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_of_any_layout_is_read_exactly(tmp_path: Path, layout: str) -> None:
    path, expected = tmp_path / "1.tif", numbers("uint16", 5)
    is_first = layout.startswith(("planes", "pages"))
    stored = expected.transpose(2, 0, 1) if is_first else expected
    options = {"planarconfig": "contig", "photometric": "minisblack"} | LAYOUTS[layout]
    if layout.startswith("pages"):
        del options["planarconfig"]
    tifffile.imwrite(path, stored, **options)
    assert np.array_equal(read_picture(path), expected)


def test_channels_are_told_from_pixels(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 999, (20, 60, 50), dtype=np.uint16)
    for stored, order in ((bands, "contig"), (bands.transpose(2, 0, 1), "separate")):
        form = {"planarconfig": order, "photometric": "minisblack"}
        tifffile.imwrite(tmp_path / "1.tif", stored, **form)
        assert np.array_equal(read_picture(tmp_path / "1.tif"), bands)
    for stored in (bands[:, :18], bands[:, :18].transpose(2, 0, 1)):
        np.save(tmp_path / "1.npy", stored)
        assert np.array_equal(read_picture(tmp_path / "1.npy"), bands[:, :18])
    np.save(tmp_path / "1.npy", np.zeros((64, 64, 64)))
    assert reason(tmp_path / "1.npy").startswith("an array of 64x64x64, whose channels may be")


def test_of_a_tiff_with_overviews_and_masks_the_full_picture_is_read(tmp_path: Path) -> None:
    path, expected = tmp_path / "1.tif", numbers("float32", 1)
    with tifffile.TiffWriter(path) as file:
        file.write(expected[..., 0])
        file.write(expected[::2, ::2, 0], subfiletype=1)
        file.write(np.ones((32, 48), bool), subfiletype=4)
    assert np.array_equal(read_picture(path), expected)


def test_an_orthophoto_in_jpeg_with_overviews_is_read(tmp_path: Path) -> None:
    path, smooth = tmp_path / "1.tif", np.dstack([GREY, GREY, 255 - GREY])
    form = {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)}
    form["compressionargs"] = {"outcolorspace": "ycbcr", "level": 95}
    place = [(33922, "d", 6, (0, 0, 0, 4e5, 5e6, 0), True)]
    with tifffile.TiffWriter(path) as file:
        file.write(smooth, extratags=place, **form)
        file.write(smooth[::2, ::2].copy(), subfiletype=1, **form)
    picture = decode.read_picture(path)
    assert np.abs(picture.pixels.astype(int) - smooth).max() <= 16
    assert list(picture.tags) == [33922]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_16_bits_a_channel_keeps_them(tmp_path: Path, channels: int) -> None:
    path, expected = tmp_path / "1.png", numbers("uint16", channels)
    expected[..., -1] = 65535 if channels in (2, 4) else expected[..., -1]
    write(path, decode.Picture(expected), "PNG")
    drawn = expected[..., : channels - (channels in (2, 4))]
    assert np.array_equal(read_picture(path), drawn)


def test_a_transparent_colour_of_16_bits_is_white(tmp_path: Path) -> None:
    path, expected = tmp_path / "1.png", numbers("uint16", 3)
    write(path, decode.Picture(expected), "PNG")
    whole, key = path.read_bytes(), b"tRNS" + expected[0, 0].astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    path.write_bytes(whole[:33] + chunk + whole[33:])  # behind the header
    assert read_header(path).kind == Kind(3, "uint16")
    expected[0, 0] = 65535
    assert np.array_equal(read_picture(path), expected)


def test_a_fourth_band_is_opacity_only_where_the_file_says_so(tmp_path: Path) -> None:
    path, bands = tmp_path / "1.tif", numbers("uint16", 4)
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_picture(path), bands)
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unassalpha"])
    assert read_picture(path).shape[2] == 3
    assert np.array_equal(read_picture(path, alpha="keep"), bands)


def test_palettes_and_numbers_of_classes_are_kept_apart(tmp_path: Path) -> None:
    labels = (GREY // 64).astype(np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putpalette([0, 0, 0, 76, 76, 76, 149, 0, 0, 0, 76, 0])  # nearly all alike in grey
    for path in (saved(tmp_path / "1.png", image), saved(tmp_path / "2.png", labels)):
        assert np.array_equal(read_picture(path, labels=True), painted(labels))
        assert read_header(path, Reading(labels=True)).kind.index == (
            "P" if "1" in path.name else "L"
        )
    with pytest.raises(PictureError, match="classes are whole numbers from 0 to 255"):
        read_picture(saved(tmp_path / "3.png", DEEP), labels=True)
    # What shows as white is 255, however a file stores it.
    path = saved(tmp_path / "4.tif", Image.fromarray(GREY > 99), tiffinfo={262: 0})
    assert np.array_equal(read_picture(path, labels=True), painted((GREY > 99) * np.uint8(255)))
    # The noise of JPEG is not that of classes: its greys are colours, of which some are shades.
    path = saved(tmp_path / "5.jpg", labels)
    assert read_header(path, Reading(labels=True)).kind == Kind()


@pytest.mark.parametrize("scale", [1, 256])
def test_the_palette_of_a_tiff_may_have_8_bits(tmp_path: Path, scale: int) -> None:
    path, colours = tmp_path / "1.tif", np.arange(768, dtype=np.uint16).reshape(3, 256) % 251
    tifffile.imwrite(path, GREY, photometric="palette", colormap=colours * scale)
    assert np.array_equal(read_picture(path), colours.T[GREY])


def test_embedded_profiles_are_converted_to_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue changed places in its table of contents: what it calls red is blue.
    profile = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "wild".encode("utf-16-be")))
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    path = saved(tmp_path / "1.png", COLOUR, icc_profile=bytes(profile))
    assert np.abs(read_picture(path).astype(int) - COLOUR[..., ::-1]).max() <= 2
    assert np.array_equal(read_picture(path, labels=True), COLOUR)  # whose colours are names
    planes = {"planarconfig": "separate", "photometric": "rgb", "iccprofile": bytes(profile)}
    tifffile.imwrite(tmp_path / "1.tif", COLOUR.transpose(2, 0, 1), **planes)
    few = Image.fromarray(COLOUR).quantize(16)
    saved(tmp_path / "3.png", few, icc_profile=bytes(profile))
    for path, colours in (("1.tif", COLOUR), ("3.png", np.asarray(few.convert("RGB")))):
        found = read_picture(tmp_path / path).astype(int)
        assert np.abs(found - colours[..., ::-1]).max() <= 2
    plain = saved(tmp_path / "2.png", COLOUR, icc_profile=srgb)
    assert np.array_equal(read_picture(plain), COLOUR)


# Bad files


@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_missing_numbers_are_refused(tmp_path: Path, suffix: str) -> None:
    heights = GREY.astype(np.float32)
    heights[:8] = np.nan
    path = tmp_path / f"1.{suffix}"
    (tifffile.imwrite if suffix == "tif" else np.save)(path, heights)
    with pytest.raises(PictureError, match=r"25\.0% of it is NaN") as caught:
        read_picture(path)
    assert "fill these in" in caught.value.advice
    if suffix == "tif":  # GDAL says by a tag which number is none
        heights[:8] = -9999
        for stored in (heights, heights.astype(np.int32)):
            tifffile.imwrite(path, stored, extratags=[(42113, 2, 0, "-9999", True)])
            with pytest.raises(PictureError, match=r"25\.0% of it is not measured \(-9999\)"):
                read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    more = [Image.fromarray(255 - COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    path = saved(tmp_path / f"1.{suffix}", COLOUR, save_all=True, append_images=more)
    assert reason(path).endswith("a stack of 3 pictures")


def test_a_stack_in_one_piece_is_refused(tmp_path: Path) -> None:
    path, options = tmp_path / "1.tif", {"imagej": True, "metadata": {"axes": "ZYX"}}
    tifffile.imwrite(path, np.stack([DEEP] * 3), truncate=True, **options)
    assert reason(path) == "a stack of 3 pictures"


def test_png_that_tells_its_rotation_too_late_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    whole = saved(tmp_path / "1.png", COLOUR, exif=exif).read_bytes()
    start = whole.index(b"eXIf") - 4
    end = whole.index(b"IDAT") - 4
    late = whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:]
    (tmp_path / "1.png").write_bytes(late)
    with pytest.raises(PictureError, match="EXIF rotation stands after its pixels"):
        read_picture(tmp_path / "1.png")


def grey_tiff(bits: int, photometric: int) -> bytes:
    """Return a plain TIFF of 32x32 pixels, all bits set."""
    entries = [(256, 32), (257, 32), (258, bits), (259, 1), (262, photometric), (273, 8)]
    entries += [(277, 1), (278, 32), (279, 32 * 32 * bits // 8)]
    pixels = bytes([255]) * (32 * 32 * bits // 8)
    listed = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(entries)) + listed + bytes(4)


def test_grey_tiff_of_any_bits_is_read_the_right_way_up(tmp_path: Path) -> None:
    path = tmp_path / "1.tif"
    for bits, photometric, expected in ((16, 1, 65535), (12, 1, 4095), (16, 0, 0), (4, 1, 255)):
        path.write_bytes(grey_tiff(bits, photometric))
        assert (read_picture(path) == expected).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "npy"])
def test_a_picture_of_too_many_pixels_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"1.{suffix}"
    pixels = np.zeros((200, 300), np.uint8)
    np.save(path, pixels) if suffix == "npy" else saved(path, pixels)
    # That of another part of the program, which Pillow itself still asks for in WebP.
    elsewhere = 40_000 if suffix == "webp" else 1000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", elsewhere)
    assert read_picture(path, max_pixels=60_000).shape[:2] == (200, 300)
    for read in (read_picture, lambda path, **limit: read_header(path, Reading(**limit))):
        with pytest.raises(PictureError, match=r"300x200 pixels are more .*raise max_pixels"):
            read(path, max_pixels=59_999)
    assert elsewhere == Image.MAX_IMAGE_PIXELS
    assert read_picture(path).shape[:2] == (200, 300)  # the limit was that of one call
    monkeypatch.setattr(decode, "MAX_PIXELS", 59_999)
    assert reason(path).startswith("its 300x200 pixels are more than 0.06 million")


def test_a_webp_beyond_the_limit_of_pillow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "1.webp", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reason(path) == "more pixels than Pillow reads of WebP; save it as PNG"


def ifd_of(content: bytes) -> tuple[int, int]:
    """Return where the first list of tags of a TIFF begins and ends."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    return start, start + 2 + 12 * count


@pytest.mark.parametrize("through_another", [False, True])
def test_a_tiff_whose_pages_go_round_in_a_circle_ends(
    tmp_path: Path, through_another: bool
) -> None:
    tifffile.imwrite(tmp_path / "1.tif", COLOUR, metadata=None)
    content = bytearray((tmp_path / "1.tif").read_bytes())
    start, end = ifd_of(content)
    to_first = struct.pack("<I", start)
    content[end : end + 4] = struct.pack("<I", len(content)) if through_another else to_first
    content += (content[start:end] + to_first) * through_another
    (tmp_path / "1.tif").write_bytes(content)
    assert reason(tmp_path / "1.tif") == "its list of pages leads back to itself"


ZLIB = {"compression": "zlib"}


def retag(path: Path, **values: int) -> Path:
    """Write other numbers into a TIFF's tags."""
    content = bytearray(path.read_bytes())
    start, end = ifd_of(content)
    for entry in range(start + 2, end, 12):
        (tag,) = struct.unpack_from("<H", content, entry)
        if f"t{tag}" in values:
            struct.pack_into("<HII", content, entry + 2, 4, 1, values[f"t{tag}"])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("options", "tags", "why"),
    [
        ({"tile": (64, 64)}, {"t322": 1 << 20, "t323": 1 << 20}, "tiles of 1048576x1048576 for"),
        (ZLIB, {"t257": 2_000_000, "t278": 1}, "it holds 1 of its 2000000 strips or tiles"),
        (ZLIB, {"t257": 1 << 30, "t278": 1 << 30}, "its 64x1073741824 pixels are more than"),
    ],
)
def test_a_tiff_that_claims_what_it_does_not_hold_is_refused(
    tmp_path: Path, options: dict[str, Any], tags: dict[str, int], why: str
) -> None:
    path = tmp_path / "1.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), metadata=None, **options)
    read_picture(path)
    assert reason(retag(path, **tags)).startswith(why)


def test_many_channels_count_as_more_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.zeros((20, 30, 8), np.uint8))
    assert read_picture(tmp_path / "1.npy", max_pixels=1200).shape == (20, 30, 8)
    with pytest.raises(PictureError, match=r"30x20 pixels of 8 channels are more than"):
        read_picture(tmp_path / "1.npy", max_pixels=1199)


def test_an_error_without_words_is_named_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise EOFError

    path = saved(tmp_path / "1.png", COLOUR)
    monkeypatch.setattr(formats, "opened_image", fail)
    assert reason(path) == "it cannot be decoded (EOFError)"
    (tmp_path / "1.npy").write_bytes(b"\x93NUMPY\1\0\xe8\3" + b"x\n" * 500)
    assert len(reason(tmp_path / "1.npy")) < 200


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"GIF89a, or so", "not a PNG, JPEG, WebP, TIFF, BMP or NumPy picture, or cut short"),
        (b"\x89PNG\r\n\x1a\n", "not a PNG, JPEG, WebP, TIFF, BMP or NumPy picture, or cut short"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(content)
    assert reason(path) == expected


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on the damage
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_or_damaged_anywhere_is_named_or_read(tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, kind)
    path = tmp_path / "1.png"
    for end in range(1, whole.tell() - 60, 37):
        path.write_bytes(whole.getvalue()[:end])
        with pytest.raises(PictureError, match=r"1\.png: "):
            read_picture(path)
    damage = np.random.default_rng(1)
    for _ in range(100):
        content = bytearray(whole.getvalue())
        content[damage.integers(200) : damage.integers(200)] = damage.bytes(20)
        path.write_bytes(content)
        try:
            assert read_picture(path).dtype.name in OWN_RANGES
        except PictureError as error:
            assert error.reasons[path]


def test_other_formats_are_not_read_under_a_known_suffix(tmp_path: Path) -> None:
    path = saved(tmp_path / "1.png", GREY, format="GIF")
    assert reason(path) == "not a PNG, JPEG, WebP, TIFF, BMP or NumPy picture, or cut short"


def test_links_and_pipes_are_named(tmp_path: Path) -> None:
    broken, round_, pipe = tmp_path / "1.png", tmp_path / "2.png", tmp_path / "3.png"
    broken.symlink_to(tmp_path / "gone")
    round_.symlink_to(round_)
    assert reason(broken) == "a broken link"
    assert "symbolic links" in reason(round_)
    assert reason(tmp_path / "gone.png") == "it does not exist any more"
    if sys.platform != "win32":
        os.mkfifo(pipe)
        assert reason(pipe) == "not a plain file"


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "1.png", GREY)
    monkeypatch.setattr(formats, "opened_image", refuse)
    assert reason(path) == "permission denied"


# The list


def test_the_list_gives_each_advice_once() -> None:
    errors = [PictureError({Path(f"{n}.tif"): "bad"}, "Save it otherwise") for n in range(3)]
    message = str(BadPictures(errors, 9))
    assert message.startswith("3 of 9 pairs cannot be used:\n  0.tif: bad\n  1.tif: bad\n")
    assert message.count("Save it otherwise") == 1
    assert 'on_bad_picture to "skip"' in message
    assert "skip" not in str(BadPictures(errors, 3))  # nothing would be left
    assert "skip" not in str(BadPictures(errors, 9, can_skip=False))


def test_a_name_that_is_not_valid_unicode_can_be_printed() -> None:
    message = str(BadPictures([PictureError({Path("\udcff.png"): "bad"})], 1))
    assert r"\udcff.png: bad" in message.encode().decode()
