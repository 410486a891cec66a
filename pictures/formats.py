"""Files of any format as raw arrays: what the file holds, before anything is made of it."""

import contextlib
import io
import logging
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from pictures.tars import Member

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # those of Pillow
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Of a GeoTIFF: pixel scale, tie points, transformation, and the keys that name the projection.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
NO_DATA_TAG = 42113  # where GDAL says which number stands for "not measured"
WITH_ALPHA = (2, 4)  # channels: grey or colour, and opacity
FILL_IN = "Pictures with missing numbers: fill these in, or leave the pictures out"
READ_AS = {"bool": "uint8", "uint8": "uint8", "uint16": "uint16", "int8": "int16", "int16": "int16"}
LARGE_TILE = 1 << 24  # pixels; a larger tile than that is not due to a small picture's padding
REDUCED_OR_MASK = 1 | 4  # what a page of a TIFF may be beside the picture
# Colours that a TIFF may have in place of RGB, as Pillow calls them.
COLOURS = {"SEPARATED": "CMYK", "YCBCR": "YCbCr", "CIELAB": "LAB"}
AS_JPEG = (6, 7)  # compressions that come as RGB


class UnusableError(ValueError):
    """Why a picture cannot be used: the reason, and what to do beyond repairing it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class Raw:
    """An opened picture: what is known of it, and ``load`` for its pixels as they are stored."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    """Returns (height, width, channels) of ``dtype``."""
    opacity: str = ""
    """Whether the last channel is opacity, and how the others stand to it: straight or scaled."""
    index: str = ""
    """P or L, where the numbers are to be taken for those of classes."""
    orientation: Callable[[], int] = lambda: 1
    """By EXIF, 1 to 8; some files tell only after their pixels."""
    tags: dict[int, tuple] = field(default_factory=dict)
    """Where on Earth it lies: TIFF tags as tifffile writes them."""


@contextlib.contextmanager
def opened_raw(path: Path | Member, labels: bool = False) -> Iterator[Raw]:
    """Open a file of any format, known by its first bytes.

    Args:
        path: The file.
        labels: Whether numbers without colours, and those behind a palette, are classes.

    Raises:
        UnusableError: It is of a kind that has no agreed meaning here.
        Exception: Damaged files make the libraries raise nearly anything.
    """
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start == b"\x93NUMPY":
            is_mapped = isinstance(path, Path)  # so that a header is read without the rest
            array = np.load(path if is_mapped else file, mmap_mode="r" if is_mapped else None)
            yield raw_array(array, labels)
        elif start[:4] in TIFF_STARTS:
            logging.getLogger("tifffile").setLevel(logging.ERROR)  # it remarks on unknown tags
            with tifffile.TiffFile(file) as tiff:
                yield raw_tiff(tiff, labels)
        else:
            with opened_image(file) as image:
                yield raw_image(image, labels)


# --- Pillow: PNG, JPEG, WebP, BMP ---
def opened_image(file: BinaryIO) -> Image.Image:
    """Open a file as Image.open does, but for its limit of pixels, which is one for all threads.

    Raises:
        UnidentifiedImageError: It is of none of FORMATS, or its first bytes are damaged.
    """
    Image.init()
    start = file.read(16)
    file.seek(0)
    for factory, accepts in (Image.OPEN[name] for name in FORMATS):
        if accepts(start) is True:
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                raise UnidentifiedImageError(str(error)) from error
            except Image.DecompressionBombError as error:  # WebP alone still asks for that limit
                raise UnusableError(
                    "more pixels than Pillow reads of WebP; save it as PNG"
                ) from error
    raise UnidentifiedImageError("its first bytes are of no known format")


def raw_image(image: Image.Image, labels: bool = False) -> Raw:
    """Return a picture that Pillow has opened."""
    # What many phones write as .jpg is an MPO: the photo first, then a preview or a depth map.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnusableError(f"an animation or a stack of {image.n_frames} pictures")
    grey = image.mode in ("1", "L", "LA", "La")
    dtype, index = np.dtype(np.uint8), ""
    if bands := _deep_bands(image):
        dtype, load = np.dtype(np.uint16), partial(_deep_colour, image)
    elif image.mode in ("F", "I") or _is_deep_grey(image):
        dtype = np.dtype(np.uint16 if _is_deep_grey(image) else np.float32)
        bands, index, load = "L", "L" * labels, partial(_loaded, image, dtype)
    elif labels and image.mode == "P":
        bands, index, load = "L", "P", partial(_loaded, image, dtype)
    elif labels and grey and image.format != "JPEG":  # whose noise would be numbers
        bands, index, load = "L", "L", partial(_loaded, image, dtype, "L")
    else:
        bands = ("L" if grey and not labels else "RGB") + "A" * image.has_transparency_data
        load = partial(_loaded, image, dtype, bands, to_srgb=not labels)
    return Raw(
        image.height,
        image.width,
        len(bands),
        dtype,
        load,
        opacity="straight" if bands.endswith("A") else "",
        index=index,
        orientation=partial(_exif_orientation, image),
    )


def _is_deep_grey(image: Image.Image) -> bool:
    # Before Pillow 11 a 16-bit PNG has the mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _deep_bands(image: Image.Image) -> str:
    """Return the bands of a PNG with 16 bits in several, of which Pillow would keep the upper 8."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None  # none once loaded
    stored = str(tiles[0][3]) if tiles else ""
    bands = {"LA;16B": "LA", "RGB;16B": "RGB", "RGBA;16B": "RGBA"}.get(stored, "")
    return bands + "A" * (bands == "RGB" and "transparency" in image.info)


