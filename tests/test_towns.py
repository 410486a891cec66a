import numpy as np
import pytest
import tifffile
from PIL import Image

from pictures import palettes
from samples import heights
from samples import towns as draw

COLOURS = np.array(list(palettes.TOWNS.values()))


@pytest.fixture(scope="module")
def maps():
    """Class numbers of 20 street maps, (20, 256, 256)."""
    street_maps = np.stack([draw.draw_pair(0, "train", index)[1] for index in range(20)])
    matches = (street_maps[..., None, :] == COLOURS).all(axis=-1)
    assert matches.any(axis=-1).all(), "a map holds a colour that the palette lacks"
    return matches.argmax(axis=-1)


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_pair_shapes_and_types():
    for picture in draw.draw_pair(0, "train", 0, size=64):
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8


def test_same_arguments_draw_the_same_pair():
    np.random.seed(1)
    first = draw.draw_pair(3, "val", 7, size=64)
    draw.draw_pair(3, "val", 8, size=64)
    np.random.seed(2)
    assert same(first, draw.draw_pair(3, "val", 7, size=64))


@pytest.mark.parametrize("other", [(4, "val", 7), (3, "train", 7), (3, "val", 8)])
def test_seed_split_and_index_each_change_the_pair(other):
    pair, changed = draw.draw_pair(3, "val", 7, size=64), draw.draw_pair(*other, size=64)
    assert not np.array_equal(pair[0], changed[0])
    assert not np.array_equal(pair[1], changed[1])


def test_maps_hold_at_least_six_classes(maps):
    assert len(np.unique(maps)) >= 6


def test_no_class_is_rare_over_the_set(maps):
    shares = np.bincount(maps.ravel(), minlength=len(COLOURS)) / maps.size
    assert shares.min() >= 0.015


def test_no_class_is_a_sliver_or_fills_a_picture(maps):
    for one in maps:
        shares = np.bincount(one.ravel(), minlength=len(COLOURS)) / one.size
        assert shares.max() < 0.5
        assert shares[shares > 0].min() >= 0.015


def test_photo_colour_alone_does_not_give_the_class_away():
    """The nearest mean colour beats the most common class, yet is far from solving the task."""
    pairs = [draw.draw_pair(0, "train", index, size=64) for index in range(12)]
    photos = np.stack([photo for photo, _ in pairs]).astype(float)
    classes = np.stack([(one[..., None, :] == COLOURS).all(-1).argmax(-1) for _, one in pairs])
    means = np.stack([photos[classes == number].mean(axis=0) for number in range(len(COLOURS))])
    guess = ((photos[..., None, :] - means) ** 2).sum(axis=-1).argmin(axis=-1)
    accuracy = (guess == classes).mean()
    assert np.bincount(classes.ravel()).max() / classes.size < accuracy < 0.7


def test_photo_has_texture_within_a_class():
    photo, street_map = draw.draw_pair(0, "train", 0)
    for name in ("building", "block", "street"):
        inside = (street_map == palettes.TOWNS[name]).all(axis=-1)
        assert photo[inside].std() > 8, name


