"""Colours of classes in label pictures: known by the name of a data set, or found in pictures."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

Palette = dict[str, tuple[int, int, int]]  # by the names of the classes, 0 to 255 each

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
NEAR, RARE = 40, 0.0005  # distance of colours, 0 to 255 each; share of all pixels
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


def painted(numbers: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) that stand for numbers of classes (H, W), uint8."""
    return PAINT[numbers]


def numbered(colours: np.ndarray, palette: Palette) -> np.ndarray:
    """Return the numbers (H, W), uint8, of the classes whose colours are nearest to (H, W, 3)."""
    known = np.array(list(palette.values()), np.int32)
    distances = [np.square(colours.astype(np.int32) - colour).sum(axis=2) for colour in known]
    numbers = [int(name.removeprefix("class ")) for name in palette]
    return np.array(numbers, np.uint8)[np.argmin(distances, axis=0)]


def find_classes(pictures: Iterable[np.ndarray], shades: bool = True) -> tuple[Palette, bool]:
    """Return the colours of the classes in label pictures, and whether there are no others.

    Files that lose colours (JPEG) or have soft edges hold colours between those of the classes;
    what is nearer than NEAR to a commoner one, or rarer than RARE, is taken for such.

    Args:
        pictures: (H, W, 3), uint8; all of them, as a rare class may be in one alone.
        shades: False where each colour is a class, as those of painted numbers are.

    Raises:
        ValueError: There are more than MAX_CLASSES.
    """
    counts: Counter[int] = Counter()
    for picture in pictures:
        codes, pixels = np.unique(_codes(picture), return_counts=True)
        counts.update(dict(zip(codes.tolist(), pixels.tolist(), strict=True)))
    colours = np.array([(c >> 16, c >> 8 & 255, c & 255) for c, _ in counts.most_common()])
    is_exact = len(colours) <= MAX_CLASSES
    if shades and not is_exact:
        colours = _apart(colours, np.array([n for _, n in counts.most_common()]))
    if len(colours) > MAX_CLASSES:
        raise ValueError(f"they have more than {MAX_CLASSES} classes")
    palette = {f"#{bytes(colour).hex()}": tuple(colour) for colour in colours.tolist()}
    return palette, is_exact


def share_unknown(picture: np.ndarray, palette: Palette) -> float:
    """Return the share of the pixels of a picture (H, W, 3), uint8, in colours of no class."""
    known = _codes(np.array(list(palette.values()), np.uint8))
    return 1 - float(np.isin(_codes(picture), known).mean())


def _codes(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3), uint8, as one number each, in a row."""
    red, green, blue = colours.reshape(-1, 3).T.astype(np.int32)
    return red << 16 | green << 8 | blue


def _apart(colours: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the colours, from the commonest on, that lie apart from all before them."""
    total, found = counts.sum(), []
    while len(colours) and counts[0] > RARE * total and len(found) <= MAX_CLASSES:
        found.append(colours[0])
        far = np.square(colours - colours[0]).sum(axis=1) > NEAR**2
        colours, counts = colours[far], counts[far]
    return np.array(found)


def by_numbers(palette: Palette) -> Palette:
    """Return a palette of painted numbers with the numbers as names, in their order."""
    names = {tuple(colour): number for number, colour in enumerate(PAINT.tolist())}
    numbers = sorted((names[colour], colour) for colour in palette.values())
    return {f"class {number}": colour for number, colour in numbers}
