import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, flags, script
from reference import FOLDER, load_by_rule, picture
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config, resolve
from report import Report
from train import (
    DivergedError,
    Run,
    adversarial_loss,
    discriminator_loss,
    learning_rate,
    new_state,
    train,
    train_step,
)
from scripts import Interrupted

CLOCK = {"seconds", "pictures_per_second"}


def autocast_off() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def results(name: str) -> tuple[dict, list[dict], dict[str, bytes]]:
    """Return weights, metrics without the clock, and pictures of a run in the working folder."""
    state = torch.load(f"checkpoints/{name}/latest.pt", weights_only=True)
    table = Path(f"evaluation/{name}/metrics.csv")
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [{k: v for k, v in r.items() if k not in CLOCK} for r in csv.DictReader(lines)]
    pictures = {
        path.name: path.read_bytes()
        for path in Path("evaluation", name).glob("*.png")
        if path.name != "curves.png"
    }
    return state, rows, pictures


def assert_same(first: object, second: object) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds", "config"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_three_steps_of_the_authors_model():
    config, _ = resolve(Config(dataset="x", norm="batch", dropout=False))
    state = new_state(config, torch.device("cpu"))
    for network, kind in ((state.generator, "generator"), (state.discriminator, "discriminator")):
        network.double()
        load_by_rule(network, kind)
    expected = json.loads((FOLDER / "three_steps_vanilla_batch1.json").read_text())
    for step, row in enumerate(expected[:3]):
        x, y = picture(1, 3, 256, 0.3 * step), picture(1, 3, 256, 1 + 0.3 * step)
        loss_d, _, _, loss_g_gan, l1 = train_step(state, x, y, config, autocast_off()).tolist()
        assert loss_d == pytest.approx((row["D_real"] + row["D_fake"]) / 2, rel=1e-6)
        assert loss_g_gan == pytest.approx(row["G_GAN"], rel=1e-6)
        assert l1 * 100 == pytest.approx(row["G_L1"], rel=1e-6)
    sums = [
        sum(p.abs().sum().item() for p in network.parameters())
        for network in (state.generator, state.discriminator)
    ]
    assert sums[0] == pytest.approx(expected[3]["param_abs_sum_G"], rel=1e-6)
    assert sums[1] == pytest.approx(expected[3]["param_abs_sum_D"], rel=1e-6)


def test_losses_by_their_formulas():
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    log_d = -torch.log(torch.sigmoid(real)).mean()
    log_not = -torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), (log_d + log_not) / 2)
    torch.testing.assert_close(adversarial_loss(fake, True, "lsgan"), ((fake - 1) ** 2).mean())


def test_the_last_epoch_still_learns():
    config, _ = resolve(Config(dataset="x", n_epochs=2, n_epochs_decay=3, lr=0.4))
    rates = [learning_rate(config, epoch) for epoch in range(5)]
    assert rates == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1])


def test_overfits_four_pairs(towns: Path):
    torch.manual_seed(0)
    config, _ = resolve(
        Config(dataset=str(towns), crop_size=32, load_size=32, ngf=16, ndf=8, flip=False, lr=1e-3)
    )
    run = Run(replace(config, batch_size=4, n_epochs=1, device="cpu", num_workers=0), None)
    batch = run.pairs.__getitems__([(0, index) for index in range(4)]).float() / 127.5 - 1
    x, y = batch[:, :3], batch[:, 3:]
    losses = [train_step(run.state, x, y, config, autocast_off()).tolist() for _ in range(250)]
    assert losses[0][4] > 0.4
    assert sum(row[4] for row in losses[-10:]) / 10 < 0.15


