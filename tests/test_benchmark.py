import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmark import (
    NUMBERS,
    Act,
    attempt,
    benchmark,
    compare_ways,
    default_step,
    main,
    plain_step,
    read_curve,
    take_turn,
    take_turns,
)
from config import Config
from discriminator import Discriminator
from generator import Generator
from machine import devices
from machine.devices import Machine
from machine.stopping import run_script
from recipes import known_sides, resolve
from run.state import TrainingState, new_state
from train import train_step

FP32 = Machine(torch.device("cpu"), torch.float32)


def settings(crop_size: int = 32, **changes: object) -> Config:
    usual = {"recipe": "paper", "dataset": "x", "device": "cpu", "precision": "fp32"}
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
        train_step(new_state(config, known_sides(config), FP32), x, y, config, FP32)
    return counter.get_total_flops() / 1e9


# The script


def test_the_script_measures_every_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = ("--crop-size", "32", "--batch-sizes", "2", "--seconds", "0")
    flags += ("--modes", "default", "--device", "cpu", "--json", "new/folder/speed.json")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    monkeypatch.setattr("benchmark.WORKERS", (0, 1))
    main()
    content = json.loads(Path("new/folder/speed.json").read_text())
    (row,) = content["steps"]
    assert (row["mode"], row["batch_size"], row["error"]) == ("default", 2, None)
    assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
    assert row["pictures_per_second"] == pytest.approx(1000 * 2 / row["ms"])
    gflop = row["gflop_per_second"] * row["ms"] / 1000
    assert gflop == pytest.approx(gflop_of_a_step(32) * 2)
    assert row["ceiling"] > 1
    assert row["share_of_ceiling"] == pytest.approx(row["gflop_per_second"] / row["ceiling"])
    assert row["share_of_ceiling"] < 1.2
    assert 500 < row["peak_mb"] < 5000, "the weights, gradients and means take 500 MB"

    sources = [(row["source"], row["workers"]) for row in content["loading"]]
    assert sources == [(source, workers) for source in ("files", "cache") for workers in (0, 1)]
    assert all(row["pictures_per_second"] > 1 for row in content["loading"])
    assert [row["batch_size"] for row in content["translating"]] == [1, 8]
    assert content["machine"]["torch"] == torch.__version__
    said = capsys.readouterr().out
    for name in ("share_of_ceiling", "pictures_per_second", "peak_mb", "default"):
        assert name in said


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


def test_only_plain_goes_without_what_makes_train_py_fast(
    memory_policy_of_this_process: list, monkeypatch: pytest.MonkeyPatch
):
    states: list[TrainingState] = []

    def noted(*arguments: Any) -> TrainingState:
        states.append(new_state(*arguments))
        return states[-1]

    monkeypatch.setattr("benchmark.new_state", noted)
    plain = plain_step(settings(ngf=4, ndf=4))
    assert memory_policy_of_this_process == []
    default = default_step(settings(ngf=4, ndf=4))
    assert memory_policy_of_this_process == ["kept"]
    networks = (states[0].generator, states[0].discriminator)
    # Unfused, Adam reads how many steps each parameter has seen, from a counter on the CPU.
    counters = sum(len(list(network.parameters())) for network in networks)
    for step, state, reads in zip((plain, default), states, (5 + counters, 0), strict=True):
        for optimizer in (state.optimizer_g, state.optimizer_d):
            assert bool(optimizer.param_groups[0]["fused"]) == (step is default)
        torch.manual_seed(1)  # of dropout
        step()  # the first one prepares Adam
        assert count_reads(step) == reads
    for name in ("generator", "discriminator"):
        plain, default = (list(getattr(state, name).parameters()) for state in states)
        for one, other in zip(plain, default, strict=True):
            assert one.grad.abs().max() > 0
            assert (one.grad - other.grad).abs().max() <= 1e-3 * one.grad.abs().max()


def count_reads(step: Act) -> int:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads():
        step()
    return Reads.count


# Processes that take turns


def noting(config: Config) -> Act:
    """Leave the name of the settings in a file each time."""

    def act() -> None:
        with open("notes", "a") as file:
            file.write(config.name)

    return act


def dying(config: Config) -> Act:
    """End the process as the system does where memory is short, without a word."""

    def act() -> None:
        noting(config)()
        if len(Path("notes").read_text()) >= 8:
            os._exit(3)

    return act


def test_trials_take_turns_and_one_that_dies_does_not_stop_the_other():
    trials = {"a": (noting, settings(name="a")), "d": (dying, settings(name="d"))}
    rows = take_turns(trials, seconds=0)
    # The first turn begins with a time that is not timed, but whose operations are counted.
    assert Path("notes").read_text() == "aadd" + "ad" + "ad" + "a" + "a"
    assert "its process was killed" in rows["d"]["error"]
    assert rows["d"]["ms"] is None
    assert rows["a"]["error"] is None
    assert rows["a"]["ms"] > 0


