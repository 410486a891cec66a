import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest

import sources
from config import Config, resolve
from sources import find_dataset, open_data, open_pairs, recipe_of, split_of


def test_an_existing_folder_wins_over_an_official_name(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "data" / "maps")
    assert find_dataset("maps") == Path("data/maps")
    shutil.copytree(towns, tmp_path / "maps")
    assert find_dataset("maps") == Path("maps")


def test_the_sample_set_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "N_TRAIN", 2)
    monkeypatch.setattr(sources, "N_VAL", 1)
    assert find_dataset("towns") == Path("data/towns")
    first = Path("data/towns/train/0001.png").stat().st_mtime_ns
    find_dataset("towns")
    assert Path("data/towns/train/0001.png").stat().st_mtime_ns == first
    assert len(list(Path("data/towns").rglob("*.png"))) == 3


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_dataset("nowhere")


def test_only_the_papers_data_sets_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched = []

    def fetch(name: str, *, mirror: str) -> Path:
        fetched.append((name, mirror))
        return Path("data") / name

    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setattr(sources, "draw_towns", lambda *arguments: None)
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
        {"val_dir": "x"},
        {"input_dir": "x"},
        {"target_dir": "x"},
        {"input_dir": "x", "target_dir": "y", "train_dir": "z"},
        {"input_dir": "x", "train_dir": "y"},
    ],
)
def test_folders_named_in_a_way_that_makes_no_sense_are_refused(named: dict[str, str]):
    with pytest.raises(ValueError, match="_dir"):
        Config(**named)


def small(towns: Path, **settings: object) -> Config:
    return resolve(Config(dataset=str(towns), crop_size=32, **settings))[0]


def test_every_data_setting_reaches_the_samples(towns: Path):
    config = small(towns, nearest="both", cache_limit_gb=0.5, seed=7)
    recipe = recipe_of(config, augment=True)
    shared = set(asdict(config)) & set(asdict(recipe))
    assert {name: getattr(recipe, name) for name in shared} == {
        name: getattr(config, name) for name in shared
    }
    assert set(asdict(recipe)) - shared == {"augment"}
    assert (recipe.size, recipe_of(config, augment=False).size) == (config.load_size, 32)


def test_the_data_are_opened_and_described(towns: Path, capsys: pytest.CaptureFixture):
    data = open_data(small(towns, batch_size=3, name="pairs"))
    assert (len(data.train), len(data.val), data.steps_per_epoch) == (8, 2, 2)
    assert (data.picture_size, data.palette) == ((64, 64), None)
    assert data.train[0, 0].shape == (6, 32, 32)
    assert capsys.readouterr().out == ("pairs: 8 train and 2 val pairs, side by side, 128x64\n")


def test_a_batch_larger_than_the_data_set_is_refused(towns: Path):
    with pytest.raises(ValueError, match=r"batch_size 9 .* 8 training pairs.*Set batch_size to 8"):
        open_data(small(towns, batch_size=9))


def test_bad_pictures_of_both_parts_are_listed_together(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "pairs")
    for name in ("train/0003.png", "val/0001.png"):
        (tmp_path / "pairs" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 10 pairs[\s\S]*train/0003[\s\S]*val/0001"):
        open_data(small(tmp_path / "pairs"))
