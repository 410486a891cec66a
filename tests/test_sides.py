"""What a stranger's file says of its pictures is taken only if it can be true."""

import math

import pytest

from pictures.palettes import TOWNS
from pictures.sides import Side, Sides

NUMBERED = {"class 0": (0, 0, 0), "class 7": (128, 128, 128)}


@pytest.mark.parametrize(
    "sides",
    [
        Sides(),
        Sides(Side(palette=TOWNS, is_exact=True), Side(1, "float32", -3.5, 1e9)),
        Sides(Side(4, "uint16", 0, 65535), Side(palette=NUMBERED, index="L")),
    ],
)
def test_sides_are_read_as_they_were_saved(sides: Sides):
    saved = sides.as_saved()
    assert Sides.from_saved(saved) == sides
    if sides.input.palette:  # as from JSON
        saved["input"]["palette"] = {n: list(c) for n, c in sides.input.palette.items()}
        assert Sides.from_saved(saved) == sides


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 0),
        ("channels", 10**9),
        ("channels", 3.0),
        ("channels", True),
        ("channels", object()),
        ("dtype", "object"),
        ("dtype", ["uint8"]),
        ("low", math.nan),
        ("low", "0"),
        ("high", math.inf),
        ("high", 0.0),
        ("palette", []),
        ("palette", {}),
        ("palette", {"a": "red; background: url(http://x.org)"}),
        ("palette", {"a": ("1)", "2", "3")}),
        ("palette", {"a": (1, 2)}),
        ("palette", {"a": (1, 2, 256)}),
        ("palette", {"a": (1, 2, 3.5)}),
        ("index", "X"),
        ("index", "P"),  # without the numbers of the classes
        ("is_exact", 1),
    ],
)
def test_what_cannot_be_is_refused(field: str, value: object):
    saved = Sides().as_saved()
    saved["target"][field] = value
    with pytest.raises(ValueError, match="target side"):
        Sides.from_saved(saved)


@pytest.mark.parametrize("saved", [None, [], {}, {"input": {}}, {"input": {}, "target": 3}])
def test_what_is_no_pair_of_sides_is_refused(saved: object):
    with pytest.raises(ValueError, match="side"):
        Sides.from_saved(saved)


def test_what_an_older_file_lacks_is_as_usual():
    assert Sides.from_saved({"input": {"channels": 1}, "target": {}}) == Sides(Side(1), Side())
