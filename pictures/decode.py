"""Decode one picture file, of whatever format, into an array; say what is wrong if it fails."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from pictures.folders import listed
from pictures.formats import FILL_IN, Raw, UnusableError, opened_raw, raw_array, raw_image
from pictures.palettes import painted
from pictures.sides import OWN_RANGES, Kind

MAX_PIXELS = 178_956_970  # as Pillow allows, against files that are made to fill the memory


class PictureError(ValueError):
    """Why a picture, or the pictures of one pair, cannot be used.

    Args:
        reasons: What is wrong with each file.
        advice: What to do, where repairing or removing the files is not all.
    """

    def __init__(self, reasons: dict[Path, str], advice: str = "") -> None:
        super().__init__(reasons, advice)
        self.reasons, self.advice = reasons, advice

    def lines(self) -> list[str]:
        """Return each file with what is wrong with it."""
        return [f"{_printable(path)}: {why}" for path, why in self.reasons.items()]

    def __str__(self) -> str:
        return listed(self.lines())


class BadPictures(ValueError):  # noqa: N818 - the pictures, as listed, are the error
    """Pairs that cannot be used; the message lists their files and says what to do.

    Args:
        errors: What is wrong, one for each pair.
        n_pairs: Pairs among which they were found.
        can_skip: Whether to go on without them is worth a word, if others are left.
    """

    def __init__(self, errors: Sequence[PictureError], n_pairs: int, can_skip: bool = True) -> None:
        super().__init__(errors, n_pairs, can_skip)
        self.errors, self.n_pairs = list(errors), n_pairs
        self.can_skip = can_skip and len(errors) < n_pairs

    def __str__(self) -> str:
        advice = dict.fromkeys(error.advice for error in self.errors if error.advice)
        skip = ', or set on_bad_picture to "skip" to go on without them'
        return "\n".join(
            [
                f"{len(self.errors)} of {self.n_pairs} pairs cannot be used:",
                self.files(),
                *advice,
                "Repair or remove the files listed" + skip * self.can_skip,
            ]
        )

    def files(self) -> str:
        """List the files and what is wrong with them, one a line, the first ones of many."""
        return listed([line for error in self.errors for line in error.lines()])


class Reading(NamedTuple):
    """How files are read."""

    alpha: str = "white"
    """What becomes of opacity: white draws the picture over white, keep makes it a channel."""
    labels: bool = False
    """Whether they are label pictures, whose numbers and palettes stand for classes."""
    ignore: int | None = None
    """The number of pixels in label pictures that belong to no class."""
    max_pixels: int | None = None
    """Pixels of the largest picture; None: MAX_PIXELS."""


PLAIN = Reading()


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say: its size once upright, and what its numbers are."""

    height: int
    width: int
    kind: Kind


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright."""

    pixels: np.ndarray
    """(H, W, channels), uint8, uint16, int16 or float32; classes without colours are painted."""
    alpha: np.ndarray | None = None
    """Its opacity, (H, W, 1) of the type of ``pixels``, where it has been drawn over white."""
    index: str = ""
    """As ``Kind.index``."""
    tags: dict[int, tuple] = field(default_factory=dict)
    """Where on Earth it lies: TIFF tags as tifffile writes them."""

    @property
    def kind(self) -> Kind:
        """What its numbers are."""
        return Kind(self.pixels.shape[2], self.pixels.dtype.name, self.index)

    @property
    def is_transparent(self) -> bool:
        """Whether any of it was, and has been drawn over white."""
        return self.alpha is not None and bool((self.alpha < np.iinfo(self.alpha.dtype).max).any())


def read_header(path: Path, reading: Reading = PLAIN) -> Header:
    """Read size and kind of a picture without decoding it.

    Raises:
        PictureError: If the file cannot be opened or is of a kind that is not read.
    """
    with _opened(path, reading) as raw:
        return _header_of(raw, reading)


def read_picture(path: Path, reading: Reading = PLAIN) -> Picture:
    """Decode one picture, turned upright by its EXIF orientation.

    Palette, CMYK and 1-bit pictures become what they look like, and colours those of sRGB.

    Raises:
        PictureError: If it cannot be decoded.
    """
    with _opened(path, reading) as raw:
        header, picture = _header_of(raw, reading), _picture_of(raw, reading)
        if picture.pixels.shape[:2] != (header.height, header.width):
            raise PictureError({path: "its EXIF rotation stands after its pixels; save it upright"})
        return picture


def decode(
    picture: Image.Image | np.ndarray, name: str = "the picture", reading: Reading = PLAIN
) -> Picture:
    """Return what ``read_picture`` would of a file, for a picture that is open already.

    Args:
        picture: From Pillow, or an array (H, W), (H, W, channels) or (channels, H, W).
        name: What an error calls it.
        reading: How to read it.

    Raises:
        PictureError: It is of a kind that has no agreed meaning here.
    """
    raw_of = raw_array if isinstance(picture, np.ndarray) else raw_image
    try:
        return _picture_of(raw_of(picture, reading.labels), reading)
    except UnusableError as error:
        raise PictureError({Path(name): error.reason}, error.advice) from error


@contextlib.contextmanager
def _opened(path: Path, reading: Reading) -> Iterator[Raw]:
    """Open a picture; whatever goes wrong with it, in here or in the block, is a PictureError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PictureError({path: "not a plain file"})  # a pipe would be waited for
        with opened_raw(path, reading.labels) as raw:
            _check_size(raw, reading.max_pixels or MAX_PIXELS)
            yield raw
    except PictureError:
        raise
    except UnusableError as error:
        raise PictureError({path: error.reason}, error.advice) from error
    except Exception as error:  # damaged files make the libraries raise nearly anything
        raise PictureError({path: _reason(path, error)}) from error


