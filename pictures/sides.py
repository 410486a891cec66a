"""What the pictures of either side of a pair are: which numbers, and what these stand for."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Interval, MinLen
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from pictures.palettes import Palette

# The types in which pictures are read; what has more bits becomes float32.
OWN_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": None, "float32": None}
N_SAMPLED = 4_000_000  # numbers that a range is found by
SCALABLE, DEEPER = {"uint8", "uint16"}, 257  # 255 becomes 65535


class Kind(NamedTuple):
    """The numbers of a picture: how many a pixel, and of which type."""

    channels: int = 3
    dtype: str = "uint8"
    index: str = ""
    """How classes were numbered in label pictures without colours: "P", "L", or "" (colours)."""

    def __str__(self) -> str:
        if self.index:
            return "numbers of classes"
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"


@dataclass(frozen=True)
class Side:
    """What the pictures of one side are; a network sees ``low`` to ``high`` as -1 to 1."""

    channels: Annotated[int, Interval(ge=1, le=65535)] = 3
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Of the files."""
    low: FiniteFloat = 0.0
    high: FiniteFloat = 255.0
    palette: Annotated[Palette, MinLen(1)] | None = None
    """The colours of the classes, where they are label pictures."""
    index: Literal["", "P", "L"] = ""
    """As ``Kind.index``; the classes are then called "class NUMBER"."""
    is_exact: bool = False
    """Whether they hold the colours of the classes alone, none in between."""

    def __post_init__(self) -> None:
        """Refuse what cannot be together."""
        if not self.low < self.high:
            raise ValueError(f"it goes from {self.low:g} to {self.high:g}; expected more")
        names = self.palette or ("no names",)
        if self.index and not all(re.fullmatch(r"class \d{1,3}", name) for name in names):
            raise ValueError(f"its classes are numbered and called {', '.join(names)}")

    @property
    def kind(self) -> Kind:
        """What its files hold."""
        return Kind(self.channels, self.dtype, self.index)

    @property
    def half_range(self) -> float:
        """What 1 on [-1, 1] is in the units of the files."""
        return (self.high - self.low) / 2

    @property
    def is_plain(self) -> bool:
        """Whether its pictures are what every viewer shows: 8 bits from black to white."""
        return self.dtype == "uint8" and (self.low, self.high) == OWN_RANGES["uint8"]

    @property
    def colours(self) -> list[tuple[int, ...]] | None:
        """The colours of the classes, 0 to 255, where they are label pictures."""
        return list(self.palette.values()) if self.palette else None

    def describe(self) -> str:
        """Say in a few words what its pictures are."""
        text = str(self.kind) if self.index else f"{self.kind}, {self.low:g} to {self.high:g}"
        if self.palette:
            text += f", {len(self.palette)} classes: {', '.join(self.palette)}"
        return text


def quantiles(pictures: Sequence[np.ndarray], low: float, high: float) -> tuple[float, float]:
    """Return the numbers below which these quantiles of all numbers in some pictures lie.

    A part of the numbers, spread evenly over the pictures, stands for all.
    """
    step = max(1, sum(picture.size for picture in pictures) // N_SAMPLED)
    numbers = np.concatenate([picture.reshape(-1)[::step] for picture in pictures])
    return tuple(np.quantile(numbers, (low, high)).tolist())


class Sides(NamedTuple):
    """The two sides of a pair."""

    input: Side = Side()
    target: Side = Side()

    @property
    def kinds(self) -> tuple[Kind, Kind]:
        """What the files of both hold."""
        return self.input.kind, self.target.kind

    def as_saved(self) -> dict[str, dict[str, Any]]:
        """Return them as plain data, for a checkpoint."""
        return {name: asdict(side) for name, side in self._asdict().items()}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Mapping[str, Any]]) -> "Sides":
        """Return what ``as_saved`` made plain, whoever wrote the file that it comes from.

        Raises:
            ValueError: It is not what ``as_saved`` makes.
        """
        if not (isinstance(saved, Mapping) and saved.keys() == {*cls._fields}):
            raise ValueError(f"its sides are {saved!r:.80}; expected input and target")
        return cls(*(_side_from(name, saved[name]) for name in cls._fields))


def _side_from(role: str, saved: Any) -> Side:
    """Return a side from plain data; what an older file lacks is as usual."""
    try:  # as JSON, where a list may stand for a tuple, and otherwise types must be right
        return TypeAdapter(Side).validate_json(json.dumps(saved, default=repr), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "one field"
        raise ValueError(
            f"{where} of its {role} side is {wrong['input']!r:.80}; {wrong['msg']}"
        ) from error


def common_dtype(kinds: Iterable[Kind]) -> np.dtype:
    """Return the smallest type that holds the numbers of all ``kinds`` exactly."""
    found = {kind.dtype for kind in kinds}
    return np.dtype(max(found, key=len) if found <= SCALABLE else "float32")


def misfit(found: Kind, wanted: Kind) -> str:
    """Say why pictures of one kind cannot become those of another; empty: they can.

    Grey becomes colour or the other way, and 8 bits 16 or the other way, black to white each.
    """
    if found == wanted:
        return ""
    channels = {found.channels, wanted.channels}
    dtypes = {found.dtype, wanted.dtype}
    alike = len(channels) == 1 or channels == {1, 3}, len(dtypes) == 1 or dtypes == SCALABLE
    if bool(found.index) != bool(wanted.index) or not all(alike):
        return f"it has {found}; expected {wanted}"
    return ""


def kind_of_all(found: Sequence[Kind], channels: int | None = None) -> Kind:
    """Return the kind that pictures of several become: the richest of those like the commonest.

    Args:
        found: Kinds of pictures, at least one.
        channels: How many it is to have, where that is settled.
    """
    usual = Counter(found).most_common(1)[0][0]
    alike = [kind for kind in found if not misfit(kind, usual)]
    most = max(kind.channels for kind in alike)
    return Kind(channels or most, max((kind.dtype for kind in alike), key=len), usual.index)


def to_kind(pixels: np.ndarray, kind: Kind) -> np.ndarray:
    """Turn pixels into those of another kind, which ``misfit`` allows.

    Args:
        pixels: (H, W, channels).
        kind: What is wanted.

    Returns:
        (H, W, kind.channels), of ``kind.dtype``, or float32 where that would round.
    """
    if pixels.dtype == np.uint8 and kind.dtype == "uint16":
        pixels = pixels.astype(np.uint16) * np.uint16(DEEPER)
    elif pixels.dtype == np.uint16 and kind.dtype == "uint8":
        pixels = pixels.astype(np.float32) / np.float32(DEEPER)
    return _to_channels(pixels, kind.channels)


def _to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    if pixels.dtype.kind == "f":
        return (0.299 * red + 0.587 * green + 0.114 * blue).astype(pixels.dtype)[..., None]
    red, green, blue = (part.astype(np.int64) for part in (red, green, blue))
    # ITU-R 601 luma in the 16-bit fixed point of Pillow's convert("L").
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(pixels.dtype)[..., None]
