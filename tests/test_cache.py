"""Pictures are decoded once, into a cache that no damage gets past; bad ones are all named."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_pairs import preparation

from pictures import formats
from pictures.decode import BadPictures
from pictures.layouts import Pair
from pictures.store import PairStore, open_store

Opener = Callable[..., PairStore]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    def build(pairs: list[Pair], **changes: Any) -> PairStore:
        usual = {"load_size": 40, "crop_size": 32, "cache_dir": str(tmp_path / "cache")}
        return open_store(pairs, preparation(**(usual | changes)))

    return build


def save(path: Path, pixels: np.ndarray) -> Pair:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Pair(path)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(folder: Path, n: int, height: int = 40, width: int = 80) -> list[Pair]:
    return [save(folder / f"{i:03}.png", noise(height, width, i)) for i in range(n)]


# Bad pictures


def spoil(folder: Path) -> dict[str, Pair]:
    """Save one picture of each kind that cannot be used."""
    cut = save(folder / "cut.jpg", noise(200, 400))
    cut.a.write_bytes(cut.a.read_bytes()[:-9000])  # its header is whole
    bad = {
        "it cannot be decoded (image file is truncated": cut,
        "an empty file (0 bytes)": Pair(folder / "empty.png"),
        "not a PNG, JPEG, WebP, TIFF, BMP or NumPy picture": Pair(folder / "text.png"),
        "its size of 81x40 has an odd width": save(folder / "odd.png", noise(40, 81)),
        "the picture to learn from is 12x12, smaller than 16x16": save(
            folder / "tiny.png", noise(12, 24)
        ),
        "it does not exist any more": Pair(folder / "gone.png"),
    }
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    return bad


@pytest.mark.parametrize("limit", [16.0, 0.0])
def test_bad_pictures_are_listed_all_at_once(tmp_path: Path, opened: Opener, limit: float) -> None:
    bad = spoil(tmp_path / "bad")
    with pytest.raises(ValueError, match="6 of 8 pairs cannot be used") as caught:
        opened([*draw(tmp_path, 2), *bad.values()], cache_limit_gb=limit)
    assert isinstance(caught.value, BadPictures)
    for reason, pair in bad.items():
        assert f"  {pair.a}: {reason}" in str(caught.value)
    assert "Repair or remove the files listed" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
@pytest.mark.parametrize("limit", [16.0, 0.0])
def test_names_need_not_be_text(tmp_path: Path, opened: Opener, limit: float) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    good, bad = draw(folder, 2), Pair(folder / os.fsdecode(b"\xe4.png"))
    bad.a.touch()
    for _ in range(2):
        store = opened([*good, bad], on_bad_picture="skip", cache_limit_gb=limit)
        assert store.pairs == tuple(good)
        assert r"d\udcff/\udce4.png: an empty file" in store.notes[0].encode().decode()


def test_a_long_list_is_cut(tmp_path: Path, opened: Opener) -> None:
    with pytest.raises(BadPictures, match=r"30 of 30 [\s\S]* and 10 more\n") as caught:
        opened([Pair(tmp_path / f"{i}.png") for i in range(30)])
    assert str(caught.value).count(".png") == 20


@pytest.mark.parametrize("limit", [16.0, 0.0])
def test_bad_pictures_can_be_skipped(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    good, bad = draw(tmp_path, 3), spoil(tmp_path / "bad")
    mixed = [good[0], *bad.values(), good[1], good[2]]
    pairs = opened(mixed, on_bad_picture="skip", cache_limit_gb=limit)
    assert pairs.pairs == tuple(good)
    assert pairs.notes[0].startswith("6 of 9 pairs cannot be used and are left out:\n")
    for reason, pair in bad.items():
        assert f"  {pair.a}: {reason}" in pairs.notes[0]
    alone = opened(good)
    assert alone.sizes == pairs.sizes
    for index in range(3):
        assert np.array_equal(pairs.read(index), alone.read(index))
    forbid_opening(monkeypatch)
    again = opened(mixed, on_bad_picture="skip", cache_limit_gb=limit)
    assert (again.pairs, again.notes) == (pairs.pairs, pairs.notes)
    with pytest.raises(BadPictures, match="6 of 9 pairs"):
        opened(mixed, cache_limit_gb=limit)


def test_there_must_be_a_good_picture_to_skip_to(tmp_path: Path, opened: Opener) -> None:
    bad = list(spoil(tmp_path / "bad").values())
    for _ in range(2):  # decoding, and from what the first time found
        with pytest.raises(BadPictures, match="6 of 6 pairs cannot be used"):
            opened(bad, on_bad_picture="skip")


def test_a_picture_made_readable_is_found_again(tmp_path: Path, opened: Opener) -> None:
    good, (broken,) = draw(tmp_path, 1), draw(tmp_path / "late", 1)
    content = broken.a.read_bytes()
    broken.a.write_bytes(content[:200])
    assert len(opened([*good, broken], on_bad_picture="skip").pairs) == 1
    broken.a.write_bytes(content)
    assert len(opened([*good, broken], on_bad_picture="skip").pairs) == 2


# The cache


def forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(formats, "opened_image", refuse)


def test_pictures_are_decoded_once(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(tmp_path, 3)
    first = opened(drawn, load_size=48)
    forbid_opening(monkeypatch)
    second = opened(drawn, load_size=48)
    assert np.array_equal(first.read(2), second.read(2))
    assert (second.sizes, second.notes) == (first.sizes, first.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"load_size": 44},
        {"direction": "BtoA"},
        {"input_nc": 1},
        {"output_nc": 1},
        {"augment": False},
    ],
)
def test_a_setting_that_changes_the_bytes_makes_another_cache(
    tmp_path: Path, opened: Opener, change: dict[str, Any]
) -> None:
    drawn = draw(tmp_path, 1)
    opened(drawn)
    opened(drawn, **change)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2


def test_a_changed_picture_is_decoded_anew(tmp_path: Path, opened: Opener) -> None:
    (pair,) = draw(tmp_path, 1)
    before = opened([pair], augment=False).read(0).copy()
    save(pair.a, noise(40, 80, seed=9))
    os.utime(pair.a, ns=(1, 1))
    assert not np.array_equal(opened([pair], augment=False).read(0), before)


@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_a_picture_of_the_same_size_and_time_is_decoded_anew(
    tmp_path: Path, opened: Opener, how: str
) -> None:
    pixels = noise(40, 80)
    pair = save(tmp_path / "1.bmp", pixels)
    before, was = opened([pair], augment=False), pair.a.stat()
    pixels[10:20, 10:20] = 0
    new = pair.a if how == "rewritten" else tmp_path / "new.bmp"
    save(new, pixels)
    os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
    new.replace(pair.a)
    assert (pair.a.stat().st_size, pair.a.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    now = opened([pair], augment=False)
    assert now.contents != before.contents
    assert not np.array_equal(now.read(0), before.read(0))


def test_pixels_that_are_damaged_in_the_cache_are_not_learned(
    tmp_path: Path, opened: Opener
) -> None:
    drawn = draw(tmp_path, 3)
    pairs = opened(drawn)
    before = pairs.read(2).copy()
    (file,) = (tmp_path / "cache").glob("*.pixels")
    content = file.read_bytes()
    file.unlink()  # what is open stays as it is
    file.write_bytes(content[:-300] + bytes(100) + content[-200:])
    damaged = opened(drawn)
    assert np.array_equal(damaged.read(0), pairs.read(0))
    with pytest.raises(
        OSError, match=r"cache .*\.pixels is damaged \(002 is not .*same command again"
    ):
        damaged.read(2)
    assert np.array_equal(opened(drawn).read(2), before)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"good": [0]}', '"', "\xff"])
def test_an_index_that_is_none_is_made_anew(tmp_path: Path, opened: Opener, content: str) -> None:
    drawn = draw(tmp_path, 2)
    before = opened(drawn).read(1).copy()
    (file,) = (tmp_path / "cache").glob("*.index")
    file.write_text(content, encoding="latin1")
    assert np.array_equal(opened(drawn).read(1), before)


@pytest.mark.parametrize("suffix", [".pixels", ".index"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, opened: Opener, suffix: str) -> None:
    drawn = draw(tmp_path, 2)
    before = opened(drawn).read(1).copy()
    (file,) = (tmp_path / "cache").glob(f"*{suffix}")
    whole = file.read_bytes()
    damage = [whole[:keep] for keep in (0, 10, -1, -200)]
    damage += [whole[:100] + whole[200:], whole.replace(b"uint8", b"uint16")]
    damage += [bytes(64) + whole[64:]] if suffix == ".index" else []
    for damaged in damage:
        if damaged != whole:
            file.write_bytes(damaged)
            assert np.array_equal(opened(drawn).read(1), before)
            assert file.read_bytes() == whole
    file.unlink()
    assert np.array_equal(opened(drawn).read(1), before)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_cache_holds_the_numbers_of_the_files(tmp_path: Path, opened: Opener) -> None:
    pixels = noise(40, 80)
    opened([save(tmp_path / "1.png", pixels)])
    (file,) = (tmp_path / "cache").glob("*.pixels")
    both = np.dstack([pixels[:, :40], pixels[:, 40:]])
    assert np.array_equal(np.fromfile(file, np.uint8).reshape(40, 40, 6), both)


def test_the_data_folder_is_only_read(tmp_path: Path, opened: Opener) -> None:
    drawn = draw(tmp_path / "data", 2)
    before = sorted((tmp_path / "data").rglob("*"))
    (tmp_path / "data").chmod(0o555)
    opened(drawn).read(0)
    assert sorted((tmp_path / "data").rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), ""),
        (
            OSError(errno.ENOSPC, "No space"),
            r"\.pixels cannot be written: no space.*free some.*limit_gb",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), r"denied\. Set cache_dir [^,]*own$"),
    ],
)
def test_a_build_that_ends_early_leaves_nothing(
    tmp_path: Path,
    opened: Opener,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    message: str,
) -> None:
    def fail(_: int) -> None:
        raise error

    drawn = draw(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt if not message else OSError, match=f"(?i){message}"):
            opened(drawn)
    assert list((tmp_path / "cache").iterdir()) == []
    opened(drawn).read(0)


def test_a_disk_that_is_too_small_is_said_at_once(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = r"\.pixels cannot be written: .*needs 0\.00 GB and 0\.00 GB are free.*cache_limit_gb"
    with pytest.raises(OSError, match=message):
        opened(draw(tmp_path, 2))


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "file").touch()
    message = r"file/cache/.*\.pixels cannot be written: Not a directory\. Set cache_dir to"
    with pytest.raises(OSError, match=message) as caught:
        opened(draw(tmp_path, 1), cache_dir=str(tmp_path / "file/cache"))
    assert "space" not in str(caught.value)


def test_a_cache_that_is_removed_is_named_where_it_is_not_open(
    tmp_path: Path, opened: Opener
) -> None:
    pairs = opened(draw(tmp_path, 2))
    sent = pickle.loads(pickle.dumps(pairs))
    shutil.rmtree(tmp_path / "cache")
    pairs.read(0)
    with pytest.raises(OSError, match=r"^the picture cache .* was removed .* same command again"):
        sent.read(0)


def test_only_old_leftovers_of_killed_builds_are_removed(tmp_path: Path, opened: Opener) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new = folder / ".0123abcd-1-a.part", folder / ".0123abcd-1-b.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    opened(draw(tmp_path, 1))
    assert sorted(p.suffix for p in folder.iterdir()) == [".index", ".part", ".pixels"]
    assert new.exists()


BUILD = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from pictures.cache import PairCache
from pictures.layouts import Pair
from pictures.sides import Side, Sides
from test_pairs import preparation
pairs = [Pair(path) for path in sorted(Path("drawn").iterdir())]
print(int(PairCache(pairs, preparation(300)).read(7).sum()))
"""


