"""Decode one picture file, of whatever format, into an array; say what is wrong if it fails."""

import contextlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pictures.layouts import listed

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")


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


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say.

    Attributes:
        height: Pixels from top to bottom, after EXIF rotation.
        width: Pixels from left to right, after EXIF rotation.
        deep: Whether it is read as 16 bits a channel.
    """

    height: int
    width: int
    deep: bool


def read_header(path: Path) -> Header:
    """Read size and depth of a picture without decoding it.

    Raises:
        PictureError: If the file cannot be opened or is of a kind that is not read.
    """
    with opened(path) as image:
        return _header_of(image)


def read_picture(path: Path) -> np.ndarray:
    """Decode one picture, turned upright by its EXIF orientation, what is transparent over white.

    Grey, palette, CMYK and 1-bit pictures become what they look like. 16 bits are kept for grey
    alone, as Pillow reads no others; in colour the upper 8 remain.

    Returns:
        Array (height, width, 1 or 3), uint8 (0 to 255) or, for 16-bit grey, uint16 (0 to 65535).

    Raises:
        PictureError: If it cannot be decoded.
    """
    with opened(path) as image:
        header, pixels = _header_of(image), pixels_of(image)
        if pixels.shape[:2] != (header.height, header.width):
            raise PictureError({path: "its EXIF rotation stands after its pixels; save it upright"})
        return pixels


@dataclass(frozen=True)
class Decoded:
    """A picture: ``pixels`` (H, W, 1 or 3), uint8 or uint16; ``alpha`` (H, W, 1), uint8."""

    pixels: np.ndarray
    alpha: np.ndarray | None


def decode(image: Image.Image, name: str = "the picture") -> Decoded:
    """Return an opened picture as arrays, its pixels as from ``read_picture``.

    Args:
        image: The picture.
        name: What an error calls it.

    Raises:
        PictureError: It is of a kind that has no agreed meaning here.
    """
    _check_kind(Path(name), image)
    deep, upright = _is_deep(image), _upright(image)
    alpha = None
    if upright.has_transparency_data and not deep:
        alpha = np.asarray(upright.convert("RGBA").getchannel("A"))[..., None]
    return Decoded(_array(upright, deep), alpha)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an opened picture as ``read_picture`` does."""
    return _array(_upright(image), _is_deep(image))


def _array(image: Image.Image, deep: bool) -> np.ndarray:
    # A 16-bit picture may have its bytes in either order.
    pixels = np.asarray(image).astype(np.uint16) if deep else np.asarray(_plain(image))
    return pixels.reshape(*pixels.shape[:2], -1)


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return pixels, (height, width, 1 to 4) uint8 or (height, width, 1) uint16, as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture.

    Raises:
        PictureError: Whatever goes wrong with it, in here or in the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PictureError({path: "not a plain file"})  # a pipe would be waited for
        with Image.open(path, formats=FORMATS) as image:
            _check_kind(path, image)
            yield image
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise PictureError({path: _reason(path, error)}) from error


def _check_kind(path: Path, image: Image.Image) -> None:
    # What many phones write as .jpg is an MPO: the photo first, then a preview or a depth map.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise PictureError({path: f"an animation or a stack of {image.n_frames} pictures"})
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        kind = "fractional numbers" if image.mode == "F" else "32-bit numbers"
        raise PictureError(
            {path: f"its pixels are {kind}, which have no agreed black and white"},
            "Pictures of fractional or 32-bit numbers: scale them to 0 to 65535 and save them as "
            "16-bit grey PNG or TIFF",
        )
    if image.format == "TIFF" and _is_deep(image):
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,))
        white_is_zero = image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0
        if bits != (16,) or white_is_zero:
            kind = "count from white to black" if white_is_zero else f"have {bits[0]} bits"
            raise PictureError(
                {path: f"its grey values {kind}, which would be read wrong"},
                "Grey TIFF of unusual depth or order: save it as a plain 16-bit grey PNG or TIFF",
            )


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a broken link" if path.is_symlink() else "it does not exist any more"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels; shrink it"
    if path.stat().st_size == 0:
        return "an empty file (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a PNG, JPEG, WebP, TIFF or BMP picture, or cut short"
    return f"it cannot be decoded ({error or type(error).__name__})"


def _header_of(image: Image.Image) -> Header:
    width, height = image.size
    if image.format == "TIFF":  # by Pillow's version, its size is turned already or not
        width = image.tag_v2[ExifTags.Base.ImageWidth]
        height = image.tag_v2[ExifTags.Base.ImageLength]
    if _orientation(image) >= 5:  # 5 to 8 turn by a quarter
        width, height = height, width
    return Header(height, width, _is_deep(image))


def _is_deep(image: Image.Image) -> bool:
    # Before Pillow 11 a 16-bit PNG has the mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _plain(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to the L or RGB that it looks like."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), above)
    return image.convert("L" if grey else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # which turns a TIFF, and finds what a PNG tells after its pixels
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation = _orientation(image)
    if orientation == 1:
        return image
    image = image.copy()
    image.info["exif"] = exif.tobytes()  # alone: over other data that are damaged Pillow stumbles
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking further would decode the whole picture
    value = 1
    with contextlib.suppress(Exception):  # damaged EXIF data do not spoil the picture
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _printable(path: Path) -> str:
    # A name that is not valid Unicode could not be printed as it is.
    return str(path).encode(errors="backslashreplace").decode()
