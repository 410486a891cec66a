import shutil
import tarfile
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
