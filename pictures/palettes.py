"""Named colour palettes: which colour stands for which class in a data set's label pictures."""

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
# In all three sets A is the photo and B the label picture, so only AtoB has labels as targets.
_LABELS = {"towns": TOWNS, "maps": MAPS, "facades": FACADES}


def target_palette(dataset: str, direction: str) -> Palette | None:
    """Return the palette of the targets of a data set, class name to RGB (0 to 255 each).

    None where the targets are photos, or the data set is not known by its name.
    """
    return _LABELS.get(dataset) if direction == "AtoB" else None


def merged_classes(palette: Palette) -> tuple[str, str] | None:
    """Return the two classes of ``palette`` that are hardly apart in colour, if it has any."""
    return next((pair for pair in _MERGED if set(pair) <= palette.keys()), None)
