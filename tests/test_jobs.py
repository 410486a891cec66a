"""Pictures are read and written ahead of time, in order, and each failure is told by its file."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.decode import Picture, PictureError
from pictures.jobs import ahead, find_jobs, left_out, save


def test_results_and_failures_come_in_order_and_some_ahead():
    asked = []

    def items() -> Iterator[int | PictureError]:
        for number in range(9):
            asked.append(number)
            yield PictureError({Path("5"): "bad before"}) if number == 5 else number

    def double(number: int) -> int:
        if number == 3:
            raise PictureError({Path("3"): "bad"})
        return 2 * number

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, double, items(), depth=2)
        assert (next(results), asked) == (0, [0, 1, 2])
        assert list(map(str, results)) == [
            *"24",
            "  3: bad",
            "8",
            "  5: bad before",
            "12",
            "14",
            "16",
        ]


def test_what_nobody_waits_for_is_not_begun():
    begun, permits = [], threading.Semaphore(1)

    def work(number: int) -> None:
        begun.append(number)
        permits.acquire(timeout=10)

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, work, range(9), depth=4)
        next(results)
        results.close()
        permits.release(9)
    assert begun in ([0], [0, 1])


RED = Picture(np.full((30, 20, 3), (255, 0, 0), np.uint8))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path):
    (tmp_path / "photos/sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    names = ("1.png", "2.jfif", "3.JPE", "4.gif", "sub/5.npy", "sub/6.avif", "sub/7.avif", "a.txt")
    for name in names:
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos/sub/link").symlink_to(tmp_path / "elsewhere")
    photos, out = str(tmp_path / "photos"), tmp_path / "photos/out"
    for _ in range(2):  # what was written before is not looked at
        jobs = find_jobs(photos, out)
        assert [job.source.name for job in jobs] == ["1.png", "2.jfif", "3.JPE", "5.npy"]
        assert left_out(photos, out, jobs) == (
            f"left out of {photos}: 2 .avif in sub, 1 .gif, 1 linked folder(s) in sub"
        )
        out.mkdir(exist_ok=True)
        (out / "4.gif").touch()
    assert left_out(f"{photos}/*.*", out, find_jobs(f"{photos}/*.*", out)).endswith("*.*: 1 .gif")
    assert left_out(f"{photos}/1.png", out, find_jobs(f"{photos}/1.png", out)) == ""
    for source, held in ((f"{photos}/*.gif", r"1 \.gif"), (photos + "/out", r"1 \.gif")):
        with pytest.raises(ValueError, match=rf"holds no pictures \({held}\); expected"):
            find_jobs(source, tmp_path / "other")


@pytest.mark.parametrize("name", ["out/1.png", "1.tif", "1.jpg"])
def test_a_picture_is_written_whole(tmp_path: Path, name: str):
    save((tmp_path / name, RED))
    assert [path.name for path in tmp_path.rglob("*.*")] == [Path(name).name]
    with Image.open(tmp_path / name) as image:
        assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 1


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (
            errno.ENOSPC,
            OSError,
            r"1\.png cannot be written: no space left on the disk; free some\.",
        ),
        (errno.EACCES, PictureError, r"1\.png: it cannot be written \(Permission denied\)"),
    ],
)
def test_why_a_picture_is_not_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    message: str,
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "Permission denied")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(kind, match=message):
        save((tmp_path / "1.png", RED))
    assert not list(tmp_path.iterdir())
