import csv
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU, PHOTOS, ROOT, TINY, flags, script
from runs import assert_same, results

from config import Config
from machine.devices import choose_machine
from machine.stopping import Interrupted, StopRequest
from recipes import known_sides, resolve
from run import checkpoints as saving
from run.checkpoints import DivergedError
from run.report import Report
from run.sources import open_data
from run.state import new_state
from train import train
from utils import CheckpointError, load_generator


def test_kill_9_at_any_moment_costs_nothing_but_time(towns: Path):
    often = {"checkpoint_minutes": 0, "n_epochs": 5, "val_interval": 99}
    config = Config(dataset=str(towns), name="killed", **TINY | often)
    train(replace(config, name="whole"))
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *flags(dataset=towns, name="killed", **often),
    ]
    dice = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waiting_until = time.monotonic() + 60
        checkpoint = Path("checkpoints/killed/generator.pt")
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while time.monotonic() < waiting_until and process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.6))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    train(config)
    for one, other in zip(results("whole"), results("killed"), strict=True):
        assert_same(one, other)


def long_run(**settings: object) -> subprocess.Popen[str]:
    """Start a run called s that would take long, and wait for the end of its first epoch."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags(n_epochs=4000, name="s", **settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Path("evaluation/s/metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent there")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(towns: Path, signum: int, code: int):
    process = long_run(dataset=towns)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "give the same command to go on" in errors
    assert "Traceback" not in errors
    assert Path("checkpoints/s/latest.pt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("main_too", [True, False])
def test_a_signal_to_the_workers_leaves_a_checkpoint(towns: Path, main_too: bool):
    process = long_run(dataset=towns, num_workers=2, checkpoint_minutes=60)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for pid in [*map(int, children), *([process.pid] if main_too else [])]:
        os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in ((2, 143) if main_too else (2,))
    assert "ive the same command to go on" in errors
    assert "Traceback" not in errors
    assert Path("checkpoints/s/latest.pt").exists()


def test_other_settings_are_refused_all_at_once(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    other = script("train.py", *flags(dataset=towns, name="a", lambda_l1=10, ngf=8, n_epochs=9))
    assert other.returncode == 2
    assert other.stdout == ""
    assert "lambda_l1: 25.0 in the checkpoint, 10.0 now" in other.stderr
    assert "ngf: 4 in the checkpoint, 8 now" in other.stderr
    assert "n_epochs" not in other.stderr
    train(replace(config, ngf=8), fresh=True)
    assert Path("checkpoints/a.old1/latest.pt").exists()
    assert Path("evaluation/a.old1/metrics.csv").exists()


def test_more_epochs_go_on(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    train(replace(config, n_epochs=3))
    assert [row["epoch"] for row in results("a")[1]] == ["1", "2", "3", "4"]


def test_a_damaged_checkpoint_is_named_and_the_previous_used(
    towns: Path, capsys: pytest.CaptureFixture[str]
):
    config = Config(dataset=str(towns), name="a", checkpoint_minutes=0, **TINY)
    train(config)
    latest = Path("checkpoints/a/latest.pt")
    content = bytearray(latest.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 999)  # more than padding
    content[middle] = bytes(byte ^ 0xFF for byte in content[middle])
    latest.write_bytes(content)
    train(config)
    output = capsys.readouterr().out
    assert f"{latest} is damaged" in output
    assert "previous.pt" in output


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


def test_the_only_whole_checkpoint_is_never_removed(towns: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(dataset=str(towns), name="a", checkpoint_minutes=0, **TINY)
    train(config)
    whole = Path("checkpoints/a/previous.pt").read_bytes()
    damage(Path("checkpoints/a/latest.pt"))
    FullDisk(monkeypatch, Path("checkpoints/a/generator.pt").stat().st_size + 100)
    with pytest.raises(OSError, match="no space left"):
        train(replace(config, n_epochs=3))
    assert Path("checkpoints/a/previous.pt").read_bytes() == whole


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda c: c.pop("optimizer_g"), "lacks optimizer_g"),
        (lambda c: c.pop("pairs"), "lacks pairs"),
        (lambda c: c.update(step=-1), "step is -1"),
        (lambda c: c.update(epoch="two"), "epoch is 'two'"),
        (lambda c: c.update(seconds=math.nan), "seconds is nan"),
        (lambda c: c["totals"].update(l1=torch.tensor(math.inf)), "totals is"),
        (lambda c: c["generator"].popitem(), "weights are not those of its settings"),
        (lambda c: c["discriminator"].update({"layers.0.weight": torch.zeros(1)}), "the shape"),
        (lambda c: c["average"]["encoder.0.1.weight"].fill_(math.nan), "infinite or NaN"),
        (lambda c: c["optimizer_d"]["state"][0].update(exp_avg=torch.zeros(1)), "exp_avg 0"),
        (lambda c: c["optimizer_g"]["state"].clear(), "optimiser has lost its state"),
        (lambda c: c["optimizer_g"]["state"].pop(3), "state of all its weights"),
        (lambda c: c["optimizer_d"]["state"][1]["exp_avg_sq"].sub_(1), "weights 1 is impossible"),
        (lambda c: c.update(pairs=[]), "what the pairs are"),
        (lambda c: c.update(step=9), "step 9 of 8"),
        (lambda c: c["totals"].update({5: torch.tensor(1.0)}), "totals is"),
        (lambda c: c["config"].update(ngf="many"), "ngf is 'many'"),
        (lambda c: c.update(config=3), "cannot be used"),
        (lambda c: c.update(sides=None), "cannot be used"),
    ],
)
def test_half_a_checkpoint_is_refused_by_what_it_lacks(towns: Path, harm: Callable, said: str):
    config = Config(dataset=str(towns), name="a", **TINY | {"n_epochs": 1, "n_epochs_decay": 0})
    train(config)
    content = torch.load("checkpoints/a/latest.pt", weights_only=True)
    content |= {"epoch": 0, "step": 8, "totals": {"l1": torch.tensor(0.1)}}
    harm(content)
    for name in ("latest", "previous"):
        torch.save(content, f"checkpoints/a/{name}.pt")
    with pytest.raises(CheckpointError, match=said) as caught:
        train(replace(config, n_epochs=2))
    assert "checkpoints/a/latest.pt" in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes among files")
def test_what_is_no_file_does_not_hide_the_checkpoint_before(
    towns: Path, capsys: pytest.CaptureFixture[str]
):
    config = Config(dataset=str(towns), name="a", checkpoint_minutes=0, **TINY)
    train(config)
    latest = Path("checkpoints/a/latest.pt")
    latest.unlink()
    os.mkfifo(latest)
    train(config)
    assert re.search(r"latest\.pt is no file.*\n.*previous\.pt instead", capsys.readouterr().out)


def test_going_on_from_something_older_is_told(towns: Path, capsys: pytest.CaptureFixture[str]):
    config = Config(dataset=str(towns), name="a", checkpoint_minutes=0, **TINY)
    train(config)
    latest = Path("checkpoints/a/latest.pt")
    latest.unlink()
    train(config)
    assert re.search(
        r"latest\.pt is gone\.\n.*previous\.pt instead, of 20", capsys.readouterr().out
    )
    shutil.copy("checkpoints/a/generator.pt", latest)
    train(config)
    assert re.search(r"latest\.pt lacks average, .*\n.*previous", capsys.readouterr().out)


def test_a_loss_that_is_not_finite_stops_the_run(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    before = Path("checkpoints/a/latest.pt").read_bytes()
    with pytest.raises(DivergedError, match="lower --lr"):
        train(replace(config, lr=1e30, n_epochs=20))
    assert Path("checkpoints/a/latest.pt").read_bytes() == before


def test_a_full_disk_leaves_the_older_checkpoints(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    before = Path("checkpoints/a/latest.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"incoming\.pt could not be written: no space left on"):
        train(replace(config, n_epochs=3))
    assert Path("checkpoints/a/latest.pt").read_bytes() == before
    assert not list(Path("checkpoints/a").glob("*.tmp"))


def test_the_data_may_move_but_not_change(towns: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(towns, copy)
    config = Config(dataset=str(copy), name="a", **TINY)
    train(config)
    copy.rename(tmp_path / "moved")
    train(replace(config, dataset=str(tmp_path / "moved"), n_epochs=3))
    assert len(results("a")[1]) == 4
    files = sorted((tmp_path / "moved/train").iterdir())
    files[0].rename(tmp_path / "aside.png")
    files[1].rename(files[0])
    (tmp_path / "aside.png").rename(files[1])
    with pytest.raises(ValueError, match=r"changed in train: 0001\.png, 0002\.png\n.*--init-from"):
        train(replace(config, dataset=str(tmp_path / "moved"), n_epochs=5))


def test_fresh_leaves_the_old_run_until_the_new_one_can_start(towns: Path):
    train(Config(dataset=str(towns), name="a", **TINY))
    with pytest.raises(ValueError, match="batch_size 99"):
        train(Config(dataset=str(towns), name="a", **TINY | {"batch_size": 99}), fresh=True)
    assert Path("checkpoints/a/latest.pt").exists()


def test_precision_may_change_on_the_way(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    train(replace(config, precision="fp16", n_epochs=3))
    assert len(results("a")[1]) == 4


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("locked")])
def test_results_that_cannot_be_written_are_a_warning(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
):
    config = Config(dataset=str(towns), name="a", **TINY)

    def fails_once(self: Report) -> None:
        patch.undo()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Report, "_write_table", fails_once)
        train(config)
    assert [row["epoch"] for row in results("a")[1]] == ["1", "2", "3"]
    assert "could not be written" in capsys.readouterr().out


def test_results_may_vanish_while_a_run_lasts(towns: Path, monkeypatch: pytest.MonkeyPatch):
    write = Report._write_table

    def without(self: Report) -> None:
        if len(self.rows) == 2:
            shutil.rmtree("evaluation")
        write(self)

    monkeypatch.setattr(Report, "_write_table", without)
    train(Config(dataset=str(towns), name="a", **TINY))
    assert [row["epoch"] for row in results("a")[1]] == ["1", "2", "3"]


def test_whatever_fails_after_an_epoch_loses_no_step(towns: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(dataset=str(towns), name="a", **TINY)

    def fails(self: Report, state: object) -> None:
        raise RuntimeError("out of memory in a validation")

    with monkeypatch.context() as patch:
        patch.setattr(Report, "add_epoch", fails)
        with pytest.raises(RuntimeError):
            train(config)
    assert results("a")[0]["step"] == 8
    train(config)
    assert [row["epoch"] for row in results("a")[1]] == ["1", "2", "3"]


def test_a_folder_that_cannot_be_written_is_named_before_training(
    towns: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"checkpoints cannot be written to .*start in a folder"):
        train(Config(dataset=str(towns), name="a", **TINY))
    assert not Path("checkpoints/a").exists()


def test_the_cache_may_move(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    train(replace(config, cache_dir="elsewhere", n_epochs=3))
    assert len(results("a")[1]) == 4


def test_a_batch_larger_than_the_data_set(towns: Path):
    with pytest.raises(ValueError, match=r"batch_size 9.*8"):
        train(Config(dataset=str(towns), **TINY | {"batch_size": 9}))


def test_stopping_and_going_on_is_the_same_run(towns: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(dataset=str(towns), name="whole", **TINY | PHOTOS)
    train(config)
    checks = iter([3, 9, 4, 12, 7])  # after so many steps and validated pairs of each part
    original, left = StopRequest.check, next(checks)

    def stopping(self: StopRequest) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            self.signum, left = signal.SIGINT, next(checks, 0)
        original(self)

    monkeypatch.setattr(StopRequest, "check", stopping)
    parts = replace(config, name="parts", num_workers=1)
    for _ in range(8):
        try:
            train(parts)
        except Interrupted as stop:
            assert stop.exit_code == 130
            assert "same command" in str(stop)
        else:
            break
    assert next(checks, None) is None, "it was interrupted five times"
    for one, other in zip(results("whole"), results("parts"), strict=True):
        if isinstance(one, dict):
            one.pop("n_pairs", None)
            other.pop("n_pairs", None)
        assert_same(one, other)


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(towns: Path):
    config = Config(dataset=str(towns), name="a", keep_generators=1, **TINY)
    train(config)
    for name in ("latest.pt", "previous.pt"):
        Path("checkpoints/a", name).unlink()
    before = Path("evaluation/a/metrics.csv").read_bytes()
    with pytest.raises(ValueError, match=r"its checkpoint .*latest\.pt is gone.*--fresh"):
        train(config)
    assert Path("evaluation/a/metrics.csv").read_bytes() == before
    train(config, fresh=True)
    assert Path("evaluation/a.old1/metrics.csv").read_bytes() == before
    assert Path("checkpoints/a.old1/generator_001.pt").exists()


def test_one_run_is_for_one_process(towns: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "LOCK_S", 0.1)
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    with saving.Checkpoints(resolve(config)[0], CPU):
        for fresh in (False, True):
            with pytest.raises(OSError, match=rf"trained by process {os.getpid()} on .*--name"):
                train(config, fresh=fresh)
        train(replace(config, name="b"))
    train(replace(config, n_epochs=3))
    assert len(results("a")[1]) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_run_that_goes_on_keeps_its_name_though_its_lock_is_removed(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    Path("checkpoints/.a.lock").unlink()
    owner = Path("checkpoints/.a.owner")
    other, started = os.getppid(), saving._started(os.getppid())
    owner.write_text(f"{other} on {platform.node()}{started}")
    with pytest.raises(OSError, match=f"trained by process {other}"):
        train(replace(config, n_epochs=3))
    owner.write_text(f"{other} on {platform.node()}, started at 1")  # a number used again
    train(replace(config, n_epochs=3))


def test_settings_and_scores_that_an_older_file_lacks_take_their_default(towns: Path):
    config = Config(dataset=str(towns), name="a", refine=False, even_kernels=False, **TINY)
    train(config)
    for path in Path("checkpoints/a").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        for name in ("n_layers_d", "refine", "even_kernels"):
            del content["config"][name]
        content["config"]["even_start"] = True  # which there is no more
        torch.save(content, path)
    table = Path("evaluation/a/metrics.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    kept = [name for name in rows[0] if name not in ("val_ssim", "d_real")]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert load_generator("checkpoints/a/generator.pt", "cpu").config.n_layers_d == 3
    train(replace(config, n_epochs=3))
    _, rows, _ = results("a")
    assert [row["val_ssim"] != "" for row in rows] == [False, False, False, True]
    assert [row["d_real"] != "" for row in rows] == [False, False, False, True]
    with pytest.raises(ValueError, match="n_layers_d: 3 in the checkpoint, 2 now"):
        train(replace(config, n_epochs=4, n_layers_d=2))


def test_weights_that_are_not_finite_are_never_saved(towns: Path):
    config = resolve(Config(dataset=str(towns), name="a", **TINY))[0]
    train(config)
    before = Path("checkpoints/a/latest.pt").read_bytes()
    with saving.Checkpoints(config, CPU) as checkpoints:
        machine = choose_machine("cpu", "fp32")
        state = checkpoints.ready(
            new_state(config, known_sides(config), machine), open_data(config, machine)
        )
        with torch.no_grad():
            state.generator.encoder[1][1].weight[0, 0, 0, 0] = math.nan
        with pytest.raises(DivergedError, match=r"weights.*latest\.pt is from before that"):
            checkpoints.save(state)
    assert Path("checkpoints/a/latest.pt").read_bytes() == before


def test_a_validation_that_is_not_finite_is_divergence(
    towns: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("run.report.score_all", lambda *_, **__: ([], {"l1": math.nan}))
    with pytest.raises(DivergedError, match=r"val_l1 became .* in epoch 1\..*lower --lr"):
        train(Config(dataset=str(towns), name="a", **TINY))


class FullDisk:
    """Lets torch write only files of up to ``limit`` bytes, as a disk that is nearly full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.limit, self.save = limit, torch.save
        monkeypatch.setattr(torch, "save", self)

    def __call__(self, content: object, path: Path) -> None:
        self.save(content, path)
        if isinstance(path, Path) and path.stat().st_size > self.limit:
            raise RuntimeError("unexpected pos 6528 vs 6422")  # torch's words for it


