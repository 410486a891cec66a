"""Batches come from other processes as from one, and nothing that happens to those can hang it."""

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from machine import workers
from machine.workers import batches_from_workers
from pictures.decode import BadPictures, PictureError  # as what a data set raises

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals and forks")
HEAD = f"import os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"


class UnsendableError(ValueError):
    """An error that pickle takes apart and cannot put together again."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


class Numbers:
    """Batches of a number each; where one has an event, that happens first in the worker."""

    def __init__(self, dtype: torch.dtype = torch.uint8, **events: object) -> None:
        self.dtype, self.main = dtype, os.getpid()
        self.events = {int(key[1:]): event for key, event in events.items()}

    def __getitems__(self, key: int) -> torch.Tensor:
        if os.getpid() != self.main and key in self.events:
            self.events[key]()
        return torch.full((2, 3, 5), key).to(self.dtype)


def numbers(batches: Iterator[torch.Tensor]) -> list[int]:
    return [int(batch[1, 2, 4]) for batch in batches]


def kill(signum: int) -> None:
    faulthandler.disable()  # pytest's would print a page
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.05)
    monkeypatch.setattr(workers, "SILENT_S", 0.4)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert not active_children()


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 20])
def test_batches_come_in_order(n_workers: int, n_tasks: int):
    kept = [*batches_from_workers(Numbers(), range(n_tasks), n_workers, method="fork")]
    assert numbers(kept) == [*range(n_tasks)]  # and none was overwritten later


def test_every_bit_of_a_batch_arrives():
    class Noise:
        def __getitems__(self, key: int) -> torch.Tensor:
            drawn = np.random.default_rng(key).integers(0, 65536, (4, 3, 8, 8), np.uint16)
            return torch.from_numpy(drawn)

    for number, batch in enumerate(batches_from_workers(Noise(), range(9), 2, method="fork")):
        assert batch.dtype == torch.uint16
        assert torch.equal(batch, Noise().__getitems__(number))


def test_work_is_done_ahead_and_no_further(tmp_path: Path):
    class Marking(Numbers):
        def __getitems__(self, key: int) -> torch.Tensor:
            (tmp_path / str(key)).touch()
            return super().__getitems__(key)

    with closing(batches_from_workers(Marking(), range(99), 2, method="fork")) as batches:
        next(batches)
        time.sleep(0.3)
        assert {int(path.name) for path in tmp_path.iterdir()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "error",
    [
        BadPictures([PictureError({Path("a.png"): "bad"})], 9),
        OSError("the cache was removed"),
        MemoryError("too large"),
    ],
)
def test_what_goes_wrong_over_there_is_raised_here(error: Exception):
    def fail() -> None:
        raise error

    batches = batches_from_workers(Numbers(_5=fail), range(9), 2, method="fork")
    assert numbers(next(batches) for _ in range(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert str(caught.value) == str(error)


def test_a_mistake_over_there_is_raised_with_its_place():
    batches = batches_from_workers(Numbers(_1=lambda: 1 / 0), range(9), 1, method="fork")
    next(batches)
    with pytest.raises(ZeroDivisionError) as caught:
        next(batches)
    assert "lambda: 1 / 0" in str(caught.value.__cause__)


def test_what_cannot_be_sent_comes_in_words():
    def fail() -> None:
        raise UnsendableError("a hole", "a picture")

    batches = batches_from_workers(Numbers(_1=fail), range(9), 1, method="fork")
    next(batches)
    with pytest.raises(RuntimeError, match=r"^UnsendableError: a hole in a picture$"):
        next(batches)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda: kill(signal.SIGKILL), "ended from outside.*same command.*fewer --num-workers"),
        (lambda: kill(signal.SIGTERM), "ended from outside"),
        (lambda: kill(signal.SIGBUS), r"/dev/shm.*--num-workers 0.*--shm-size"),
        (lambda: os._exit(3), "ended by itself; what it said stands above"),
        (lambda: kill(signal.SIGSTOP), "silent for long: it was stopped.*--num-workers 0"),
        (lambda: time.sleep(60), "silent for long"),
    ],
)
def test_a_worker_that_is_gone_or_silent_ends_the_waiting(event: object, message: str):
    batches = batches_from_workers(Numbers(_4=event), range(9), 2, method="fork")
    assert numbers(next(batches) for _ in range(4)) == [0, 1, 2, 3]
    began = time.monotonic()
    with pytest.raises(OSError, match=message):
        next(batches)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("event", [lambda: kill(signal.SIGKILL), lambda: kill(signal.SIGSTOP)])
def test_a_stop_request_is_seen_while_a_batch_is_waited_for(event: object):
    def check() -> None:
        if time.monotonic() - began > 0.2:
            raise InterruptedError

    batches = batches_from_workers(Numbers(_1=event), range(9), 1, check=check, method="fork")
    next(batches)
    began = time.monotonic()
    if event.__code__.co_names[-1] == "SIGKILL":
        began -= 1  # the request came with the end of the worker
    with pytest.raises(InterruptedError):
        next(batches)


def test_signals_to_the_group_are_left_to_the_main_process():
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a fork inherits
    try:
        batches = batches_from_workers(Numbers(), range(200), 1, method="fork")
        next(batches), next(batches)  # the second one comes from the worker
        (worker,) = active_children()
        assert os.getpgid(worker.pid) != os.getpgrp()
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU):
            os.kill(worker.pid, signum)
        assert numbers(next(batches) for _ in range(98)) == [*range(2, 100)]
        worker.terminate()
        worker.join(5)
        assert not worker.is_alive()
        batches.close()
    finally:
        signal.signal(signal.SIGTERM, handler)


# --- Whole programs ---
def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    Path("script.py").write_text(HEAD + code)
    return subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=60, **options
    )


STOPPED = """
from multiprocessing import active_children
from test_workers import Numbers, batches_from_workers
batches = batches_from_workers(Numbers(), range(99), 2, method="fork")
next(batches)
for worker in active_children():
    print(worker.pid)
    os.kill(worker.pid, signal.SIGSTOP)
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_ends_though_its_workers_are_stopped():
    began = time.monotonic()
    done = run(STOPPED + "sys.exit(7)")
    assert (done.returncode, done.stderr) == (7, "")
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    assert not any(map(is_running, pids))
    assert time.monotonic() - began < 30


def test_workers_end_with_a_main_process_that_is_killed():
    code = STOPPED.replace("SIGSTOP", "SIGINT") + "sys.stdout.flush(); os.kill(os.getpid(), 9)"
    pids = [int(line) for line in run(code).stdout.split()]
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(is_running, pids))


def test_a_script_without_a_guard_is_told_so():
    # Spawned, the worker runs the script again, and with it this very line.
    batches = "batches_from_workers(Numbers(), range(5), 1, method='spawn')"
    done = run(f"from test_workers import *; [*{batches}]")
    assert done.returncode == 1
    assert 'below the line if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert "memory" not in done.stderr


@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="mounts a small disk of its own"
)
def test_a_full_dev_shm_is_no_hindrance():
    code = "print(numbers(batches_from_workers(Numbers(), range(5), 2, method='fork')))"
    Path("script.py").write_text(f"{HEAD}from test_workers import *; {code}")
    mount = "mount -t tmpfs -o size=4k none /dev/shm 2>/dev/null || exit 77; "
    mount += 'head -c 4096 /dev/zero > /dev/shm/full; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode in (1, 77) and not done.stdout and "Traceback" not in done.stderr:
        pytest.skip("may not mount")
    assert done.stdout == "[0, 1, 2, 3, 4]\n", done.stderr
