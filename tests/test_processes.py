"""Runs shared by processes: the run of one, and an end for all whatever happens to one."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, flags
from runs import results

from config import Config
from machine import processes
from machine.processes import LostProcessError, Processes
from machine.stopping import StopRequest, run_script
from samples.towns import draw_towns
from train import train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent there")
CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
# What is slow to import is imported once.
CONTEXT.set_forkserver_preload(
    ["torch", "torchmetrics", "torch.utils.tensorboard", "albumentations", "matplotlib", "tyro"]
)
Fault = Callable[[], None]  # called in a process before it trains


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of 4 steps an epoch, each of 6 of the 24 pairs of towns.

    Classes are left out: there even a batch in another order of sums is soon 1e-3 away. So it is
    at the learning rate of "modern", and at 32 px with its bottleneck.
    """
    draw_towns(tmp_path / "towns", 24, 5, size=64)
    return Config(
        dataset="towns",
        name="a",
        batch_size=6,
        lr=2e-4,
        bottleneck=4,
        checkpoint_minutes=60,
        labels="none",
        **TINY,
    )


def start(
    config: Config,
    count: int,
    faults: dict[int, Fault] | None = None,
    ranks: Sequence[int] | None = None,
) -> list[BaseProcess]:
    """Start the processes of a run, as Slurm does; what they print goes to RANK.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in ranks or range(count):
        fault = (faults or {}).get(rank)
        process = CONTEXT.Process(target=run_one, args=(config, rank, count, port, fault))
        process.start()
        started.append(process)
    return started


def run_one(config: Config, rank: int, count: int, port: int, fault: Fault | None) -> None:
    output = os.open(f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    environment = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(1)
    if fault:
        fault()
    run_script(partial(train, config))


def ended(started: list[BaseProcess], within_s: float = 120) -> list[int]:
    """Return the exit codes of processes that must end in time."""
    ends = time.monotonic() + within_s
    for process in started:
        process.join(max(0, ends - time.monotonic()))
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, said(len(started))
    return [process.exitcode for process in started]


def run(config: Config, count: int, faults: dict[int, Fault] | None = None) -> list[int]:
    return ended(start(config, count, faults))


def said(count: int) -> str:
    return "".join(Path(f"{rank}.txt").read_text() for rank in range(count))


def assert_close(name: str, other: str) -> None:
    (one, rows, _), (many, their_rows, _) = results(name), results(other)
    for network in ("generator", "discriminator", "average"):
        for key, weight in one[network].items():
            torch.testing.assert_close(weight, many[network][key], rtol=0, atol=1e-5)
    assert len(rows) == len(their_rows)
    for row, theirs in zip(rows, their_rows, strict=True):
        assert row.keys() == theirs.keys()
        for key, value in row.items():
            assert float(theirs[key] or 0) == pytest.approx(float(value or 0), rel=1e-5), key


# --- The same run ---
def test_two_processes_make_the_run_of_one(config: Config):
    config = replace(config, n_epochs=13, val_interval=99)  # 56 steps
    train(replace(config, name="one"))
    assert run(replace(config, name="two"), 2) == [0, 0]
    assert "val_accuracy" in results("two")[1][0]
    assert_close("one", "two")
    first, second = (Path(f"{rank}.txt").read_text() for rank in range(2))
    assert first.count("Finished") == first.count("5 val pairs") == 1
    assert second == ""


def test_a_run_goes_on_with_any_number_of_processes(config: Config):
    train(replace(config, name="one"))
    for count, after in ((2, 3), (3, 4), (1, 99)):  # of 12 steps
        codes = run(config, count, {count - 1: partial(signal_after, after, signal.SIGTERM)})
        assert codes == [143 if after < 99 else 0] * count, said(count)
    assert_close("one", "a")


def signal_after(n_checks: int, signum: int) -> None:
    """Let the process signal itself when it looks at its stop request for the n-th time."""
    original, left = StopRequest.check, n_checks

    def check(self: StopRequest) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signum)
        original(self)

    StopRequest.check = check


def test_each_process_draws_noise_of_its_own(config: Config):
    pictures = sorted(Path("towns/train").iterdir())
    for picture in pictures[1:]:
        shutil.copy(pictures[0], picture)
    alike = replace(config, recipe="paper", load_size=32, flip=False, batch_size=2, n_epochs=1)
    alike = replace(alike, n_epochs_decay=0)
    train(replace(alike, name="one", batch_size=1, val_interval=9))
    # With the same noise, two gradients on the same picture would be the same.
    assert run(replace(alike, name="two"), 2) == [0, 0]
    one, two = (results(name)[0]["generator"] for name in ("one", "two"))
    assert not torch.equal(one["decoder.0.1.weight"], two["decoder.0.1.weight"])


# --- What happens to one ends all ---
def test_a_signal_to_one_leaves_one_message_and_a_checkpoint(config: Config):
    assert run(config, 2, {1: partial(signal_after, 2, signal.SIGUSR1)}) == [128 + 10] * 2
    assert said(2).count("Stopped in epoch 1 after step 1 of 4.") == 1
    assert "Traceback" not in said(2)
    state = results("a")[0]
    assert (state["epoch"], state["step"]) == (0, 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_costs_what_came_after_the_checkpoint(
    config: Config, victim: int
):
    config = replace(config, checkpoint_minutes=0)
    train(replace(config, name="one"))
    started = start(replace(config, n_epochs=500), 2)
    ends = time.monotonic() + 60
    while not Path("checkpoints/a/generator.pt").exists() and time.monotonic() < ends:
        time.sleep(0.02)
    time.sleep(random.random() / 2)
    started[victim].kill()
    codes = ended(started, within_s=30)
    assert codes[1 - victim] == 2
    assert said(2).count(f"rank {victim} ended") == 1
    assert "Traceback" not in said(2)
    if results("a")[0]["epoch"] < 3:
        assert run(config, 2) == [0, 0], said(2)
        assert_close("one", "a")


def test_a_picture_that_one_cannot_read_ends_all(config: Config):
    on_the_fly = replace(config, cache_limit_gb=0)
    assert run(on_the_fly, 2, {1: partial(lose_pictures_after, 3)}) == [2, 2]
    assert said(2).count("Error:") == 1
    assert "does not exist" in said(2)
    assert results("a")[0]["step"] == 2


def lose_pictures_after(n_batches: int) -> None:
    """Let the pictures vanish before this process has read its n-th batch."""
    from dataset import PairedImages

    original, left = PairedImages.__getitems__, n_batches

    def read(self: PairedImages, keys: object) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            shutil.rmtree("towns/train")
        return original(self, keys)

    PairedImages.__getitems__ = read


def test_a_loss_that_is_not_finite_ends_all(config: Config):
    train(config)
    before = Path("checkpoints/a/latest.pt").read_bytes()
    assert run(replace(config, lr=1e30, n_epochs=20), 2) == [2, 2]
    assert said(2).count("lower --lr") == 1
    assert Path("checkpoints/a/latest.pt").read_bytes() == before


def test_a_full_disk_ends_all(config: Config):
    assert run(config, 2, {0: fill_disk}) == [2, 2]
    assert said(2).count("no space left on the disk") == 1


def fill_disk() -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    os.fsync = full


# --- The start ---
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 5}, "batch_size 5 cannot be shared evenly by 2 processes"),
        ({"norm": "batch"}, "norm batch takes statistics"),
        ({"dataset": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(config: Config, settings: dict, message: str):
    assert run(replace(config, **settings), 2) == [2, 2]
    assert said(2).count(message) == 1
    assert "Traceback" not in said(2)


def test_other_pairs_are_refused(config: Config):
    assert run(config, 2, {1: see_other_pairs}) == [2, 2]
    assert said(2).count("The processes of rank 1 find other pairs") == 1


def test_other_settings_are_refused(config: Config):
    assert run(config, 2, {1: learn_faster}) == [2, 2]
    assert said(2).count("lr is 0.1 in rank 1, 0.0002 in rank 0") == 1


def learn_faster() -> None:
    module = sys.modules["train"]
    resolve = module.resolve
    module.resolve = lambda config: resolve(replace(config, lr=0.1))


def see_other_pairs() -> None:
    from run.sources import Data

    Data.identity = lambda self: {"train": {}, "val": {}}


def test_what_an_earlier_start_left_is_not_read(monkeypatch: pytest.MonkeyPatch):
    store, found = torch.distributed.HashStore(), {}

    def start_one(rank: int) -> None:
        found[rank] = processes._fresh_part(store, rank, 2)

    for _ in range(2):
        threads = [threading.Thread(target=start_one, args=(rank,)) for rank in (0, 1)]
        threads[0].start()
        time.sleep(0.5)  # the first sees what is old, but takes it for nothing
        threads[1].start()
        for thread in threads:
            thread.join()
        assert not found[1].check(["word"])
        found[0].set("word", "new")
        assert found[1].get("word") == b"new"
    monkeypatch.setattr(processes, "START_S", 0.5)
    with pytest.raises(LostProcessError, match=r"rank 1 did not start"):
        start_one(0)


def test_who_cannot_be_reached(config: Config, monkeypatch: pytest.MonkeyPatch):
    assert ended(start(config, 2, {0: wait_shortly}, ranks=[0])) == [2]
    assert "did not find each other" in Path("0.txt").read_text()


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"RANK": "2"},
        {"RANK": "0", "WORLD_SIZE": "two"},
        {"RANK": "0", "MASTER_PORT": "http"},
        {"RANK": "0", "MASTER_ADDR": ""},
    ],
    ids=lambda said: "-".join(said.values()) or "no rank",
)
def test_an_environment_that_cannot_be_is_told(
    config: Config, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
):
    monkeypatch.delenv("RANK", raising=False)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (place | said).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"The environment says RANK=.* unset WORLD_SIZE"):
        train(config)


def test_a_rank_alone_makes_no_process_silent(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OSError, match="nowhere"):
        train(replace(config, dataset="nowhere"))
    assert "Settings" in capsys.readouterr().out


def wait_shortly() -> None:
    processes.START_S = 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_follow_each_other(count: int):
    shares = [Processes(rank, count).share_of(range(5)) for rank in range(count)]
    assert [item for share in shares for item in share] == [*range(5)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(config: Config):
    train(replace(config, name="one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "--max-restarts", "1", str(ROOT / "train.py")]
    command += flags(dataset="towns", name="a", batch_size=6, labels="none", num_workers=1)
    command += ["--checkpoint-minutes", "0"]
    with open("run.txt", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while not Path("checkpoints/a/generator.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(120) == 0, Path("run.txt").read_text()
    assert re.search(r"Going on in epoch \d after step \d", Path("run.txt").read_text())
    assert_close("one", "a")