def test_a_save_that_fails_on_the_way_is_a_warning(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    disk = FullDisk(monkeypatch, 0)
    original = Report.add_epoch

    def room_again(self: Report, *arguments: object) -> None:
        disk.limit = 10**9
        original(self, *arguments)

    monkeypatch.setattr(Report, "add_epoch", room_again)
    train(Config(dataset=str(towns), name="a", checkpoint_minutes=0, **TINY))
    output = capsys.readouterr().out
    assert "latest" not in output.split("Warning: ")[0]
    assert re.search(r"Warning: .*incoming.pt could not be written: no space left", output)
    assert results("a")[0]["epoch"] == 3


def test_a_disk_that_stays_full_costs_only_the_newest_file(
    towns: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    before = Path("checkpoints/a/latest.pt").read_bytes()
    FullDisk(monkeypatch, Path("checkpoints/a/generator.pt").stat().st_size + 100)
    with pytest.raises(OSError, match=r"no space left.*a_generator_004\.pt") as failed:
        train(replace(config, n_epochs=3))
    assert Path("checkpoints/a/latest.pt").read_bytes() == before
    assert not Path("checkpoints/a/previous.pt").exists()
    assert "Traceback" not in str(failed.value)
    load_generator("checkpoints/a/a_generator_004.pt", "cpu")


def test_the_space_is_checked_before_training(towns: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    config = Config(dataset=str(towns), name="a", **TINY)
    train(replace(config, name="b"))  # its cache is there for the next
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"checkpoints.a needs 0\.00 GB and 0\.00 GB are free"):
        train(config)


def test_a_checkpoint_that_another_program_holds_is_gone_on_from(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = Config(dataset=str(towns), name="a", **TINY)
    rename = Path.replace

    def held(self: Path, target: Path) -> Path:
        if self.name == "incoming.pt":
            raise PermissionError(13, "used by another process")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", held)
        with pytest.raises(OSError, match=r"could not be renamed .*used by another process"):
            train(config)
    assert "Warning: " in capsys.readouterr().out
    train(replace(config, n_epochs=3))
    assert "Going on in epoch 4 after step 0" in capsys.readouterr().out
    assert [row["epoch"] for row in results("a")[1]] == ["1", "2", "3", "4"]


def test_losses_are_read_without_float64_which_apple_gpus_lack(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: torch.Tensor) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch.Tensor, "double", refuse)
    config = resolve(Config(dataset="x", name="a"))[0]
    assert saving.finite({"l1": torch.tensor(0.25), "val_l1": 0.5}, config, 0) == {
        "l1": 0.25,
        "val_l1": 0.5,
    }