def test_a_run_writes_what_the_readme_says(towns: Path):
    result = script("train.py", *flags(dataset=towns, name="a", keep_generators=2))
    assert result.returncode == 0, result.stderr
    assert "typed" in result.stdout
    assert "preset" in result.stdout or "paper" in result.stdout
    names = {path.name for path in Path("evaluation/a").iterdir()}
    outputs = {f"output_{n:03d}.png" for n in (1, 2, 3)}
    grids = {f"epoch_{n:03d}.png" for n in (1, 2, 3)}
    assert {
        "metrics.csv",
        "config.json",
        "curves.png",
        "input.png",
        "target.png",
    } | outputs | grids <= names
    found = {path.name for path in Path("checkpoints/a").iterdir()}
    assert found == {"latest.pt", "generator.pt", "generator_002.pt"}
    _, rows, _ = results("a")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert all(float(row["val_l1"]) > 0 for row in rows)
    again = script("train.py", *flags(dataset=towns, name="a", keep_generators=2))
    assert again.returncode == 0
    assert "finished" in again.stdout


def test_stopping_and_going_on_is_the_same_run(towns: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(dataset=str(towns), name="whole", **TINY)
    train(config)
    steps = iter([3, 5, 8, 1])
    original = Run.train_epoch

    def stopping(self: Run, batches: object, bar: object) -> None:
        stop_after = next(steps, None)
        check = self.stop.check

        def stop_there() -> None:
            if self.state.step == stop_after:
                self.stop.signum = signal.SIGINT
            check()

        self.stop.check = stop_there
        original(self, batches, bar)
        self.stop.check = check

    monkeypatch.setattr(Run, "train_epoch", stopping)
    parts = replace(config, name="parts", num_workers=1)
    for _ in range(8):
        try:
            train(parts)
        except Interrupted as stop:
            assert stop.exit_code == 130
            assert "same command" in str(stop)
        else:
            break
    assert next(steps, None) is None, "it was interrupted four times"
    for one, other in zip(results("whole"), results("parts"), strict=True):
        if isinstance(one, dict):
            one.pop("n_pairs", None)
            other.pop("n_pairs", None)
        assert_same(one, other)


def test_kill_9_at_any_moment_costs_nothing_but_time(towns: Path):
    base = flags(dataset=towns, checkpoint_minutes=0, n_epochs=12)
    assert script("train.py", *base, "--name", "whole").returncode == 0
    command = [sys.executable, str(ROOT / "train.py"), *base, "--name", "killed"]
    dice = random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
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
    last = script("train.py", *base, "--name", "killed")
    assert last.returncode == 0, last.stderr
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
    assert script("train.py", *flags(dataset=towns, name="a")).returncode == 0
    other = script("train.py", *flags(dataset=towns, name="a", lambda_l1=10, ngf=8, n_epochs=9))
    assert other.returncode == 2
    assert other.stdout == ""
    assert "lambda_l1: 100.0 in the checkpoint, 10.0 now" in other.stderr
    assert "ngf: 4 in the checkpoint, 8 now" in other.stderr
    assert "n_epochs" not in other.stderr
    fresh = script("train.py", *flags(dataset=towns, name="a", ngf=8), "--fresh")
    assert fresh.returncode == 0
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
    content[len(content) // 2] ^= 0xFF
    latest.write_bytes(content)
    train(config)
    output = capsys.readouterr().out
    assert f"{latest} is damaged" in output
    assert "previous.pt" in output


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
    with pytest.raises(OSError, match=r"incoming\.pt could not be written.*No space left"):
        train(replace(config, n_epochs=3))
    assert Path("checkpoints/a/latest.pt").read_bytes() == before
    assert not list(Path("checkpoints/a").glob("*.tmp"))


def test_a_changed_data_set_is_refused(towns: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(towns, copy)
    config = Config(dataset=str(copy), name="a", **TINY)
    train(config)
    next((copy / "train").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"trained on 8 pairs.*now has 7"):
        train(replace(config, n_epochs=5))


def test_fresh_leaves_the_old_run_until_the_new_one_can_start(towns: Path):
    train(Config(dataset=str(towns), name="a", **TINY))
    result = script("train.py", *flags(dataset=towns, name="a", batch_size=99), "--fresh")
    assert result.returncode == 2
    assert Path("checkpoints/a/latest.pt").exists()


def test_precision_may_change_on_the_way(towns: Path):
    config = Config(dataset=str(towns), name="a", precision="fp32", **TINY)
    train(config)
    train(replace(config, precision="fp16", n_epochs=3))
    assert len(results("a")[1]) == 4


def test_grey_targets_of_a_paletted_set_have_no_classes(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "towns")
    train(Config(dataset="towns", output_nc=1, **TINY))
    assert results("towns")[1][0]["val_accuracy"] == ""


def test_a_table_that_cannot_be_written_loses_no_step(towns: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(dataset=str(towns), name="a", **TINY)

    def locked(self: Report, values: dict) -> None:
        raise PermissionError("metrics.csv cannot be replaced")

    with monkeypatch.context() as patch:
        patch.setattr(Report, "add_metrics", locked)
        with pytest.raises(PermissionError):
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
    with pytest.raises(OSError, match=r"evaluation.a cannot be written to .*start in a folder"):
        train(Config(dataset=str(towns), name="a", **TINY))
    assert not Path("checkpoints/a").exists()


def test_the_cache_may_move(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    train(replace(config, cache_dir="elsewhere", n_epochs=3))
    assert len(results("a")[1]) == 4


def test_a_batch_larger_than_the_data_set(towns: Path):
    result = script("train.py", *flags(dataset=towns, batch_size=9))
    assert result.returncode == 2
    assert "batch_size 9" in result.stderr
    assert "8" in result.stderr


def test_l1_alone_leaves_the_discriminator(towns: Path):
    config = Config(dataset=str(towns), name="l1", gan_mode="none", **TINY)
    train(config)
    state, rows, _ = results("l1")
    fresh = new_state(resolve(config)[0], torch.device("cpu")).discriminator.state_dict()
    assert_same(fresh, state["discriminator"])
    assert rows[0]["loss_d"] == ""
    assert math.isfinite(float(rows[0]["l1"]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_full_precision(towns: Path, precision: str):
    settings = TINY | {"n_epochs": 1, "n_epochs_decay": 0}
    config = Config(dataset=str(towns), name="full", precision="fp32", **settings)
    train(config)
    train(replace(config, name=precision, precision=precision))
    full, mixed = float(results("full")[1][0]["l1"]), float(results(precision)[1][0]["l1"])
    assert mixed == pytest.approx(full, rel=0.02)
    assert mixed != full


def test_validation_does_not_touch_the_training(towns: Path):
    config = Config(dataset=str(towns), name="often", norm="batch", **TINY)
    train(config)
    train(replace(config, name="seldom", val_interval=99, picture_interval=99))
    often, seldom = results("often")[0], results("seldom")[0]
    assert_same(often, seldom)


READING_METHODS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"}
READING_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class MethodReads(TorchFunctionMode):
    """Notes what hands a tensor's content to Python: on a GPU each of these waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING_METHODS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class OperationReads(TorchDispatchMode):
    """Notes the same inside torch, whoever calls it: optimisers, the scaler, backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READING_OPERATIONS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "gan_mode"),
    [("fp32", "vanilla"), ("bf16", "lsgan"), ("fp16", "vanilla"), ("fp16", "none")],
)
def test_the_loop_reads_the_device_only_at_the_log_interval(
    towns: Path, monkeypatch: pytest.MonkeyPatch, precision: str, gan_mode: str
):
    methods, operations = MethodReads(), OperationReads()
    original = Run.train_epoch

    def watched(self: Run, *arguments: object) -> None:
        with methods, operations:
            original(self, *arguments)

    monkeypatch.setattr(Run, "train_epoch", watched)
    settings = TINY | {"log_interval": 3, "precision": precision, "gan_mode": gan_mode}
    train(Config(dataset=str(towns), name="a", **settings))
    # The loader draws its own seed, on the CPU, once a run; 8 steps hold the third and the sixth.
    assert methods.names == ["item"] + ["tolist"] * 2 * 3
    assert operations.names == ["_local_scalar_dense"]
