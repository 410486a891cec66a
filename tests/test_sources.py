import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import CPU

from config import Config
from pictures import cache
from pictures.layouts import Pair, find_pairs
from pictures.pairs import content_of
from recipes import resolve
from run import sources
from run.sources import changes, find_dataset, open_data, open_pairs, preparation_of, split_of


def test_an_existing_folder_wins_over_an_official_name(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "data" / "maps")
    assert find_dataset("maps") == Path("data/maps")
    shutil.copytree(towns, tmp_path / "maps")
    assert find_dataset("maps") == Path("maps")


def test_the_sample_sets_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "N_TRAIN", 2)
    monkeypatch.setattr(sources, "N_VAL", 1)
    assert find_dataset("towns") == Path("data/towns")
    first = Path("data/towns/train/0001.png").stat().st_mtime_ns
    find_dataset("towns")
    assert Path("data/towns/train/0001.png").stat().st_mtime_ns == first
    assert len(list(Path("data/towns").rglob("*.png"))) == 3
    split = find_pairs(find_dataset("heights"))
    assert (len(split.train), len(split.val), split.layout) == (2, 1, "two folders")


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_dataset("nowhere")


def test_only_the_papers_data_sets_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched = []

    def fetch(name: str, *, mirror: str) -> Path:
        fetched.append((name, mirror))
        return Path("data") / name

    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setitem(sources.DRAWN, "towns", lambda *arguments: None)
    find_dataset("towns", "mirror")
    for missing in ("nowhere", "data/maps"):
        with pytest.raises(FileNotFoundError):
            find_dataset(missing, "mirror")
    (tmp_path / "facades").mkdir()
    find_dataset("facades", "mirror")
    assert not fetched
    assert find_dataset("edges2shoes", "mirror") == Path("data/edges2shoes")
    assert fetched == [("edges2shoes", "mirror")]


def test_the_settings_name_the_mirror(towns: Path, tmp_path: Path):
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "maps.tar.gz", "w:gz") as archive:
        archive.add(towns, "maps")
    split = split_of(resolve(Config(dataset="maps", mirror="archives"))[0])
    assert (len(split.train), len(split.val), split.root) == (8, 2, Path("data/maps"))


def test_folders_named_by_the_user(towns: Path):
    config, _ = resolve(
        Config(train_dir=str(towns / "val"), val_dir=str(towns / "train"), crop_size=32)
    )
    split = split_of(config)
    assert (len(split.train), len(split.val)) == (2, 8)
    assert open_pairs(config, split.train, augment=True)[0, 0].shape == (6, 32, 32)


@pytest.mark.parametrize(
    "named",
    [
        {"a": "deep/photos", "b": "deep/labels"},
        {"dataset": "deep", "a": "photos", "b": "labels"},
        {"dataset": "deep", "a": "photos", "b": "labels", "val_dir": "deep/val"},
    ],
)
def test_the_sides_are_named(towns: Path, named: dict[str, str]):
    for side in ("photos", "labels"):
        for part in ("train", "val"):
            shutil.copytree(towns / part, Path("deep", side, part))
    split = split_of(resolve(Config(**named))[0])
    assert (len(split.train), len(split.val), split.layout) == (8, 2, "two folders")
    found = [file.relative_to(file.parents[3]).as_posix() for file in split.val[1].files]
    assert found == ["deep/photos/val/0002.png", "deep/labels/val/0002.png"]


def small(towns: Path, **settings: object) -> Config:
    return resolve(Config(dataset=str(towns), crop_size=32, **settings))[0]


def test_every_data_setting_reaches_the_samples(towns: Path):
    config = small(towns, nearest="both", cache_limit_gb=0.5, seed=7)
    preparation = preparation_of(config, augment=True)
    shared = set(asdict(config)) & set(asdict(preparation))
    assert {name: getattr(preparation, name) for name in shared} == {
        name: getattr(config, name) for name in shared
    }
    assert set(asdict(preparation)) - shared == {"augment", "found_labels", "kinds", "ranged"}
    assert (preparation.size, preparation_of(config, augment=False).size) == (config.load_size, 32)


def test_the_data_are_opened_and_described(towns: Path, capsys: pytest.CaptureFixture):
    data = open_data(small(towns, batch_size=3, name="pairs"), CPU)
    assert (len(data.train), len(data.val), data.steps_per_epoch) == (8, 2, 2)
    assert (data.picture_size, data.sides.target.palette) == ((64, 64), None)
    assert data.train[0, 0].shape == (6, 32, 32)
    assert capsys.readouterr().out == ("pairs: 8 train and 2 val pairs, side by side, 128x64\n")


