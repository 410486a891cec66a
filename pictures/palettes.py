"""Colours of classes in label pictures: known by the name of a data set, or found in pictures."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from annotated_types import Interval

Level = Annotated[int, Interval(ge=0, le=255)]
Palette = dict[str, tuple[Level, Level, Level]]  # by the names of the classes

# The built-in towns set. The colours lie far apart and no colour lies near the middle of two
# others, so that a blurred edge between two classes seldom reads as a third class.
TOWNS: Palette = {
    "block": (242, 238, 224),
    "building": (214, 92, 150),
    "street": (90, 106, 135),
    "arterial": (248, 188, 72),
    "park": (124, 218, 84),
    "water": (104, 184, 255),
}

# Street maps of the aerial photo data set, read off its files.
MAPS: Palette = {
    "land": (232, 229, 223),
    "built_up": (243, 240, 234),
    "street": (255, 255, 253),
    "park": (203, 223, 172),
    "water": (178, 208, 254),
    "motorway": (250, 159, 38),
    "arterial": (254, 225, 108),
}

# Labels of the CMP facade database: its 12 classes in order run through the jet colour map.
FACADES: Palette = {
    "background": (0, 0, 170),
    "facade": (0, 0, 255),
    "window": (0, 85, 255),
    "door": (0, 170, 255),
    "cornice": (0, 255, 255),
    "sill": (85, 255, 170),
    "balcony": (170, 255, 85),
    "blind": (255, 255, 0),
    "deco": (255, 170, 0),
    "molding": (255, 85, 0),
    "pillar": (255, 0, 0),
    "shop": (170, 0, 0),
}

# Classes whose colours are hardly apart, so that accuracy is also given with them as one.
_MERGED = (("land", "built_up"),)
# In all three sets A is the photo and B the label picture.
_LABELS = {"towns": TOWNS, "maps": MAPS, "facades": FACADES}


def known_palettes(dataset: str, direction: str) -> tuple[Palette | None, Palette | None]:
    """Return the palettes of inputs and targets of a data set, class name to RGB (0 to 255 each).

    None stands for photos, and for data sets that are not known by their names.
    """
    labels = _LABELS.get(dataset)
    return (labels, None) if direction == "BtoA" else (None, labels)


def merged_classes(palette: Palette) -> tuple[str, str] | None:
    """Return the two classes of ``palette`` that are hardly apart in colour, if it has any."""
    return next((pair for pair in _MERGED if set(pair) <= palette.keys()), None)


# --- Classes that the data tell ---
MAX_CLASSES = 64
NEAR_COLOUR = 40  # distance of colours (0 to 255 each), below which noise may make one of the other
RARE_COLOUR = 0.0005  # share of all pixels, below which a colour among many is no class
LEAST_COVERED = 0.85  # share of pixels near to a class; of labels as JPEG 0.92, of photos 0.79
BETWEEN = 4  # how far from the straight line between two colours a mixture of them may be
FEWEST_SHADES = 3  # colours in between that make an edge soft; fewer may be classes of thin lines
# What pixels become that are to be ignored, see ``painted``: a colour of no class and no palette.
IGNORED = (255, 1, 254)
# Numbers of classes are painted in the colours of PASCAL VOC: the bits of a number, in turn, are
# the high bits of red, green and blue, so that neighbours lie far apart.
PAINT = np.array(
    [
        [
            sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        ]
        for number in range(256)
    ],
    np.uint8,
)


def painted(numbers: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Return the colours (H, W, 3), uint8, that stand for numbers of classes (H, W).

    Args:
        numbers: Whole ones from 0 to 255, of any type, or ``ignore``.
        ignore: The number of pixels that belong to no class; these become IGNORED.
    """
    is_ignored = np.zeros(numbers.shape, bool) if ignore is None else numbers == ignore
    colours = PAINT[np.where(is_ignored, 0, numbers).astype(np.uint8)]
    colours[is_ignored] = IGNORED
    return colours


def numbered(colours: np.ndarray, palette: Palette) -> np.ndarray:
    """Return the numbers (H, W), uint8, of the classes whose colours are nearest to (H, W, 3)."""
    known = np.array(list(palette.values()), np.int32)
    distances = [np.square(colours.astype(np.int32) - colour).sum(axis=2) for colour in known]
    numbers = [int(name.removeprefix("class ")) for name in palette]
    return np.array(numbers, np.uint8)[np.argmin(distances, axis=0)]


