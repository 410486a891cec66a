"""Single pictures are not cut in half, and no real pairs are taken for single ones."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU
from PIL import Image

from config import Config
from pictures.halves import check_halves
from pictures.layouts import Pair, find_pairs
from pictures.pairs import Preparation
from recipes import resolve
from run.sources import open_data, preparation_of

WHITE = np.full((64, 6, 3), 255, np.uint8)


def preparation(**settings: object) -> Preparation:
    return preparation_of(resolve(Config(dataset="x", crop_size=32, **settings))[0], augment=True)


def saved(folder: Path, pictures: Iterable[np.ndarray]) -> list[Pair]:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return [Pair(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def halves(towns: Path) -> dict[str, list[np.ndarray]]:
    """Ten photos and ten street maps of towns, (64, 64, 3)."""
    pictures = [np.asarray(Image.open(path)) for path in sorted(towns.rglob("*.png"))]
    return {"photo": [p[:, :64] for p in pictures], "map": [p[:, 64:] for p in pictures]}


def test_pairs_are_taken(towns: Path):
    split = find_pairs(towns)
    assert check_halves(split.train, preparation()) == check_halves(split.val, preparation()) == []


def test_halves_alike_are_taken(halves: dict, tmp_path: Path):
    sky = np.linspace(255, 0, 64, dtype=np.uint8)[:, None, None]
    days = [photo // 2 + sky // 2 for photo in halves["photo"]]
    nights = (np.hstack([day, day // 3]) for day in days)
    assert check_halves(saved(tmp_path / "night", nights), preparation()) == []
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 128, 3), dtype=np.uint8)
    assert check_halves(saved(tmp_path / "noise", noise), preparation()) == []


@pytest.mark.parametrize("kind", ["photo", "map"])
def test_single_pictures_are_refused(halves: dict, kind: str, tmp_path: Path):
    saved(tmp_path / "single", (picture[16:48] for picture in halves[kind]))
    settings = {"dataset": "single", "crop_size": 32}
    with pytest.raises(ValueError, match="goes on where the left one ends") as caught:
        open_data(resolve(Config(**settings))[0], CPU)
    assert "two folders, A and B. To cut each in half all the same, set" in str(caught.value)
    data = open_data(resolve(Config(**settings, check_halves=False))[0], CPU)
    assert len(data.train) + len(data.val) == 10


def test_blank_and_broken_pictures_say_nothing(tmp_path: Path):
    blank = np.full((64, 128, 3), 255, np.uint8)
    blank[::2] -= 3  # all the background of a bad scan
    blank[20:40, 30:50] = 0
    pairs = saved(tmp_path / "blank", [blank] * 3)
    pairs[0].a.write_bytes(b"")
    assert check_halves(pairs, preparation()) == []


def test_a_gutter_is_noticed_and_a_frame_is_none(halves: dict, tmp_path: Path):
    parts = list(zip(halves["photo"], halves["map"], strict=True))
    pairs = saved(tmp_path / "gutter", (np.hstack([a, WHITE, b]) for a, b in parts))
    (note,) = check_halves(pairs, preparation(check_halves=False))
    assert "a gutter of 6 px lies between the halves" in note
    framed = (np.hstack([WHITE, a, WHITE, WHITE, b, WHITE]) for a, b in parts)
    assert not check_halves(saved(tmp_path / "frame", framed), preparation(check_halves=False))


def named(*names: str) -> list[Pair]:
    return [Pair(Path(name), folder=Path(name).parent.as_posix().strip(".")) for name in names]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("1_A.png 1_B.png 2_A.png 2_B.png odd.png", "a and b to '*_A' and '*_B'"),
        ("town/1-real.png town/1-label.png", "a and b to '*-label' and '*-real'"),
        ("1.png 1_mask.png 2.png 2_mask.png", "a and b to '' and '*_mask'"),
        ("images/1.png images/x/2.png masks/1.png masks/x/2.png", "a and b to images and masks"),
    ],
)
def test_names_tell_single_pictures(names: str, said: str):
    with pytest.raises(ValueError, match="look like single ones") as caught:
        check_halves(named(*names.split()), preparation())
    assert f"set {said}" in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        "1.png 2.png",
        "scan_1.png scan_2.png",
        "a_x.png b_y.png c_x.png",
        "bonn/1.png bonn/2.png jena/1.png",
        "bonn/1.png jena/1.png kiel/1.png",
    ],
)
def test_names_that_tell_nothing(names: str):
    assert check_halves(named(*names.split()), preparation()) == []