def test_files_are_side_by_side_pngs(tmp_path):
    folder = tmp_path / "data" / "towns"
    draw.draw_towns(folder, n_train=2, n_val=1, size=64, seed=5)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert files == ["train/0001.png", "train/0002.png", "val/0001.png"]
    for split, index in (("train", 0), ("train", 1), ("val", 0)):
        with Image.open(folder / split / f"{index + 1:04d}.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 64))
            pixels = np.asarray(image)
        assert same(draw.draw_pair(5, split, index, size=64), (pixels[:, :64], pixels[:, 64:]))
    assert [path.name for path in folder.parent.iterdir()] == ["towns"]


def test_interrupted_draw_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def stop_at_third(*arguments):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(draw, "draw_pair", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        draw.draw_towns(tmp_path / "towns", n_train=4, n_val=1, size=8)
    assert len(drawn) == 2
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "towns").mkdir()
    (tmp_path / "towns" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="already exists"):
        draw.draw_towns(tmp_path / "towns", n_train=1, n_val=1, size=32)
    assert [path.name for path in tmp_path.rglob("*")] == ["towns", "mine.txt"]


def test_loser_of_a_race_keeps_the_winners_set(tmp_path, monkeypatch):
    folder, draw_pair = tmp_path / "towns", draw.draw_pair

    def draw_while_another_finishes(*arguments):
        folder.mkdir(exist_ok=True)
        (folder / "winner.txt").write_text("first")
        return draw_pair(*arguments)

    monkeypatch.setattr(draw, "draw_pair", draw_while_another_finishes)
    draw.draw_towns(folder, n_train=1, n_val=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["towns"]
    assert [path.name for path in folder.iterdir()] == ["winner.txt"]


# Heights


def test_heights_are_metres_above_a_flat_ground():
    tops = []
    for index in range(4):
        photo, metres = heights.draw_pair(0, "train", index, size=64)
        assert (photo.shape, photo.dtype) == ((64, 64, 3), np.uint8)
        assert (metres.shape, metres.dtype) == ((64, 64), np.float32)
        assert metres.min() == 0
        assert 0.1 < (metres > 0).mean() < 0.7
        tops.append(metres.max())
    assert 6 < min(tops) < max(tops) <= 25.5
    assert same((photo, metres), heights.draw_pair(0, "train", 3, size=64))
    assert not np.array_equal(metres, heights.draw_pair(0, "val", 3, size=64)[1])


@pytest.mark.parametrize(("light", "side"), [((1, 0), (0, 1)), ((0, -1), (-1, 0))])
def test_a_shadow_is_as_long_as_its_cause_is_high(light: tuple, side: tuple):
    size = 176  # pixels, a metre each
    block = np.zeros((size, size), np.float32)
    block[80:90, 80:90] = 12
    dark = heights._shadows(block, np.array(light))
    rows, columns = np.nonzero(dark)
    assert len(rows) == 11 * 10  # the twelfth metre is at the height of the ground
    assert (rows.mean() - 84.5, columns.mean() - 84.5) == tuple(10.5 * step for step in side)


def test_the_photo_is_darker_in_shadows():
    photo, metres = heights.draw_pair(0, "train", 1)
    dark = heights._shadows(metres, np.array([0, -1])) & (metres == 0)
    assert photo[dark].mean() < 0.8 * photo[~dark & (metres == 0)].mean()


def test_no_tree_stands_on_a_house():
    classes = np.full((64, 64), heights.CLASSES.index("park"), np.uint8)
    classes[:, 32:] = heights.CLASSES.index("building")
    crowns = np.array([[20, 30, 8], [28, 30, 8], [50, 30, 8]], float)
    assert heights._off_buildings(crowns, classes).tolist() == [[20, 30, 8]]


def test_heights_lie_in_two_folders(tmp_path):
    heights.draw_heights(tmp_path / "set", n_train=2, n_val=1, size=64, seed=5)
    names = {path.relative_to(tmp_path / "set").as_posix() for path in tmp_path.rglob("*.*")}
    stems = ("train/{}/0001", "train/{}/0002", "val/{}/0001")
    assert names == {s.format("A") + ".png" for s in stems} | {
        s.format("B") + ".tif" for s in stems
    }
    photo, metres = heights.draw_pair(5, "val", 0, size=64)
    assert np.array_equal(Image.open(tmp_path / "set/val/A/0001.png"), photo)
    assert np.array_equal(tifffile.imread(tmp_path / "set/val/B/0001.tif"), metres)


@pytest.mark.parametrize(
    ("dataset", "direction", "expected"),
    [
        ("towns", "AtoB", palettes.TOWNS),
        ("maps", "AtoB", palettes.MAPS),
        ("facades", "AtoB", palettes.FACADES),
        ("towns", "BtoA", None),
        ("facades", "BtoA", None),
        ("night2day", "AtoB", None),
    ],
)
def test_target_palette(dataset, direction, expected):
    assert palettes.known_palettes(dataset, direction)[1] == expected


def test_palettes_hold_distinct_colours():
    for palette in (palettes.TOWNS, palettes.MAPS, palettes.FACADES):
        assert len(set(palette.values())) == len(palette)