def _check_size(raw: Raw, max_pixels: int) -> None:
    pixels = raw.height * raw.width * max(1, raw.channels / 4)  # more channels take more memory
    if pixels > max_pixels:
        channels = f" of {raw.channels} channels" * (raw.channels > 4)
        raise UnusableError(
            f"its {raw.width}x{raw.height} pixels{channels} are more than {max_pixels / 1e6:.4g} "
            "million; shrink it, or raise max_pixels if it is meant"
        )


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a broken link" if os.path.islink(str(path)) else "it does not exist any more"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if path.stat().st_size == 0:
        return "an empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG, WebP, TIFF, BMP or NumPy picture, or cut short"
    said = shorten(str(error), width=150) or type(error).__name__  # some quote the whole file
    return f"it cannot be decoded ({said})"


def _header_of(raw: Raw, reading: Reading) -> Header:
    height, width = raw.height, raw.width
    if raw.orientation() in range(5, 9):  # these turn by a quarter
        height, width = width, height
    if raw.index:
        return Header(height, width, Kind(index=raw.index))
    drawn = _is_drawn(raw, reading)
    return Header(height, width, Kind(raw.channels - drawn, raw.dtype.name))


def _is_drawn(raw: Raw, reading: Reading) -> bool:
    """Whether a picture's opacity is used up by drawing it over white."""
    return bool(raw.opacity) and reading.alpha == "white" and OWN_RANGES[raw.dtype.name] is not None


def _picture_of(raw: Raw, reading: Reading) -> Picture:
    pixels, alpha = raw.load(), None
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UnusableError(
            f"{(~np.isfinite(pixels)).mean():.1%} of it is NaN or infinite", FILL_IN
        )
    pixels = _upright(pixels, raw.orientation())
    if raw.index:
        return Picture(_painted(pixels, reading.ignore), index=raw.index, tags=raw.tags)
    if _is_drawn(raw, reading):
        pixels, alpha = _over_white(pixels, raw.opacity == "scaled")
    return Picture(pixels, alpha, tags=raw.tags)


def _painted(numbers: np.ndarray, ignore: int | None) -> np.ndarray:
    classes = numbers if ignore is None else numbers[numbers != ignore]
    low, high = (classes.min(), classes.max()) if classes.size else (0, 0)
    if low < 0 or high > 255 or (classes % 1).any():
        raise UnusableError(
            f"its numbers go from {low:g} to {high:g}; classes are whole numbers from 0 to 255, or "
            "the one that ignore names"
        )
    return painted(numbers[..., 0], ignore)


def _over_white(pixels: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture, whose last channel is opacity, over white; return that channel as well."""
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    white = np.iinfo(pixels.dtype).max
    if (alpha == white).all():
        return np.ascontiguousarray(colours), alpha
    share = alpha / white
    drawn = (colours if scaled else colours * share) + white * (1 - share)
    return drawn.round().clip(0, white).astype(pixels.dtype), alpha


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, channels) as EXIF says; 5 to 8 lie on their side."""
    if orientation in range(5, 9):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _printable(path: Path) -> str:
    # A name that is not valid Unicode could not be printed as it is.
    return str(path).encode(errors="backslashreplace").decode()