def find_classes(pictures: Iterable[np.ndarray], shades: bool = True) -> tuple[Palette, bool]:
    """Return the colours of the classes in label pictures, and whether there are no others.

    Files that lose colours (JPEG) or have soft edges hold colours between those of the classes.
    Among more than MAX_CLASSES colours, one that is near to a commoner one or rare is taken for
    such; and so is a mixture of two classes that nowhere fills 3x3 pixels. Pixels that are IGNORED
    count for nothing.

    Args:
        pictures: (H, W, 3), uint8; all of them, as a rare class may be in one alone.
        shades: False where each colour is a class, as those of painted numbers are.

    Raises:
        ValueError: There are more than MAX_CLASSES, or fewer than two; or the colours found are
            those of few pixels, as in photos.
    """
    counts: Counter[int] = Counter()
    fillings: Counter[int] = Counter()
    ignored = int(_codes(np.array(IGNORED, np.uint8)))
    for picture in pictures:
        codes = _codes(picture)
        counts.update(_counted(codes))
        if shades:
            fillings.update(_counted(codes[1:-1, 1:-1][_fills(codes)]))
    counts.pop(ignored, None)
    colours = np.array([(c >> 16, c >> 8 & 255, c & 255) for c in counts]).reshape(-1, 3)
    pixels = np.array([*counts.values()])
    found = np.argsort(-pixels, kind="stable")
    if shades and len(found) > MAX_CLASSES:
        found = _apart(colours, pixels, found)
    if shades:
        fills = np.array([fillings[code] > 0 for code in counts])
        found = _without_shades(colours, pixels, found, fills)
    palette = {f"#{bytes(c).hex()}": tuple(c) for c in colours[found].astype(np.uint8).tolist()}
    if len(found) > MAX_CLASSES:
        raise ValueError(f"they have more than {MAX_CLASSES} classes")
    covered = _share_near(colours, pixels, found)
    if covered < LEAST_COVERED:
        raise ValueError(
            f"{len(colours)} colours are in them, and the {len(found)} commonest that lie apart "
            f"cover {covered:.0%} of the pixels"
        )
    if len(found) < 2:
        raise ValueError(f"all show the same, {', '.join(palette) or 'nothing'}")
    return palette, len(found) == len(colours)


def share_unknown(picture: np.ndarray, palette: Palette) -> float:
    """Return the share of the pixels of a picture (H, W, 3), uint8, in colours of no class."""
    known = _codes(np.array([*palette.values(), IGNORED], np.uint8))
    return 1 - float(np.isin(_codes(picture), known).mean())


def _codes(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3), uint8, as one number each, (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _counted(codes: np.ndarray) -> dict[int, int]:
    found, pixels = np.unique(codes, return_counts=True)
    return dict(zip(found.tolist(), pixels.tolist(), strict=True))


def _fills(codes: np.ndarray) -> np.ndarray:
    """Return for (H, W) colours, but for the outermost, whether all 8 neighbours are alike."""
    rows = (codes[:, :-2] == codes[:, 1:-1]) & (codes[:, 1:-1] == codes[:, 2:])
    middle = codes[:, 1:-1]
    columns = (middle[:-2] == middle[1:-1]) & (middle[1:-1] == middle[2:])
    return rows[:-2] & rows[1:-1] & rows[2:] & columns


def _apart(colours: np.ndarray, pixels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the numbers of the colours, from the commonest on, that lie apart from all before."""
    found: list[int] = []
    left = order[pixels[order] > RARE_COLOUR * pixels.sum()]
    while len(left) and len(found) <= MAX_CLASSES:
        found.append(left[0])
        far = np.square(colours[left] - colours[left[0]]).sum(axis=1) > NEAR_COLOUR**2
        left = left[far]
    return np.array(found, int)


def _without_shades(
    colours: np.ndarray, pixels: np.ndarray, found: np.ndarray, fills: np.ndarray
) -> np.ndarray:
    """Return of the colours found those that are no soft edges between two others.

    Args:
        colours: (n, 3).
        pixels: How many have each.
        found: Numbers of colours.
        fills: Whether a colour fills 3x3 pixels somewhere, which a soft edge does not.
    """
    thin = found[~fills[found]]
    solid = colours[found[fills[found]]].astype(float)
    starts, ends = (solid[index] for index in np.triu_indices(len(solid), k=1))
    along = ends - starts  # (pairs of classes, 3)
    away = colours[thin][:, None] - starts  # (thin colours, pairs of classes, 3)
    share = (away * along).sum(axis=2) / np.square(along).sum(axis=1)
    distance = np.linalg.norm(away - share[..., None] * along, axis=2)
    is_shade = ((share > 0) & (share < 1) & (distance <= BETWEEN)).any(axis=1)
    if is_shade.sum() < FEWEST_SHADES:
        return found
    is_shade |= pixels[thin] < RARE_COLOUR * pixels.sum()  # where three classes meet
    return found[~np.isin(found, thin[is_shade])]


def _share_near(colours: np.ndarray, pixels: np.ndarray, found: np.ndarray) -> float:
    """Return the share of the pixels whose colours are near to those that were found."""
    is_near = np.zeros(len(colours), bool)
    for number in found:
        is_near |= np.square(colours - colours[number]).sum(axis=1) <= NEAR_COLOUR**2
    return float(pixels[is_near].sum() / pixels.sum()) if len(pixels) else 1.0


def by_numbers(palette: Palette) -> Palette:
    """Return a palette of painted numbers with the numbers as names, in their order."""
    names = {tuple(colour): number for number, colour in enumerate(PAINT.tolist())}
    numbers = sorted((names[colour], colour) for colour in palette.values())
    return {f"class {number}": colour for number, colour in numbers}
