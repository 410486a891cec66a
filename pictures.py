"""Decode picture files into arrays, and pairs of them into one channel-stacked array."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# albumentations asks a server for newer versions when imported, unless this is set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from PIL import ExifTags, Image

from layouts import Pair

MIN_SIDE = 16  # pixels; a smaller half is a thumbnail or a mistake
MAX_LISTED = 20  # bad pictures named in a message


class PictureError(ValueError):
    """Why one picture or pair cannot be used; the message does not repeat its path."""


class BadPictures(ValueError):  # noqa: N818 - the pictures, as listed, are the error
    """Pictures that cannot be used; the message lists them and says what to do."""

    @classmethod
    def of(cls, bad: dict[Pair, str], n_pairs: int) -> "BadPictures":
        """Build the message from the reason for each bad pair among ``n_pairs``."""
        lines = [f"  {pair.a}: {reason}" for pair, reason in bad.items()]
        if len(lines) > MAX_LISTED:
            lines[MAX_LISTED:] = [f"  and {len(lines) - MAX_LISTED} more"]
        return cls(
            f"{len(bad)} of {n_pairs} pictures cannot be used:\n" + "\n".join(lines) + "\n"
            "Expected undamaged pictures with two halves side by side. Repair or remove the ones "
            "listed, then start again"
        )


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say.

    Attributes:
        height: Pixels from top to bottom, after EXIF rotation.
        width: Pixels from left to right, after EXIF rotation.
        deep: Whether the picture has 16 bits a channel.
    """

    height: int
    width: int
    deep: bool


@dataclass(frozen=True)
class Recipe:
    """How a pair on disk becomes one array; every field changes its values.

    Attributes:
        size: Height and width that both halves are resized to.
        direction: "AtoB" or "BtoA".
        input_nc: Channels of the input, 1 or 3; grey and colour are converted.
        output_nc: Channels of the target, 1 or 3.
    """

    size: int
    direction: str = "AtoB"
    input_nc: int = 3
    output_nc: int = 3

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: If a field has a value that is not allowed.
        """
        if self.direction not in ("AtoB", "BtoA"):
            raise ValueError(f'direction must be "AtoB" or "BtoA", not {self.direction!r}')
        for field in ("input_nc", "output_nc"):
            if getattr(self, field) not in (1, 3):
                raise ValueError(
                    f"{field} must be 1 (grey) or 3 (colour) to read picture files, not "
                    f"{getattr(self, field)}"
                )


def read_header(pair: Pair) -> Header:
    """Read size and depth of one half of a pair without decoding it.

    Raises:
        PictureError: If the file cannot be opened, or cannot be cut into two usable halves.
    """
    with _explained(pair.a), Image.open(pair.a) as image:
        width, height = image.size
        if _orientation(image) >= 5:  # 5 to 8 turn by a quarter
            width, height = height, width
        deep = image.mode.startswith("I;16")
    if width % 2:
        raise PictureError(f"its width of {width} is odd, so it has no two equal halves")
    if min(width // 2, height) < MIN_SIDE:
        raise PictureError(
            f"its halves are {width // 2}x{height}, smaller than {MIN_SIDE}x{MIN_SIDE}"
        )
    return Header(height, width // 2, deep)


def shape_of(recipe: Recipe) -> tuple[int, int, int]:
    """Return the shape (height, width, channels) of the array that ``read_pair`` makes."""
    return recipe.size, recipe.size, recipe.input_nc + recipe.output_nc


def read_pair(pair: Pair, recipe: Recipe, dtype: np.dtype) -> np.ndarray:
    """Decode a pair, resize both halves and stack them, the input first.

    Returns:
        Array of shape ``shape_of(recipe)`` and of ``dtype``, uint8 (0 to 255)
        or uint16 (0 to 65535).

    Raises:
        PictureError: If a file cannot be decoded.
    """
    whole = read_picture(pair.a)
    middle = whole.shape[1] // 2
    halves = [whole[:, :middle], whole[:, middle:]]
    if recipe.direction == "BtoA":
        halves.reverse()
    channels = (recipe.input_nc, recipe.output_nc)
    ready = [
        _resize(_to_channels(h, nc), recipe.size) for h, nc in zip(halves, channels, strict=True)
    ]
    return np.concatenate([_to_depth(half, dtype) for half in ready], axis=2)


def read_picture(path: Path) -> np.ndarray:
    """Decode one picture file, turned upright, transparent parts over white.

    Returns:
        Array (height, width, 1 or 3), uint8 (0 to 255) or, for 16-bit grey, uint16 (0 to 65535).

    Raises:
        PictureError: If it cannot be decoded.
    """
    with _explained(path), Image.open(path) as image:
        orientation = _orientation(image)
        pixels = np.asarray(_plain(image))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return _upright(pixels, orientation)


def _plain(image: Image.Image) -> Image.Image:
    """Convert any mode to L, RGB or I;16 without loss of what is seen."""
    if image.mode.startswith("I;16") or image.mode in ("L", "RGB"):
        return image
    if image.has_transparency_data:
        above = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        seen = Image.alpha_composite(white, above)
        return seen.convert("L" if image.mode == "LA" else "RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking further would decode the whole picture
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
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


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    # Area averages what one pixel comes to stand for; cubic keeps edges when enlarging.
    resize = A.Resize(size, size, interpolation=cv2.INTER_CUBIC, area_for_downscale="image")
    return resize(image=pixels)["image"]


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one PictureError."""
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise PictureError(_reason(path, error)) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a broken link" if path.is_symlink() else "it does not exist any more"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if path.stat().st_size == 0:
        return "an empty file (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that Pillow can read"
    return f"damaged ({error or type(error).__name__})"
