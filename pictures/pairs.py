"""Turn a pair on disk into one channel-stacked array, the input's channels before the target's."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pictures.decode import Header, PictureError, read_header, read_picture
from pictures.layouts import Pair

MIN_SIDE = 16  # pixels; a smaller half is a thumbnail or a mistake
MAX_ASPECT = 16  # a longer strip is a mistake, and with keep_aspect would fill the disk
SQUARE = 0.05  # how far from square the halves of a side-by-side picture may be
EDGE = 1 << 16  # bytes at either end of a file that tell it from others
ALIKE = 0.02  # how far apart the aspect ratios of two files of a pair may be

_ADVICE = (
    "A side-by-side picture is expected twice as wide as high. Set square_halves to False if its "
    "halves are equal but not square, and input_dir and target_dir if inputs and targets are files "
    "of their own"
)
# What happens to a pair after it was stacked, or does not change it.
_LATER = ("load_size", "crop_size", "augment", "flip", "seed")
_LATER += ("on_bad_picture", "cache_dir", "cache_limit_gb")


@dataclass(frozen=True)
class Recipe:
    """How pairs become samples: each field but the last as the setting of that name says."""

    load_size: int
    crop_size: int
    flip: bool
    seed: int
    direction: str
    input_nc: int
    output_nc: int
    keep_aspect: bool
    nearest: str
    square_halves: bool
    on_bad_picture: str
    cache_dir: str
    cache_limit_gb: float
    augment: bool
    """True to train on the pairs, False to validate on them."""

    @property
    def size(self) -> int:
        """Pixels that both sides, or with keep_aspect the shorter one, are resized to."""
        return self.load_size if self.augment else self.crop_size

    @property
    def of_the_arrays(self) -> dict[str, Any]:
        """The settings that the arrays of ``read_pair`` follow from."""
        decisive = {name: value for name, value in asdict(self).items() if name not in _LATER}
        return decisive | {"size": self.size}


def check_pair(pair: Pair, recipe: Recipe) -> Header:
    """Check a pair by the headers of its files.

    Returns:
        Size of the input, before resizing, and whether any of the pair has 16 bits a channel.

    Raises:
        PictureError: If the pair cannot be used, with the reason for each of its files.
    """
    headers, reasons = [], {}
    for file in pair.files:
        try:
            headers.append(read_header(file))
        except PictureError as error:
            reasons |= error.reasons
            advice = error.advice
    if reasons:
        raise PictureError(reasons, advice)
    half = _half(pair, headers[0], recipe) if pair.b is None else headers[0]
    for file, header in zip(pair.files, [half, *headers[1:]], strict=True):
        _check_size(file, header)
    if pair.b and abs(_aspect(headers[0]) / _aspect(headers[1]) - 1) > ALIKE:
        sizes = " and ".join(f"{h.width}x{h.height}" for h in headers)
        raise PictureError(
            {pair.a: f"it and {pair.b} are {sizes}: of different shapes, not of the same scene"}
        )
    size = headers[1] if pair.b and recipe.direction == "BtoA" else half
    return Header(size.height, size.width, any(h.deep for h in headers))


def shape_of(header: Header, recipe: Recipe) -> tuple[int, int, int]:
    """Return the shape (height, width, channels) of the array that ``read_pair`` makes."""
    channels = recipe.input_nc + recipe.output_nc
    if not recipe.keep_aspect:
        return recipe.size, recipe.size, channels
    scale = recipe.size / min(header.height, header.width)
    return round(header.height * scale), round(header.width * scale), channels


def read_pair(pair: Pair, recipe: Recipe, dtype: np.dtype) -> np.ndarray:
    """Decode a pair, resize both halves and stack them, the input first.

    Returns:
        Array (height, width, input_nc + output_nc) of shape ``shape_of`` and of ``dtype``,
        uint8 (0 to 255) or uint16 (0 to 65535).

    Raises:
        PictureError: If a file cannot be decoded.
    """
    halves = [read_picture(pair.a)]
    if pair.b:
        halves.append(read_picture(pair.b))
    else:
        middle = halves[0].shape[1] // 2
        halves = [halves[0][:, :middle], halves[0][:, middle:]]
    if any(half.dtype.itemsize > dtype.itemsize for half in halves):
        raise PictureError({pair.a: "it has changed since it was checked"})
    if recipe.direction == "BtoA":
        halves.reverse()
    height, width = halves[0].shape[:2]
    shape = shape_of(Header(height, width, deep=False), recipe)
    channels = (recipe.input_nc, recipe.output_nc)
    ready = [
        resize(to_channels(half, nc), shape, recipe.nearest in (role, "both"))
        for half, nc, role in zip(halves, channels, ("input", "target"), strict=True)
    ]
    return np.concatenate([_to_depth(half, dtype) for half in ready], axis=2)


def content_of(pair: Pair) -> str:
    """Return a short hash of a pair's files, by their sizes, beginnings and ends."""
    digest = hashlib.blake2b(digest_size=8)
    for path in pair.files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "little"))
            for start in (0, max(EDGE, size - EDGE)):
                file.seek(start)
                digest.update(file.read(EDGE))
    return digest.hexdigest()