def test_two_runs_may_build_at_once_and_one_may_be_killed(tmp_path: Path) -> None:
    draw(tmp_path / "drawn", 150, 100, 200)
    runs = [
        subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE) for _ in range(3)
    ]
    while not list(tmp_path.glob("cache/.*.part")):
        time.sleep(0.001)
    runs[0].kill()
    sums = [run.communicate(timeout=60)[0] for run in runs]
    assert (runs[0].returncode, runs[1].returncode, runs[2].returncode) == (-9, 0, 0)
    assert sums[1] == sums[2]
    assert len(list(tmp_path.glob("cache/*.pixels"))) == 1


def test_above_the_limit_pictures_are_decoded_on_the_fly(tmp_path: Path, opened: Opener) -> None:
    drawn = draw(tmp_path, 3)
    direct = opened(drawn, cache_limit_gb=1e-6)
    assert direct.notes == [
        "the cache would need 0.0 GB, over cache_limit_gb 1e-06: pictures are decoded on the fly"
    ]
    (file,) = (tmp_path / "cache").iterdir()
    assert (file.suffix, file.stat().st_size < 1000) == (".index", True)
    cached = opened(drawn)
    assert cached.notes == []
    assert file.with_suffix(".pixels").stat().st_size == 3 * 40 * 40 * 6
    assert all(np.array_equal(direct.read(index), cached.read(index)) for index in range(3))
    assert opened(drawn, cache_limit_gb=1e-6).notes == []  # what is there is used


def test_workers_are_sent_the_path_and_not_the_pictures(tmp_path: Path, opened: Opener) -> None:
    pairs = opened(draw(tmp_path, 20))
    before = pairs.read(0).copy()
    sent = pickle.dumps(pairs)
    assert len(sent) < 20 * 40 * 40 * 6 / 10
    assert np.array_equal(pickle.loads(sent).read(0), before)
