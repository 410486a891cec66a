"""Files and folders are whole or absent, whatever happens, and a full disk is told by its name."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from machine import disk
from machine.disk import (
    check_space,
    is_full,
    make_folder,
    move_aside,
    reason_of,
    remove_drafts,
    sealed,
    unsealed,
    whole_file,
    whole_folder,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_replaces_another_once_it_is_whole(tmp_path: Path):
    path = tmp_path / "new" / "scores.csv"
    for content in ("first", "second"):
        with whole_file(path) as draft:
            draft.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert listing(tmp_path) == ["new", "new/scores.csv"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad"), OSError(5, "I/O")])
def test_what_fails_leaves_the_old_file(tmp_path: Path, error: BaseException):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, whole_file(path) as draft:
        draft.write_text("half")
        raise error
    assert caught.value is error
    assert (path.read_text(), listing(tmp_path)) == ("old", ["file"])


@pytest.mark.parametrize("torch_says", [False, True])
def test_a_full_disk_is_named_with_the_file(tmp_path: Path, torch_says: bool):
    error = RuntimeError("unexpected pos 704 vs 598") if torch_says else FULL
    message = r"No space left on device.*new\.pt"
    with pytest.raises(OSError, match=message) as caught, whole_file(tmp_path / "new.pt"):
        raise error
    assert is_full(caught.value)
    assert caught.value.filename == str(tmp_path / "new.pt")


def test_another_file_on_a_full_disk_keeps_its_name(tmp_path: Path):
    with pytest.raises(OSError, match="/other/disk"), whole_file(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device", "/other/disk")


def test_the_longest_name_can_be_written(tmp_path: Path):
    with whole_file(tmp_path / ("ä" * 120)) as draft:
        draft.write_text("")
    assert len(listing(tmp_path)) == 1


def test_threads_may_write_the_same_file(tmp_path: Path):
    def write(text: str) -> None:
        for _ in range(20):
            with whole_file(tmp_path / "file") as draft:
                draft.write_text(text * 1000)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set((tmp_path / "file").read_text()) in ({"a"}, {"b"})
    assert listing(tmp_path) == ["file"]


def test_a_folder_appears_whole(tmp_path: Path):
    with whole_folder(tmp_path / "set") as draft:
        (draft / "1").touch()
        assert not (tmp_path / "set").exists()
    assert listing(tmp_path) == ["set", "set/1"]
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "other") as draft:
        (draft / "1").touch()
        raise KeyboardInterrupt
    assert listing(tmp_path) == ["set", "set/1"]


def test_the_folder_of_another_process_is_kept(tmp_path: Path):
    with whole_folder(tmp_path / "set") as draft:
        (draft / "mine").touch()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").touch()
    assert listing(tmp_path) == ["set", "set/theirs"]


LONG_AGO = time.time() - disk.STALE_S - 9
OLD, BUSY = ".0123abcd-12-9f.part", ".89ab0000-34-a.part"


def test_only_drafts_of_the_dead_are_removed(tmp_path: Path):
    kept = [".hidden", ".thesis-final.part", f"{OLD}2", f"x{OLD}", "a.part"]
    for name in (OLD, *kept):
        (tmp_path / name).write_text("")
    for name in (f"{OLD[:-5]}0.part", BUSY):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for path in tmp_path.rglob("*"):
        if path != tmp_path / BUSY / "file":
            os.utime(path, (LONG_AGO, LONG_AGO))
    remove_drafts(tmp_path)
    assert listing(tmp_path) == sorted([BUSY, f"{BUSY}/file", *kept])


def test_in_folders_of_the_user_nothing_is_removed(tmp_path: Path):
    with whole_folder(tmp_path / "set") as draft:
        own = draft.name.partition("-")[0] + "-1-1.part"  # an earlier draft of the same folder
    shutil.rmtree(tmp_path / "set")
    for name in (OLD, own):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    make_folder(tmp_path)
    with whole_file(tmp_path / "file") as draft:
        draft.touch()
    assert listing(tmp_path) == sorted(["file", OLD, own])
    with whole_folder(tmp_path / "set"):
        pass
    assert listing(tmp_path) == sorted(["file", "set", OLD])


def test_a_full_disk_is_named_with_the_folder(tmp_path: Path):
    with pytest.raises(OSError, match="/set'") as caught, whole_folder(tmp_path / "set"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "set")


@pytest.mark.parametrize("text", ["[]", "{}", "", "null", "00000000\n[]", "[" * 10**5, "\xff"])
def test_what_was_sealed_is_known_by_its_checksum(tmp_path: Path, text: str):
    path, content = tmp_path / "index", {"a": [1, 0.1, None, {"\udcff": True}]}
    assert unsealed(path) is None
    path.write_text(sealed(content))
    assert unsealed(path) == content
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert unsealed(path) is None
    path.write_text(text, encoding="latin1")
    assert unsealed(path) is None


def test_a_killed_process_leaves_what_the_next_can_remove(tmp_path: Path):
    code = "import os, pathlib; from machine import disk\n"
    code += "with disk.whole_file(pathlib.Path('file')) as draft: draft.touch(); os._exit(9)"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert len(listing(tmp_path)) == 1
    remove_drafts(tmp_path, stale_s=0)
    assert listing(tmp_path) == []


def test_a_folder_is_made_and_tried(tmp_path: Path):
    assert make_folder(tmp_path) == tmp_path
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert listing(tmp_path) == ["a", "a/b"]


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a cannot be written to \(Not a directory\)"):
        make_folder(tmp_path / "file" / "a")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(OSError, match=r"link is a link to gone, which does not exist; mend the l"):
        make_folder(tmp_path / "link")

    def fail(dir: Path) -> None:
        raise error

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", fail)
    error = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError, match=r"\(Permission denied\); start in a folder of your own"):
        make_folder(tmp_path)
    error = FULL
    with pytest.raises(OSError, match=r"\(no space left on the disk\); free some\.$"):
        make_folder(tmp_path)


def test_space_is_checked_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("usage", (), {"free": 2_000_000_000})
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    check_space(tmp_path / "not" / "yet", 2e9)
    assert asked == [tmp_path]
    with pytest.raises(
        OSError, match=r"^data needs 3\.00 GB and 2\.00 GB are free; free some\.$"
    ) as caught:
        check_space(Path("data"), 3e9)
    assert is_full(caught.value)


def test_folders_are_moved_aside_together(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a", "b", "b.old1"):
        (tmp_path / name).mkdir()
    move_aside(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert listing(tmp_path) == ["a.old2", "b.old1", "b.old2"]
    assert f"{tmp_path / 'a'} is now {tmp_path / 'a.old2'}." in capsys.readouterr().out


def test_reasons_are_short():
    assert reason_of(FULL) == "no space left on the disk"
    assert reason_of(PermissionError(13, "Permission denied", "x")) == "Permission denied"
    assert reason_of(RuntimeError("unexpected pos 704 vs 598")) == "no space left on the disk"
    assert reason_of(ValueError("odd")) == "odd"
    assert reason_of(EOFError()) == "EOFError"


@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0,
    reason="mounts a small disk of its own",
)
def test_torch_on_a_disk_that_is_really_full(tmp_path: Path):
    code = (
        "import pathlib, torch; from machine import disk\n"
        "path = pathlib.Path('small/new.pt')\n"
        "try:\n"
        "    with disk.whole_file(path) as draft: torch.save(torch.zeros(10**6), draft)\n"
        "except OSError as e: print(disk.is_full(e), e.filename, *path.parent.iterdir())\n"
    )
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=1m none small 2>/dev/null || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("may not mount")
    assert done.stdout == "True small/new.pt\n", done.stderr
