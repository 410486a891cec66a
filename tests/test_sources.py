import shutil
from pathlib import Path

import pytest

import sources
from config import Config, resolve
from sources import find_dataset, open_pairs, split_of


def test_an_existing_folder_wins_over_an_official_name(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "data" / "maps")
    assert find_dataset("maps") == Path("data/maps")
    shutil.copytree(towns, tmp_path / "maps")
    assert find_dataset("maps") == Path("maps")


def test_the_sample_set_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "TOWNS_TRAIN", 2)
    monkeypatch.setattr(sources, "TOWNS_VAL", 1)
    assert find_dataset("towns") == Path("data/towns")
    first = Path("data/towns/train/0001.png").stat().st_mtime_ns
    find_dataset("towns")
    assert Path("data/towns/train/0001.png").stat().st_mtime_ns == first
    assert len(list(Path("data/towns").rglob("*.png"))) == 3


@pytest.mark.parametrize(("dataset", "part"), [("edges2shoes", "README"), ("nowhere", "'nowhere'")])
def test_a_missing_data_set_is_named(dataset: str, part: str):
    with pytest.raises(FileNotFoundError, match=part):
        find_dataset(dataset)


def test_folders_named_by_the_user(towns: Path):
    config, _ = resolve(
        Config(train_dir=str(towns / "val"), val_dir=str(towns / "train"), crop_size=32)
    )
    split = split_of(config)
    assert (len(split.train), len(split.val)) == (2, 8)
    assert open_pairs(config, split.train, augment=True)[0, 0].shape == (6, 32, 32)
