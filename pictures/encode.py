"""Write arrays as picture files, as deep and with as many channels as they have."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from pictures.decode import Picture
from pictures.palettes import PAINT
from pictures.sides import DEEPER, SCALABLE

INTEGERS = {"uint8", "uint16"}
ANY = range(1, 1 << 16)
# What the suffixes stand for, and which types and numbers of channels, opacity included, they hold.
HOLDS: dict[str, tuple[str, set[str], range]] = {
    ".png": ("PNG", INTEGERS, range(1, 5)),
    ".tif": ("TIFF", {*INTEGERS, "int16", "float32"}, ANY),
    ".tiff": ("TIFF", {*INTEGERS, "int16", "float32"}, ANY),
    ".npy": ("NPY", {*INTEGERS, "int16", "float32"}, ANY),
    ".jpg": ("JPEG", INTEGERS, range(1, 4, 2)),
    ".jpeg": ("JPEG", INTEGERS, range(1, 4, 2)),
}


def can_hold(suffix: str, dtype: str, channels: int) -> bool:
    """Whether files of a suffix hold numbers of that type, and so many a pixel."""
    _, dtypes, counts = HOLDS[suffix.lower()]
    return dtype in dtypes and channels in counts


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return pixels, (height, width, 1 to 4) uint8 or (height, width, 1) uint16, as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def as_opened(picture: Picture) -> Image.Image | np.ndarray:
    """Return a picture as Pillow has it, or where Pillow knows no such thing as an array."""
    pixels = _with_alpha(picture)
    if picture.index == "P":
        image = Image.fromarray(pixels[..., 0]).convert("P")
        image.putpalette(PAINT.tobytes())
        return image
    deepest = {1: INTEGERS}.get(pixels.shape[2], {"uint8"})
    small = pixels.dtype.name in deepest and pixels.shape[2] <= 4
    return image_of(pixels) if small else pixels


def write(path: Path, picture: Picture, form: str) -> None:
    """Write a picture in a format of HOLDS that can hold it.

    Raises:
        OSError: The file cannot be written.
    """
    writers: dict[str, Callable[[Path, Picture], None]] = {
        "PNG": _write_png,
        "TIFF": _write_tiff,
        "NPY": _write_npy,
        "JPEG": _write_jpeg,
    }
    writers[form](path, picture)


def _with_alpha(picture: Picture) -> np.ndarray:
    parts = [picture.pixels] + ([] if picture.alpha is None else [picture.alpha])
    return np.concatenate(parts, axis=2)


def _write_png(path: Path, picture: Picture) -> None:
    image = as_opened(picture)
    if isinstance(image, Image.Image):
        return image.save(path, format="PNG")
    path.write_bytes(imagecodecs.png_encode(image))  # colours of 16 bits, unknown to Pillow


def _write_tiff(path: Path, picture: Picture) -> None:
    pixels = _with_alpha(picture)
    is_colour = picture.pixels.shape[2] == 3 and pixels.dtype.name in SCALABLE
    form = {"photometric": "rgb" if is_colour else "minisblack", "planarconfig": "contig"}
    if picture.index == "P":
        form = {"photometric": "palette", "colormap": PAINT.T.astype(np.uint16) * DEEPER}
    extra = [] if picture.alpha is None else ["unassalpha"]
    many = pixels.shape[2] - len(extra) - (3 if is_colour else 1)
    if many or extra:
        form["extrasamples"] = ["unspecified"] * many + extra
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if pixels.ndim == 2:
        form.pop("planarconfig", None)
    tags = list(picture.tags.values())
    with path.open("wb") as file:
        tifffile.imwrite(file, pixels, compression="zlib", metadata=None, extratags=tags, **form)


def _write_npy(path: Path, picture: Picture) -> None:
    pixels = _with_alpha(picture)
    with path.open("wb") as file:
        np.save(file, pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _write_jpeg(path: Path, picture: Picture) -> None:
    pixels = picture.pixels  # it knows no transparency, and 8 bits alone
    pixels = (pixels // DEEPER).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    image_of(pixels).save(path, format="JPEG", quality=95)