def _half(pair: Pair, whole: Header, recipe: Recipe) -> Header:
    """Return the size of a half of a side-by-side picture, if it looks like one."""
    looks = f"its size of {whole.width}x{whole.height}"
    if whole.width % 2:
        reason = f"{looks} has an odd width, so it has no two equal halves{_looks_like(whole)}"
        raise PictureError({pair.a: reason}, _ADVICE)
    half = Header(whole.height, whole.width // 2, whole.deep)
    if recipe.square_halves and abs(_aspect(half) - 1) > SQUARE:
        raise PictureError(
            {pair.a: f"{looks} is not that of two squares side by side{_looks_like(whole)}"},
            _ADVICE,
        )
    return half


def _looks_like(whole: Header) -> str:
    aspect = _aspect(whole)
    if 0.5 < aspect < 1.9:
        return ", but looks like a single picture"
    if abs(aspect - round(aspect)) < SQUARE * aspect and 3 <= aspect < MAX_ASPECT:
        return f", but looks like {round(aspect)} squares in a row"
    return ""


def _check_size(file: Path, half: Header) -> None:
    size = f"the picture to learn from is {half.width}x{half.height}"
    if min(half.height, half.width) < MIN_SIDE:
        raise PictureError({file: f"{size}, smaller than {MIN_SIDE}x{MIN_SIDE}"})
    if not 1 / MAX_ASPECT <= _aspect(half) <= MAX_ASPECT:
        raise PictureError({file: f"{size}, more than {MAX_ASPECT} times as long as broad"})


def _aspect(header: Header) -> float:
    return header.width / header.height


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert grey to colour or back; (height, width, 1 or 3) of any type of integers."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    # ITU-R 601 luma in the 16-bit fixed point of Pillow's convert("L").
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(pixels.dtype)[..., None]


def _to_depth(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if pixels.dtype == dtype:
        return pixels
    return pixels.astype(np.uint16) * np.uint16(257)  # 255 becomes 65535


def resize(pixels: np.ndarray, shape: tuple[int, ...], nearest: bool) -> np.ndarray:
    """Resize (height, width, channels) to the height and width that ``shape`` begins with."""
    height, width = shape[:2]
    is_smaller = height < pixels.shape[0] or width < pixels.shape[1]
    # Area averages all that one pixel comes to stand for; cubic keeps edges when enlarging.
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    method = cv2.INTER_NEAREST_EXACT if nearest else method
    # OpenCV drops the dimension of a single channel.
    return cv2.resize(pixels, (width, height), interpolation=method).reshape(height, width, -1)
