"""Turn a pair on disk into one channel-stacked array, the input's channels before the target's."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pictures.decode import Header, Picture, PictureError, Reading, read_header, read_picture
from pictures.layouts import Pair
from pictures.sides import Kind, common_dtype, kind_of_all, misfit, to_kind

MIN_SIDE = 16  # pixels; a smaller half is a thumbnail or a mistake
MAX_ASPECT = 16  # a longer strip is a mistake, and with keep_aspect would fill the disk
SQUARE = 0.05  # how far from square the halves of a side-by-side picture may be
CHUNK = 1 << 20  # bytes that are read at once
ASPECTS_APART = 0.02  # how far apart the aspect ratios of two files of a pair may be

_ADVICE = (
    "A side-by-side picture is expected twice as wide as high. Set check_halves to False if its "
    "halves are equal but not square. If inputs and targets are files of their own, set a and b to "
    "their folders or to what their names end in"
)
_OF_ONE_KIND = (
    "All inputs must be of one kind, and all targets: grey and colour, or 8 and 16 bits, are "
    "turned into each other, other numbers are not. input_nc and output_nc say how many channels"
)
# What happens to a pair after it was stacked, or does not change it.
_NO_MATTER = ("load_size", "crop_size", "augment", "flip", "seed", "max_pixels")
_NO_MATTER += ("on_bad_picture", "cache_dir", "cache_limit_gb")
ROLES = ("input", "target")
Kinds = tuple[Kind, Kind]  # of inputs and targets


@dataclass(frozen=True)
class Preparation:
    """How pairs become samples: each field but the last four as the setting of that name says."""

    load_size: int
    crop_size: int
    flip: bool
    seed: int
    direction: str
    input_nc: int | None
    output_nc: int | None
    alpha: str
    keep_aspect: bool
    nearest: str
    check_halves: bool
    ignore: int | None
    max_pixels: int | None
    on_bad_picture: str
    cache_dir: str
    cache_limit_gb: float
    found_labels: str = "none"
    """The side whose pictures are labels of classes yet to be found: input, target, or both."""
    ranged: tuple[str, ...] = ()
    """The sides whose range was typed, in the numbers of their files."""
    augment: bool = False
    """True to train on the pairs, False to validate on them."""
    kinds: Kinds | None = None
    """What the pictures are to be, where those of the training have settled it."""

    @property
    def size(self) -> int:
        """Pixels that both sides, or with keep_aspect the shorter one, are resized to."""
        return self.load_size if self.augment else self.crop_size

    @property
    def of_the_arrays(self) -> dict[str, Any]:
        """The settings that the arrays of ``read_pair`` follow from."""
        decisive = {name: value for name, value in asdict(self).items() if name not in _NO_MATTER}
        return decisive | {"size": self.size}

    @property
    def roles(self) -> tuple[str, ...]:
        """What A and B are: input and target, or the other way."""
        return ROLES[::-1] if self.direction == "BtoA" else ROLES

    def reading(self, role: str) -> Reading:
        """Return how the files of a side are read."""
        labels = self.found_labels in (role, "both")
        return Reading(self.alpha, labels, self.ignore, self.max_pixels)

    def is_nearest(self, role: str) -> bool:
        """Whether pictures of a side are resized without new colours."""
        return role in (self.nearest, self.found_labels) or "both" in (
            self.nearest,
            self.found_labels,
        )


@dataclass(frozen=True)
class PairHeader:
    """What is known of a pair before it is decoded: the size of the input, the kinds of both."""

    height: int
    width: int
    kinds: Kinds


def check_pair(pair: Pair, preparation: Preparation) -> PairHeader:
    """Check a pair by the headers of its files.

    Raises:
        PictureError: If the pair cannot be used, with the reason for each of its files.
    """
    headers: dict[str, Header] = {}
    reasons, advice = {}, ""
    for role, file in zip(preparation.roles, pair.files * (3 - len(pair.files)), strict=True):
        try:
            headers[role] = read_header(file, preparation.reading(role))
        except PictureError as error:
            reasons |= error.reasons
            advice = error.advice
    if reasons:
        raise PictureError(reasons, advice)
    if pair.b is None:
        headers = {role: _half(pair, header, preparation) for role, header in headers.items()}
    for role, file in zip(preparation.roles, pair.files, strict=False):
        _check_size(file, headers[role])
    shapes = [headers[role] for role in preparation.roles]
    if pair.b and abs(_aspect(shapes[0]) / _aspect(shapes[1]) - 1) > ASPECTS_APART:
        sizes = " and ".join(f"{h.width}x{h.height}" for h in shapes)
        raise PictureError(
            {pair.a: f"it and {pair.b} are {sizes}: of different shapes, not of the same scene"}
        )
    size = headers["input"]
    return PairHeader(size.height, size.width, (size.kind, headers["target"].kind))


def settle_kinds(headers: Sequence[PairHeader], preparation: Preparation) -> Kinds:
    """Return what all inputs, and all targets, become."""
    if preparation.kinds:
        return preparation.kinds
    sides = zip(*(header.kinds for header in headers), strict=True)
    wanted = (preparation.input_nc, preparation.output_nc)
    return tuple(kind_of_all(side, nc) for side, nc in zip(sides, wanted, strict=True))


def check_kinds(pair: Pair, header: PairHeader, kinds: Kinds, preparation: Preparation) -> None:
    """Refuse a pair whose pictures cannot become what those of the others are.

    Raises:
        PictureError: Naming the files.
    """
    reasons = {}
    for role, found, wanted in zip(ROLES, header.kinds, kinds, strict=True):
        why = misfit(found, wanted)
        if (found.dtype, wanted.dtype) == ("uint16", "uint8"):
            why = f"it has {found}; the training pictures have {wanted}"
        elif found.dtype != wanted.dtype and role in preparation.ranged:
            why = f"it has {found}; {role}_range is in numbers of {wanted.dtype}"
        if why:
            reasons[pair.files[preparation.roles.index(role) % len(pair.files)]] = why
    if reasons:
        raise PictureError(reasons, _OF_ONE_KIND)


def shape_of(header: PairHeader, preparation: Preparation, kinds: Kinds) -> tuple[int, int, int]:
    """Return the shape (height, width, channels) of the array that ``read_pair`` makes."""
    channels = sum(kind.channels for kind in kinds)
    if not preparation.keep_aspect:
        return preparation.size, preparation.size, channels
    scale = preparation.size / min(header.height, header.width)
    return round(header.height * scale), round(header.width * scale), channels


def read_pair(pair: Pair, preparation: Preparation, kinds: Kinds) -> tuple[np.ndarray, bool]:
    """Decode a pair, resize both halves and stack them, the input first, their numbers as stored.

    Returns:
        Array (height, width, channels of both) of shape ``shape_of``, in the type that holds both;
        and whether any of it is transparent and has been drawn over white.

    Raises:
        PictureError: If a file cannot be decoded.
    """
    halves = _halves(pair, preparation)
    pixels = [halves[role].pixels for role in ROLES]
    if any(misfit(halves[role].kind, kind) for role, kind in zip(ROLES, kinds, strict=True)):
        raise PictureError({pair.a: "it has changed since it was checked"})
    shape = shape_of(PairHeader(*pixels[0].shape[:2], kinds), preparation, kinds)
    ready = [
        resize(to_kind(half, kind), shape, preparation.is_nearest(role))
        for half, kind, role in zip(pixels, kinds, ROLES, strict=True)
    ]
    dtype = common_dtype(kinds)
    array = np.concatenate([half.astype(dtype, copy=False) for half in ready], axis=2)
    return array, any(half.is_transparent for half in halves.values())


def _halves(pair: Pair, preparation: Preparation) -> dict[str, Picture]:
    """Decode input and target, by their roles."""
    readings = {role: preparation.reading(role) for role in preparation.roles}
    if pair.b:
        files = zip(preparation.roles, pair.files, strict=True)
        return {role: read_picture(file, readings[role]) for role, file in files}
    wholes = {reading: read_picture(pair.a, reading) for reading in set(readings.values())}
    return {
        role: cut(wholes[readings[role]], place) for place, role in enumerate(preparation.roles)
    }


def cut(picture: Picture, half: int) -> Picture:
    """Return the left (0) or right (1) half of a side-by-side picture."""
    middle = picture.pixels.shape[1] // 2
    columns = slice(half * middle, (half + 1) * middle)
    alpha = None if picture.alpha is None else picture.alpha[:, columns]
    return replace(picture, pixels=picture.pixels[:, columns], alpha=alpha)


def content_of(pair: Pair) -> str:
    """Return a short hash of the sizes and contents of a pair's files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in pair.files:
        with path.open("rb") as file:
            digest.update(file.seek(0, os.SEEK_END).to_bytes(8, "little"))
            file.seek(0)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _half(pair: Pair, whole: Header, preparation: Preparation) -> Header:
    """Return the size of a half of a side-by-side picture, if it looks like one."""
    looks = f"its size of {whole.width}x{whole.height}"
    if whole.width % 2:
        reason = f"{looks} has an odd width, so it has no two equal halves{_looks_like(whole)}"
        raise PictureError({pair.a: reason}, _ADVICE)
    half = replace(whole, width=whole.width // 2)
    if preparation.check_halves and abs(_aspect(half) - 1) > SQUARE:
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


def resize(pixels: np.ndarray, shape: tuple[int, ...], nearest: bool) -> np.ndarray:
    """Resize (height, width, channels) to the height and width that ``shape`` begins with."""
    height, width = shape[:2]
    is_smaller = height < pixels.shape[0] or width < pixels.shape[1]
    # Area averages all that one pixel comes to stand for; cubic keeps edges when enlarging.
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    method = cv2.INTER_NEAREST_EXACT if nearest else method
    # OpenCV takes up to four channels at a time, and drops the dimension of a single one.
    parts = [
        cv2.resize(pixels[..., first : first + 4], (width, height), interpolation=method)
        for first in range(0, pixels.shape[2], 4)
    ]
    return np.dstack(parts)
