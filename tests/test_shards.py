import io
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, TINY
from PIL import Image
from runs import assert_same, results

from config import Config
from dataset import PairedImages
from machine.stopping import Interrupted
from pictures import shards, store
from pictures.decode import BadPictures
from pictures.tars import find_shards, members_of
from recipes import resolve
from run.sources import Data, open_data, preparation_of, split_of
from train import train


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(path: str, files: Mapping[str, bytes]) -> Path:
    """Write a shard as any tool does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Path(path)


def noise(count: int, width: int = 64) -> dict[str, bytes]:
    random = np.random.default_rng(count)
    shape = (32, width, 3)
    return {f"{n:02d}.png": png(random.integers(256, size=shape, dtype="u1")) for n in range(count)}


def settings(dataset: str, **changes: object) -> Config:
    wide = {"check_halves": False, "batch_size": 1}
    return resolve(Config(**(TINY | wide | {"dataset": dataset} | changes)))[0]


def opened(dataset: str, **changes: object) -> Data:
    return open_data(settings(dataset, **changes), CPU)


def samples(pairs: PairedImages, epoch: int = 0) -> list[torch.Tensor]:
    return [pairs[epoch, index] for index in range(len(pairs))]


@pytest.fixture
def sharded(towns: Path) -> Path:
    """The small towns in three shards to train on, one to validate on."""
    for part, shares in (("train", (3, 3, 2)), ("val", (2,))):
        files = iter(sorted((towns / part).iterdir()))
        for number, share in enumerate(shares):
            content = {f"./{file.name}": file.read_bytes() for file in islice(files, share)}
            pack(f"shards/{part}-{number:02d}.tar", content)
    return Path("shards")


# --- The same pairs ---
def test_pairs_in_shards_are_those_of_the_folder_they_were_made_of(towns: Path, sharded: Path):
    ours = opened(f"{sharded}/train-{{00..02}}.tar")
    theirs = opened(str(towns), labels="none", cache_limit_gb=0)
    for images, others in ((ours.train, theirs.train), (ours.val, theirs.val)):
        assert len(images) == len(others) > 0
        assert all(map(torch.equal, samples(images, epoch=1), samples(others, epoch=1)))
    assert (ours.sides, ours.picture_size) == (theirs.sides, theirs.picture_size)


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("{}.a.png", "{}.b.png"), {}),
        (("{}.a.jpg", "{}.b.png"), {}),
        (("{}.photo.png", "{}.map.png"), {"a": "*.photo", "b": "*.map"}),
        (("x/A/{}.png", "x/B/{}.png"), {}),
        (("images/{}.png", "masks/{}.png"), {"a": "images", "b": "masks"}),
        (("long" * 40 + "/ü/A/{}.png", "long" * 40 + "/ü/B/{}.png"), {}),
    ],
)
def test_both_sides_are_told_apart(names: tuple[str, str], changes: dict[str, str]):
    files = {}
    for number in range(4):
        for level, name in zip((10, 200), names, strict=True):
            files[name.format(number)] = png(np.full((32, 32, 3), level + number, "u1"))
    others = {"0.json": b"{}", "0.cls": b"1", ".hidden.png": b"", "__MACOSX/x.png": b""}
    pack("set/train.tar", dict(sorted((files | others).items(), key=lambda item: item[1])))
    split = split_of(settings("set/train.tar", val_fraction=0.25, **changes))
    assert (len(split.train), len(split.val), split.held_out) == (3, 1, True)
    assert split.left_out.endswith(": 1 .cls")
    for pair in (*split.train, *split.val):
        a, b = (np.asarray(Image.open(file.open())) for file in pair.files)
        assert {int(b[0, 0, 0]) - int(a[0, 0, 0])} == {190}
        assert pair.name.startswith("train/")
        assert str(pair.a) == f"{Path('set/train.tar').absolute()}/{pair.a.path}"


def test_a_later_member_of_the_same_name_counts_as_when_unpacked():
    first = noise(4)
    shard = pack("s.tar", first)
    with tarfile.open(shard, "a") as tar:
        member = tarfile.TarInfo("02.png")
        member.size = len(first["00.png"])
        tar.addfile(member, io.BytesIO(first["00.png"]))
    split = split_of(settings("s.tar", val_fraction=0.3))
    content = {pair.name: pair.a.open().read() for pair in (*split.train, *split.val)}
    assert len(content) == 4
    assert content["s/02"] == first["00.png"]


def test_the_data_set_is_called_after_the_folder_of_its_shards():
    assert settings("data/facades/train-{0..9}.tar").name == "facades"
    assert settings("data/facades/train-{0..9}.tar").direction == "BtoA"
    assert settings("elsewhere/train-*.tar").name == "elsewhere"


# --- Held out, and going on ---
def test_pairs_are_held_out_by_name_and_seed_and_stay_so_when_shards_are_added():
    pack("s-0.tar", noise(20))
    pack("s-1.tar", noise(21))
    before, other = (split_of(settings("s-0.tar", seed=seed)) for seed in (0, 1))
    after = split_of(settings("s-{0..1}.tar", val_fraction=2 / 41))
    everything = {f"s-0/{n:02d}" for n in range(20)}
    for split in (before, other):
        train, val = ({pair.name for pair in part} for part in (split.train, split.val))
        assert (len(val), train | val, train & val) == (2, everything, set())
    assert [p.name for p in before.val] != [p.name for p in other.val]
    assert {p.name for p in after.val if p.name[:3] == "s-0"} <= {p.name for p in before.val}
    assert before.train[-1] == before.train[len(before.train) - 1]
    with pytest.raises(IndexError):
        before.train[18]


def test_a_run_goes_on_exactly(sharded: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(**TINY, dataset=f"{sharded}/train-*.tar", batch_size=2, checkpoint_minutes=0)
    train(replace(config, name="whole"))
    steps = []

    def stop(self: object) -> None:
        steps.append(None)
        if len(steps) == 7:  # in the second epoch of three
            raise Interrupted("enough", 15)

    with monkeypatch.context() as patch:
        patch.setattr("machine.stopping.StopRequest.check", stop)
        with pytest.raises(Interrupted):
            train(replace(config, name="parts"))
    train(replace(config, name="parts"))
    whole, parts = results("whole"), results("parts")
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)


def test_other_shards_are_another_data_set(sharded: Path):
    before = opened(f"{sharded}/train-*.tar").identity()
    pack(f"{sharded}/train-02.tar", noise(2))
    now = opened(f"{sharded}/train-*.tar").identity()
    assert {name for name in now["train"] if before["train"][name] != now["train"][name]} == {
        "train-02.tar"
    }


def test_the_index_is_made_once_and_travels_light(monkeypatch: pytest.MonkeyPatch):
    pack("s-0.tar", noise(40))
    first = opened("s-*.tar").train
    with monkeypatch.context() as patch:
        patch.setattr(shards, "members_of", None)
        second = opened("s-*.tar").train
    packed = pickle.dumps(second.store.pairs)
    assert len(packed) < second.store.pairs.rows.nbytes  # as a worker gets it: without the index
    assert [*pickle.loads(packed)] == [*first.store.pairs]
    assert all(map(torch.equal, samples(first), samples(pickle.loads(pickle.dumps(second)))))
    pack("s-0.tar", noise(20))
    assert len(opened("s-*.tar").train) == 18


# --- What is wrong ---
@pytest.fixture
def damaged() -> str:
    """Forty pairs in a shard; two, one of them not looked at beforehand, cannot be used."""
    files = noise(40)
    files["05.png"] = files["05.png"][:90]
    files["20.png"] = b"no picture"
    pack("bad/train.tar", files)
    pack("bad/val.tar", noise(2))
    return "bad/train.tar"


def test_a_picture_that_cannot_be_used_is_named(damaged: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadPictures, match=r"1 of 40.*\n.*train\.tar/20\.png: not a PNG"):
        opened(damaged)
    monkeypatch.setattr(store, "LOOKED_AT", 3)  # 0, 14 and 28
    train = opened(damaged).train
    with pytest.raises(BadPictures, match=r"train\.tar/05\.png.*\n.*on_bad_picture to \"skip\""):
        train[0, 5]


def test_the_next_pair_stands_for_one_that_is_left_out(
    damaged: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    train = opened(damaged, on_bad_picture="skip").train
    for _ in range(2):
        for bad in (5, 20):
            assert np.array_equal(train.whole(bad), train.whole(bad + 1))
    told = capsys.readouterr().err
    assert told.count("train.tar/05.png: ") == told.count("train.tar/20.png: ") == 1
    monkeypatch.setattr(store, "MOST_BAD", 1)
    with pytest.raises(BadPictures):
        train.whole(5)


def test_a_shard_that_is_exchanged_during_a_run_is_named(sharded: Path):
    train = opened(f"{sharded}/train-*.tar").train
    shutil.copyfile(pack("other.tar", noise(1)), sharded / "train-00.tar")
    with pytest.raises(BadPictures, match=r"train-00\.tar/at byte \d+: its shard has changed"):
        samples(train)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.photo.png", "1.map.png"], "name in common: 1.photo.png, 1.map.png.*set a and b"),
        (["1.a.png", "1.b.png", "2.a.png"], r"only in .*s\.tar: 2\.a\.png"),
        (
            ["train/1.png", "val/2.png"],
            r"1 of 2 training pairs or shards are also for validation: .*s\.tar/val/2",
        ),
        (["1.txt"], r"s\.tar and the shards beside it hold no pairs"),
        (["1.png"], "only one pair"),
    ],
)
def test_names_that_make_no_pairs_are_explained(names: list[str], message: str):
    pack("s.tar", {name: noise(1)["00.png"] for name in names})
    with pytest.raises(ValueError, match=message):
        split_of(settings("s.tar"))


def test_shards_that_cannot_go_together_are_refused(sharded: Path):
    two = {f"{n}.{side}.png": noise(1, 32)["00.png"] for n in range(2) for side in "ab"}
    pack("mixed/train-0.tar", two)
    pack("mixed/train-1.tar", noise(2))
    pack("apart/train-0.tar", two)
    pack("apart/val-0.tar", noise(2))
    Path("apart/link.tar").symlink_to("train-0.tar")
    for dataset, changes, message in (
        ("mixed/train-*.tar", {}, r"both halves in .*-1\.tar, and each has its own in .*-0\.tar"),
        ("apart/train-0.tar", {}, "have different layouts"),
        (
            "apart/[tv]*.tar",
            {},
            r"1 of 2 training pairs or shards are also for validation: .*val-0\.tar",
        ),
        (
            "mixed/train-*.tar",
            {"val_dir": "mixed/train-1.tar"},
            "1 of 2 training pairs or shards are also .*-1.tar",
        ),
        (
            "apart/train-0.tar",
            {"val_dir": "apart/link.tar"},
            "1 of 1 training pairs or shards are also .*-0.tar",
        ),
        ("apart/train-0.tar", {"train_dir": "elsewhere"}, "consists of shards, so train_dir"),
        ("apart/train-0.tar", {"val_dir": "apart"}, "apart names no shards"),
    ):
        with pytest.raises(ValueError, match=message):
            split_of(settings(dataset, **changes))


def with_size(content: bytes, start: int, size: int) -> bytes:
    """Return a tar file with another size in the header at a byte."""
    header = tarfile.TarInfo.frombuf(content[start : start + 512], "utf-8", "strict")
    header.size = size
    return content[:start] + header.tobuf(tarfile.GNU_FORMAT) + content[start + 512 :]


@pytest.mark.parametrize("size", [-512, -1, -(2**40), 2**50])
def test_a_size_that_cannot_be_does_not_hang(size: int):
    shard = pack("s.tar", noise(4))
    start = [member.offset for _, member in members_of(shard)][2]
    shard.write_bytes(with_size(shard.read_bytes(), start, size))
    with pytest.raises(ValueError, match=r"s\.tar is no tar file, or damaged"):
        split_of(settings("s.tar", on_bad_picture="skip"))


def test_a_compressed_shard_is_called_so():
    with tarfile.open("s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(ValueError, match=r"s\.tar is compressed.*Unpack"):
        split_of(settings("s.tar"))


def test_a_name_may_begin_as_compressed_files_do():
    pack("s.tar", {f"BZh{name}": content for name, content in noise(3).items()})
    assert len(split_of(settings("s.tar")).train) == 2


def test_links_in_a_shard_are_told_of():
    shard = pack("s.tar", {f"{n}.a.png": noise(1)["00.png"] for n in range(3)})
    with tarfile.open(shard, "a") as tar:
        for number in range(3):
            link = tarfile.TarInfo(f"{number}.b.png")
            link.type, link.linkname = tarfile.LNKTYPE, "0.a.png"
            tar.addfile(link)
    with pytest.raises(ValueError, match=r"do not pair up(.|\n)*3 members of .* are links.*deref"):
        split_of(settings("s.tar", a="*.a", b="*.b"))


def test_pictures_without_a_partner_may_be_left_out():
    names = ("1.a.png", "1.b.png", "2.a.png", "2.b.png", "3.a.png", "4.b.png")
    pack("s.tar", {name: noise(1, 32)["00.png"] for name in names})
    with pytest.raises(ValueError, match=r"only in .*s\.tar: 3\.a\.png\n.*: 4\.b\.png"):
        split_of(settings("s.tar"))
    split = split_of(settings("s.tar", on_bad_picture="skip"))
    assert sorted(pair.name for pair in (*split.train, *split.val)) == ["s/1.a", "s/2.a"]
    assert "3.a.png" in split.left_out


def test_shards_of_one_name_are_told_apart():
    for folder in "xy":
        pack(f"{folder}/s.tar", noise(3 if folder == "x" else 4))
    before = opened("[xy]/s.tar")
    names = {pair.name for pair in (*before.train.store.pairs, *before.val.store.pairs)}
    assert names == {f"x/s/{n:02d}" for n in range(3)} | {f"y/s/{n:02d}" for n in range(4)}
    pack("x/s.tar", dict(zip(noise(3), noise(4).values(), strict=False)))
    now = opened("[xy]/s.tar").identity()["train"]
    changed = {name for name in now if now[name] != before.identity()["train"][name]}
    assert changed == {"x/s.tar"}


def test_what_was_painted_over_in_a_shard_is_noticed():
    shard = pack("s.tar", noise(4))
    before = opened("s.tar").identity()
    content, time = bytearray(shard.read_bytes()), shard.stat().st_mtime_ns
    content[5000:5010] = bytes(10)
    Path("new.tar").write_bytes(content)
    os.utime("new.tar", ns=(time, time))
    Path("new.tar").replace("s.tar")
    assert opened("s.tar", on_bad_picture="skip").identity() != before


@pytest.mark.parametrize("damage", ["index", "notes", "index gone", "notes []"])
def test_a_damaged_index_is_made_again(damage: str):
    pack("s.tar", noise(12))
    split = split_of(settings("s.tar", cache_dir="cache"))
    before = [*split.train], split.val
    (index,), (notes,) = Path("cache").glob("*.npy"), Path("cache").glob("*.index")
    if damage == "index":
        content = bytearray(index.read_bytes())
        content[-40:] = bytes(40)
        index.write_bytes(content)
    elif damage == "index gone":
        index.unlink()
    else:
        notes.write_text("[]" if damage == "notes []" else notes.read_text().replace("2", "3"))
    now = split_of(settings("s.tar", cache_dir="cache"))
    assert ([*now.train], now.val) == before


@pytest.mark.parametrize("damage", ["cut", "cut between", "overwritten", "joined", "no tar"])
def test_a_damaged_shard_is_named_and_loses_no_pair_in_silence(damage: str):
    shard = pack("s.tar", noise(4))
    content = bytearray(shard.read_bytes())
    starts = [member.offset for _, member in members_of(shard)]
    if damage == "cut":
        del content[starts[-1] + 700 :]
    elif damage == "cut between":
        del content[starts[-1] :]
    elif damage == "overwritten":
        content[starts[2] : starts[2] + 512] = b"x" * 512
    elif damage == "joined":
        content = content * 2
    else:
        content[:] = noise(1)["00.png"]
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.tar is no tar file, or damaged, or several joined"):
        split_of(settings("s.tar"))


def test_patterns_name_shards():
    for name in ("t-08", "t-09", "t-10", "u", "{0..1}"):
        pack(f"d/{name}.tar", noise(1))
    names = {pattern: [p.stem for p in find_shards(f"d/{pattern}.tar")] for pattern in ("u", "t-*")}
    assert names == {"u": ["u"], "t-*": ["t-08", "t-09", "t-10"]}
    assert [p.stem for p in find_shards("d/t-{08..10}.tar")] == ["t-08", "t-09", "t-10"]
    Path("d/v.tar").symlink_to("u.tar")
    assert [p.stem for p in find_shards("d/[uv].tar")] == ["u"]  # one shard, named twice
    for pattern, message in (
        ("d/t-{07..12}.tar", r"Of the 6 shards .* 3 do not exist:\n.*t-07"),
        ("d/x-*.tar", "There are no shards"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find_shards(pattern)
    with pytest.raises(
        ValueError, match=r"no pictures .6 \.tar.*the data set, as 'd/train-\*\.tar'"
    ):
        split_of(settings("d"))
    for pattern, message in (
        ("d/t-{08..10}.tar.gz", "compressed"),
        ("d/t-{0..99999999999}.tar", "stands for more than 1000000 shards"),
        ("https://x.org/t-{08..10}.tar", "is an address, but shards must be local files"),
        ("s3://x/t.tar", "is an address, but shards must be local files"),
    ):
        with pytest.raises(ValueError, match=message):
            split_of(settings(pattern))


def test_an_index_that_cannot_be_written_says_what_to_set(sharded: Path):
    Path("file").touch()
    with pytest.raises(OSError, match=r"index of the shards.*cannot be written.*cache_dir"):
        split_of(settings(f"{sharded}/train-*.tar", cache_dir="file/cache"))


def test_recipes_of_both_kinds_read_alike(sharded: Path):
    config = settings(f"{sharded}/train-*.tar", direction="BtoA", input_nc=1, keep_aspect=True)
    split = split_of(config)
    ours = PairedImages(split.train, preparation_of(config, augment=True))
    theirs = PairedImages(split.train[:], preparation_of(config, augment=True))  # as a cache
    assert all(map(torch.equal, samples(ours), samples(theirs)))
