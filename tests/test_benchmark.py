import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import script
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import devices
import trials
from benchmark import benchmark, main
from config import Config
from devices import Machine
from discriminator import Discriminator
from generator import Generator
from recipes import resolve
from scripts import run_script
from train import new_state, train_step
from trials import ROUNDS, PlainStep, Step, Trial, take_turns

FP32 = Machine(torch.device("cpu"), torch.float32)


def settings(crop_size: int = 32, **changes: object) -> Config:
    usual = {"dataset": "x", "device": "cpu", "precision": "fp32"}
    return resolve(Config(crop_size=crop_size, **(usual | changes)))[0]


@pytest.fixture(autouse=True)
def memory_policy_of_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    kept: list[str] = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: kept.append("kept"))
    return kept


def gflop_of_a_step(crop_size: int) -> float:
    config = settings(crop_size)
    x, y = torch.zeros(2, 1, 3, crop_size, crop_size)
    with FlopCounterMode(display=False) as counter:
        train_step(new_state(config, FP32), x, y, config, FP32)
    return counter.get_total_flops() / 1e9


# The script


def test_the_script_measures_every_part():
    flags = ("--crop-size", "32", "--batch-sizes", "2", "--seconds", "0")
    flags += ("--modes", "default", "--device", "cpu")
    result = script("benchmark.py", *flags, "--json", "new/folder/speed.json")
    assert result.returncode == 0, result.stderr
    content = json.loads(Path("new/folder/speed.json").read_text())
    measured = {(row["mode"], row["batch_size"]) for row in content["steps"]}
    assert measured == {("default", 2)}
    ceilings = content["ceiling_gflops"]
    assert min(ceilings.values()) > 1
    for row in content["steps"]:
        assert row["error"] is None
        assert row["measured"] == ROUNDS
        assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["pictures_per_second"] == pytest.approx(1000 * row["batch_size"] / row["ms"])
        assert row["gflop"] == pytest.approx(gflop_of_a_step(32) * row["batch_size"])
        speed = row["gflop"] / (row["ms"] / 1000)
        assert row["share_of_ceiling"] == pytest.approx(speed / ceilings[row["precision"]])
        assert row["share_of_ceiling"] < 1.2
        assert 500 < row["peak_mb"] < 5000, "the weights, gradients and means take 500 MB"

    sources = [(row["source"], row["workers"]) for row in content["pipeline"]]
    both = [(source, workers) for source in ("files", "cache") for workers in (0, 1, 2)]
    assert sources == [*both, ("transfer", 0)]
    assert all(row["pictures_per_second"] > 1 for row in content["pipeline"])
    assert content["cache"]["build_pictures_per_second"] > 1
    assert 0 < content["cache"]["warm_start_s"] < 60
    assert [row["batch_size"] for row in content["inference"]] == [1, 8]
    assert content["machine"]["torch"] == torch.__version__.split("+")[0]
    for name in ("share_of_ceiling", "pictures_per_second", "peak_mb", "warm_start_s", "default"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "cuda:77"}, r"cuda:77.*this machine has"),
        ({"crop_size": 48}, "crop_size is 48"),
        ({"batch_sizes": (1, 0)}, "batch_size is 0"),
        ({"report": Path("here")}, "here"),
    ],
)
def test_a_mistake_is_named_before_the_work(
    wrong: dict, message: str, monkeypatch: pytest.MonkeyPatch
):
    Path("here").mkdir()
    monkeypatch.setattr("benchmark.take_turns", None)
    with pytest.raises((ValueError, OSError), match=message):
        benchmark(**wrong)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--modes", "plain", "fastest"], "fastest"),
        (["--device", "cuda:77"], "Error: device is 'cuda:77'"),
    ],
)
def test_a_mistake_ends_the_script_with_its_message(
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# What is timed


def test_a_step_costs_what_the_networks_cost():
    for network, n_pictures, expected in ((Generator, 1, 12.1), (Discriminator, 2, 6.4)):
        with FlopCounterMode(display=False) as counter:
            network()(*torch.zeros(n_pictures, 1, 3, 256, 256))
        assert counter.get_total_flops() / 1e9 == pytest.approx(expected, abs=0.05)
    assert gflop_of_a_step(256) == pytest.approx(87, abs=0.5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_default_teaches_what_plain_teaches(batch_size: int):
    config = settings(64, ngf=8, ndf=8, batch_size=batch_size)
    steps = [PlainStep(config), Step(config)]
    before = [p.clone() for p in steps[0].state.generator.parameters()]
    for step in steps:
        torch.manual_seed(1)  # of dropout
        step()
    compared = 0
    for name in ("generator", "discriminator"):
        plain, default = (getattr(step.state, name) for step in steps)
        for one, other in zip(plain.parameters(), default.parameters(), strict=True):
            assert (one.grad - other.grad).abs().max() <= 1e-5 * one.grad.abs().max()
            assert one.grad.abs().max() > 0
            compared += 1
    assert compared > 40
    after = list(steps[0].state.generator.parameters())
    assert all((one != other).any() for one, other in zip(before, after, strict=True))


def test_only_plain_goes_without_what_makes_train_py_fast(memory_policy_of_this_process: list):
    plain = PlainStep(settings(ngf=4, ndf=4))
    assert memory_policy_of_this_process == []
    default = Step(settings(ngf=4, ndf=4))
    assert memory_policy_of_this_process == ["kept"]
    networks = (plain.state.generator, plain.state.discriminator)
    # Unfused, Adam reads how many steps each parameter has seen, from a counter on the CPU.
    counters = sum(len(list(network.parameters())) for network in networks)
    for step, reads in ((plain, 4 + counters), (default, 0)):
        for optimizer in (step.state.optimizer_g, step.state.optimizer_d):
            assert bool(optimizer.param_groups[0]["fused"]) == (step is default)
            assert optimizer.param_groups[0]["lr"] == 2e-4
            assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
        step()  # the first one prepares Adam
        assert count_reads(step) == reads


def count_reads(step: Step) -> int:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads():
        step()
    return Reads.count


# Processes that take turns


class Noting(Trial):
    """Leaves the name of its settings in a file each time."""

    def __call__(self) -> None:
        with open("notes", "a") as file:
            file.write(self.config.name)


class Dying(Noting):
    """Ends its process as the system does where memory is short, without a word."""

    def __call__(self) -> None:
        super().__call__()
        if len(Path("notes").read_text()) >= 8:
            os._exit(3)


def test_trials_take_turns_and_one_that_fails_does_not_stop_the_others():
    trials = {
        "a": (Noting, settings(name="a")),
        "huge": (Step, settings(ngf=4, ndf=4, batch_size=10**12)),
        "d": (Dying, settings(name="d")),
    }
    timings = take_turns(trials, seconds=0, title="test")
    # The first turn begins with a time that is not timed, but whose operations are counted.
    assert Path("notes").read_text() == "aadd" + "ad" + "ad" + "a" + "a"
    assert timings["huge"].error == "out of memory"
    assert "its process was killed" in timings["d"].error
    assert timings["d"].numbers(1)["ms"] is None
    assert len(timings["a"].ms) == ROUNDS
    assert timings["a"].numbers(1)["error"] is None


def test_numbers_are_median_and_quartiles():
    timing = trials.Timing(ms=[50.0, 10.0, 30.0, 20.0, 40.0], flops=3_000_000_000, peak_mb=7.0)
    assert timing.numbers(pictures=3) == {
        "ms": 30,
        "ms_low": 20,
        "ms_high": 40,
        "measured": 5,
        "pictures_per_second": 100,
        "peak_mb": 7,
        "gflop": 3,
        "error": None,
    }