def test_a_trial_that_is_too_large_says_so():
    huge = settings(ngf=4, ndf=4, batch_size=10**12)
    row = attempt(partial(take_turn, default_step, huge, 0))
    assert row == dict.fromkeys(NUMBERS) | {"error": "out of memory"}
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0)


def test_numbers_are_median_and_quartiles_of_all_turns(monkeypatch: pytest.MonkeyPatch):
    before = [50.0, 10.0, 30.0, 20.0]
    monkeypatch.setattr("benchmark.warmed_up", lambda *_: (lambda: None, 3_000_000_000, before))
    monkeypatch.setattr("benchmark.time.perf_counter", iter([1, 1.04]).__next__)
    row = take_turn(noting, settings(batch_size=3), 0)
    assert (row["ms"], row["ms_low"], row["ms_high"]) == pytest.approx((30, 20, 40))
    assert row["pictures_per_second"] == pytest.approx(100)
    assert row["gflop_per_second"] == pytest.approx(100)


# The check


def test_the_check_compares_ways_to_train(monkeypatch: pytest.MonkeyPatch):
    full = {"precision": "fp32"}
    ways = {
        "full": [full],
        "in_two_parts": [full | {"n_epochs": 1}, full],
        "half": [{"precision": "bf16"}],
        "wrong": [full | {"n_layers_d": 9}],
    }
    monkeypatch.setattr("benchmark.WAYS", ways)
    monkeypatch.setattr("benchmark.STEPS", 6)
    tiny = {"crop_size": 32, "ngf": 4, "ndf": 4, "n_layers_d": 1, "num_workers": 0}
    rows = compare_ways(Config(device="cpu", n_epochs=2, n_epochs_decay=0, **tiny))
    full_row, in_parts, half, wrong = rows
    assert in_parts["apart"] == full_row["apart"] == "0.0e+00"
    assert in_parts["loss_d"] == full_row["loss_d"]
    assert 0 < float(half["apart"]) < 0.01
    assert float(half["loss_classes"]) == pytest.approx(float(full_row["loss_classes"]), rel=0.05)
    assert "n_layers_d is 9" in wrong["error"]
    assert wrong["apart"] is None


@pytest.mark.slow
def test_steps_that_processes_share(tmp_path: Path):
    benchmark((4,), crop_size=32, device="cpu", seconds=0.1, processes=2, report=Path("a.json"))
    one, two = json.loads(Path("a.json").read_text())["steps"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["messages_ms"] == 0 < two["messages_ms"]
    assert two["pictures_per_second"] == pytest.approx(4000 / two["ms"])


def test_steps_that_cannot_be_shared():
    with pytest.raises(ValueError, match="cannot share 3 pictures"):
        benchmark((3,), processes=2)


class Here:
    """Does at once, in this process, what is submitted: to start another takes seconds."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, act: Callable, *arguments: object) -> "Here":
        act(*arguments)
        return self

    def result(self) -> None: ...


def test_how_long_a_score_takes(towns: Path, capsys: pytest.CaptureFixture[str]):
    tiny = {name: value for name, value in TINY.items() if not name.startswith("n_epochs")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.ProcessPoolExecutor", Here)
        small = partial(Config, **tiny)
        patch.setattr("benchmark.Config", lambda **given: small(**(tiny | given)))
        folder = towns.rename(towns.with_name("towns"))
        try:
            benchmark(to=("accuracy", 0.01), dataset=str(folder), n_epochs=2, crop_size=32)
            with pytest.raises(ValueError, match=r"no score fid; they have l1, .*accuracy"):
                read_curve("benchmark_modern", "fid")
        finally:
            folder.rename(towns)
    said = capsys.readouterr().out
    assert "modern" in said and "accuracy.png" in said
    with open("evaluation/benchmark/accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows[::2]] == ["paper in fp32", "paper", "modern"]
    seconds = [float(row["seconds"]) for row in rows]
    assert all(first < second for first, second in zip(seconds[::2], seconds[1::2], strict=True))
    assert Image.open("evaluation/benchmark/accuracy.png").width > 500


def test_a_step_of_each_recipe_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    configs: dict[str, Config] = {}

    def timed(trials: dict, seconds: float) -> dict[str, dict]:
        configs.update({name: config for name, (_, config) in trials.items()})
        return {name: {"ms": 1.5} for name in trials}

    monkeypatch.setattr("benchmark.take_turns", timed)
    benchmark(recipes=True, crop_size=64, device="cpu", report=Path("recipes.json"))
    assert len(json.loads(Path("recipes.json").read_text())["recipes"]) == 5
    assert capsys.readouterr().out.count("1.50") == len(configs) == 5
    asked = {name for name, config in configs.items() if config.asks_photo_network}
    learned = {name for name, config in configs.items() if config.is_label("target")}
    assert (asked, learned) == ({"modern, photos"}, {"modern, classes", "classes, ngf 16"})