def test_a_batch_larger_than_the_data_set_is_refused(towns: Path):
    with pytest.raises(ValueError, match=r"batch_size 9 .* 8 training pairs.*Set batch_size to 8"):
        open_data(small(towns, batch_size=9), CPU)


def test_bad_pictures_of_both_parts_are_listed_together(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "pairs")
    for name in ("train/0003.png", "val/0001.png"):
        (tmp_path / "pairs" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 10 pairs[\s\S]*train/0003[\s\S]*val/0001"):
        open_data(small(tmp_path / "pairs"), CPU)


# --- What the pairs are ---
@pytest.fixture
def pairs(towns: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(towns, tmp_path / "pairs"))


def test_where_pairs_lie_may_change(pairs: Path):
    before = open_data(small(pairs), CPU).identity()
    assert {part: len(names) for part, names in before.items()} == {"train": 8, "val": 2}
    pairs.rename("elsewhere")
    Path("link").symlink_to("elsewhere")
    for folder in ("elsewhere", "link"):
        assert changes(before, open_data(small(Path(folder)), CPU).identity()) is None
    named = Config(train_dir="elsewhere/train", val_dir="link/val", crop_size=32)
    assert changes(before, open_data(resolve(named)[0], CPU).identity()) is None
    assert changes({}, before) is None  # a checkpoint that did not tell


def test_changed_pairs_are_named(pairs: Path):
    before = open_data(small(pairs), CPU).identity()
    train = pairs / "train"
    (train / "0001.png").rename(train / "swap.png")
    (train / "0002.png").rename(train / "0001.png")
    (train / "swap.png").rename(train / "0002.png")
    (train / "0003.png").rename(train / "0009.png")
    shutil.copy(train / "0004.png", pairs / "val" / "copy.png")
    shutil.copy(pairs / "val" / "0001.png", pairs / "val" / "0002.png")
    (pairs / "val" / "copy.png").write_bytes((train / "0004.png").read_bytes() + b"?")
    message = changes(before, open_data(small(pairs), CPU).identity())
    for line in (
        "changed in train: 0001.png, 0002.png",
        "missing in train: 0003.png",
        "new in train: 0009.png",
        "changed in val: 0002.png",
        "new in val: copy.png",
    ):
        assert f"  {line}\n" in message
    assert "--init-from" in message


def test_long_lists_of_changes_are_cut():
    many = {f"{number:03}.png": str(number) for number in range(99)}
    message = changes({"train": {"a": "?"}, "val": {}}, {"train": many, "val": {}})
    assert "new in train: 000.png, 001.png" in message
    assert "007.png, and 91 more" in message


def test_validation_pairs_that_were_trained_on_are_refused(pairs: Path):
    before = open_data(small(pairs), CPU).identity()
    (pairs / "train" / "0005.png").rename(pairs / "between.png")
    (pairs / "val" / "0002.png").rename(pairs / "train" / "0005.png")
    (pairs / "between.png").rename(pairs / "val" / "0002.png")
    now = open_data(small(pairs), CPU).identity()
    assert "1 pairs that are now for validation were trained on before: 0002.png" in changes(
        before, now
    )
    twins = {"train": {"a": "1", "b": "2"}, "val": {"c": "1"}}  # the same picture in both parts
    assert "trained on before" not in changes(twins, {"train": {"a": "1"}, "val": {"c": "1"}})


def test_two_files_are_one_content(tmp_path: Path, towns: Path):
    for name in "AB":
        shutil.copytree(towns / "train", tmp_path / "both" / name)
    config = small(tmp_path / "both", check_halves=False)
    before = open_data(config, CPU).identity()
    shutil.copy("both/B/0001.png", "both/B/0002.png")
    assert "0002.png" in changes(before, open_data(config, CPU).identity())


def test_contents_are_read_once(pairs: Path, monkeypatch: pytest.MonkeyPatch):
    before = open_data(small(pairs), CPU).identity()
    monkeypatch.setattr(cache, "content_of", lambda pair: pytest.fail("read again"))
    assert open_data(small(pairs), CPU).identity() == before


def test_a_hash_sees_every_byte(tmp_path: Path):
    def content(*pieces: bytes) -> str:
        (tmp_path / "1.png").write_bytes(b"".join(pieces))
        return content_of(Pair(tmp_path / "1.png"))

    middle = bytes(200_000)
    seen = [content(b"a", middle, b"b"), content(b"A", middle, b"b"), content(b"a", middle, b"B")]
    seen += [content(b"a", middle, b"0b"), content(), content(b"a"), content(bytes(70_000))]
    seen += [content(b"a", middle[:-100_000], b"x", middle[:99_999], b"b")]
    assert len(set(seen)) == len(seen)
    assert content(b"a", middle, b"b") == seen[0]