def _deep_colour(image: Image.Image) -> np.ndarray:
    image.fp.seek(0)
    return imagecodecs.png_decode(image.fp.read())


def _loaded(
    image: Image.Image, dtype: np.dtype, mode: str = "", *, to_srgb: bool = False
) -> np.ndarray:
    image.load()
    if mode:
        image = _in_srgb(image, mode) if to_srgb else image.convert(mode)
    # A 16-bit picture may have its bytes in either order.
    return np.asarray(image).astype(dtype, copy=False).reshape(image.height, image.width, -1)


def _in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """Convert to a mode of Pillow, and colours from the profile that a picture brings with it."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode != "CMYK":  # a profile leaves no palette nor transparent colour
        image = image.convert(mode)
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged one says nothing
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(own):
                alpha = image.getchannel("A") if image.mode == "RGBA" else None
                colours = image.convert("RGB") if alpha else image
                srgb = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(colours, own, srgb, outputMode="RGB")
                if alpha:
                    image.putalpha(alpha)
    return image.convert(mode)


def _exif_orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking further would decode the whole picture
    value = 1
    with contextlib.suppress(Exception):  # damaged EXIF data do not spoil the picture
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value


# --- NumPy ---
def raw_array(array: np.ndarray, labels: bool = False, axis: int | None = None) -> Raw:
    """Return an array (H, W), (H, W, channels) or (channels, H, W); ``axis``: of the channels."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        shape = "x".join(map(str, array.shape))
        raise UnusableError(f"an array of {shape}; expected (height, width), or channels as well")
    if array.dtype.kind not in "buif":
        raise UnusableError(f"its numbers are {array.dtype}; expected whole or fractional ones")
    dtype = np.dtype(READ_AS.get(array.dtype.name, "float32"))
    pixels = _channels_last(array, axis)
    load = partial(_kept, pixels, dtype)
    return Raw(*pixels.shape, dtype, load, index="L" * (labels and pixels.shape[2] == 1))


def _channels_last(array: np.ndarray, axis: int | None) -> np.ndarray:
    """Return an array as (H, W, channels)."""
    if array.ndim == 2:
        return array[..., None]
    return np.moveaxis(array, _channel_axis(array) if axis is None else axis, -1)


def _channel_axis(array: np.ndarray) -> int:
    """Return the axis of the channels: that without which the picture is nearest to a square."""
    if array.shape[0] == array.shape[2]:
        shape = "x".join(map(str, array.shape))
        raise UnusableError(f"an array of {shape}, whose channels may be first or last; use TIFF")
    height_width = {0: array.shape[1:], 2: array.shape[:2]}
    return min((0, 2), key=lambda axis: max(height_width[axis]) / min(height_width[axis]))


def _kept(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    pixels = pixels * np.uint8(255) if pixels.dtype == bool else pixels
    return np.ascontiguousarray(pixels, dtype)


# --- TIFF ---
def raw_tiff(tiff: tifffile.TiffFile, labels: bool = False) -> Raw:
    """Return the full-resolution picture of a TIFF, whatever its layout."""
    page, source = _full_resolution(tiff)
    photometric = getattr(page.photometric, "name", "")
    shape = tuple(n for n in source.shape if n > 1 or len(source.shape) <= 3)
    # Pages of arrays that were saved as they are may be rows as well as channels.
    axis = {"YXS": 2, "SYX": 0}.get(source.axes)
    raw = raw_array(np.broadcast_to(np.zeros((), source.dtype), shape), labels, axis)
    is_index = bool(raw.index) and photometric == "PALETTE"
    if photometric in {"PALETTE", *COLOURS} and not is_index:
        raw = replace(raw, channels=3, dtype=np.dtype(np.uint8), index="")

    def load() -> np.ndarray:
        pixels = _channels_last(source.asarray().reshape(shape), axis)
        _refuse_missing(pixels, page.tags.valueof(NO_DATA_TAG))
        return _kept(pixels if is_index else _as_seen(pixels, page, labels), raw.dtype)

    opacity = ""
    if raw.channels in WITH_ALPHA and len(page.extrasamples) == 1:
        opacity = {1: "scaled", 2: "straight"}.get(int(page.extrasamples[0]), "")
    return replace(
        raw,
        load=load,
        opacity=opacity,
        index="P" if is_index else raw.index,
        orientation=lambda: page.tags.valueof(ExifTags.Base.Orientation, 1),
        tags={
            t.code: (t.code, t.dtype, t.count, t.value, True)
            for t in page.tags
            if t.code in GEO_TAGS
        },
    )


def _full_resolution(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPage, Any]:
    """Return the page that says what the picture is, and what holds its pixels.

    Smaller copies and masks, which may stand beside it, are passed over; pages that are its
    channels belong to it.
    """
    pages = [page for page in _pages_of(tiff) if not page.subfiletype & REDUCED_OR_MASK]
    first, series = pages[0].aspage(), tiff.series[0]
    _check_pieces(first)
    # Of a stack that lies in one piece, only the first page may be listed.
    n_pages = max(len(pages), series.size // first.size // len(series.pages))
    if n_pages == 1:
        return first, first
    if len(series.pages) != len(pages) or set(series.axes) & set("ZTI") or series.ndim != 3:
        raise UnusableError(f"a stack of {n_pages} pictures")
    return first, series


def _check_pieces(page: tifffile.TiffPage) -> None:
    """Refuse a page whose strips or tiles are not there, each of which would be looked for."""
    n_pieces = math.prod(page.chunked)
    if n_pieces > len(page.dataoffsets) and not page.is_contiguous:
        raise UnusableError(f"it holds {len(page.dataoffsets)} of its {n_pieces} strips or tiles")
    if page.is_tiled and page.tilewidth * page.tilelength > max(LARGE_TILE, 4 * page.size):
        tile = f"{page.tilewidth}x{page.tilelength}"
        raise UnusableError(f"tiles of {tile} for a picture of {page.imagewidth} columns")


def _pages_of(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """Yield the pages, each of which says where in the file the next one is."""
    seen: set[int] = set()
    for page in tiff.pages:
        if page.offset in seen:
            raise UnusableError("its list of pages leads back to itself")
        seen.add(page.offset)
        yield page


def _as_seen(pixels: np.ndarray, page: tifffile.TiffPage, labels: bool) -> np.ndarray:
    """Turn stored numbers (H, W, channels) into grey or colour as they are meant.

    Those of classes are not scaled, and colours that name classes not converted.
    """
    photometric, bits = getattr(page.photometric, "name", ""), page.bitspersample
    if photometric == "PALETTE":
        # Some write it in 8 bits where 16 are due.
        colours = page.colormap >> 8 if page.colormap.max() > 255 else page.colormap
        pixels, bits = colours.astype(np.uint8).T[pixels[..., 0]], 8
    if photometric == "MINISWHITE":
        pixels = ~pixels if pixels.dtype == bool else np.array(2**bits - 1, pixels.dtype) - pixels
    if 1 < bits < 8 and not labels:
        pixels = (pixels.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    mode = {3: "RGB", 4: "RGBA"}.get(pixels.shape[2], "") if page.iccprofile else ""
    if photometric in COLOURS and not (photometric == "YCBCR" and page.compression in AS_JPEG):
        mode = COLOURS[photometric]
        if (pixels.shape[2], bits) != (Image.getmodebands(mode), 8):
            raise UnusableError(
                f"{pixels.shape[2]} channels of {bits} bits ({mode}); save it as RGB"
            )
    if not mode or pixels.dtype != np.uint8:
        return pixels
    image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    image.info["icc_profile"] = None if labels else page.iccprofile
    return np.asarray(_in_srgb(image, "RGBA" if mode == "RGBA" else "RGB"))


def _refuse_missing(pixels: np.ndarray, no_data: str | None) -> None:
    """Refuse numbers that stand for "not measured": they would spoil range and losses."""
    if pixels.dtype in (bool, np.uint8, np.uint16):  # there it is black or white, as a rule
        return
    missing = np.zeros((), bool)
    with contextlib.suppress(TypeError, ValueError), np.errstate(over="ignore"):
        number = float(no_data)  # a text that is no number names none
        missing = pixels == (pixels.dtype.type(number) if pixels.dtype.kind == "f" else number)
    if missing.any():
        raise UnusableError(f"{missing.mean():.1%} of it is not measured ({no_data})", FILL_IN)
