"""Measure how fast this machine trains, reads pictures and translates: ``python benchmark.py``.

Three ways to train the paper's networks on the same pictures:

    plain    as the popular repositories do: float32 with TF32 off, unfused Adam, memory given
             back after each use, the losses read in every step
    default  what train.py does
    amp      what train.py does with --precision bf16 (fp16 on CUDA cards without bf16)

Times are medians, ``ms_low`` and ``ms_high`` their quartiles; ``ceiling`` is the speed of a large
matrix product in the same precision, in GFLOP/s.

``python benchmark.py --check`` says whether training works here as it should: paste what it prints
into an issue. On a CPU add ``--crop-size 64``.

``python benchmark.py --processes 2 --batch-sizes 2 4 16`` compares a step of one process with one
that two share, each with half of the cores, or a card of its own; they talk for ``messages_ms``.

``python benchmark.py --recipes`` times a step of each recipe.

``python benchmark.py --to accuracy 0.9 --dataset towns`` trains as the paper and as the default
says, and tells after how many seconds each reached that score; the curves are in
``evaluation/benchmark``.
"""

import csv
import json
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from config import Config, plain_name
from dataset import PairedImages, normalise, training_batches
from machine.devices import PRECISIONS, Machine, choose_machine, pick_device, pick_dtype
from machine.disk import make_folder, whole_file
from machine.processes import ALONE, LostProcessError, Processes, find_others
from machine.progress import progress
from machine.stopping import is_out_of_memory, run_script
from recipes import known_sides, resolve
from run.checkpoints import load_checkpoint
from run.sources import open_pairs, split_of
from run.state import new_state
from samples.towns import draw_pair, draw_towns
from train import batch_step, train, train_step
from utils import build_generator

Mode = Literal["plain", "default", "amp"]
Row = dict[str, Any]
Act = Callable[[], object]  # what is timed: calling it does it once
Prepare = Callable[[Config], Act]
NAMES = {dtype: name for name, dtype in PRECISIONS.items()}
ROUNDS = 5  # turns that each trial gets
WORKERS = (0, 1, 2)  # processes that load pictures
AHEAD = 20  # how often it is done before an accelerator is waited for, as in a run
# Of each way to train the runs that make it up, by what is changed for them.
FULL = {"precision": "fp32"}
WAYS: dict[str, list[dict[str, Any]]] = {
    "fp32": [FULL],
    "again": [FULL],
    "in_two_parts": [FULL | {"n_epochs": 1}, FULL],
    "without_graph": [FULL | {"cuda_graph": False}],
    "compiled": [FULL | {"compile": True}],
    "bf16": [{"precision": "bf16"}],
    "fp16": [{"precision": "fp16"}],
}
STEPS = 40  # of each
# What is learned, by what is changed for it: targets of "maps" are of known classes.
LESSONS: dict[str, dict[str, Any]] = {
    "paper": {"recipe": "paper", "dataset": "photos"},
    "modern, classes": {"dataset": "maps"},
    "modern, photos": {"dataset": "photos"},
    "without photo losses": {
        "dataset": "photos",
        "lambda_perceptual": 0.0,
        "lambda_projected": 0.0,
    },
    "classes, ngf 16": {"dataset": "maps", "ngf": 16},
}
# Of each recipe what is changed for it, to learn up to a score.
RECIPES_TO_LEARN = {"paper in fp32": {"recipe": "paper", **FULL}, "paper": {"recipe": "paper"}}
RECIPES_TO_LEARN |= {"modern": {}}
LOSSES = ("loss_d", "loss_g_gan", "loss_features", "loss_classes")
NUMBERS = ("ms", "ms_low", "ms_high", "pictures_per_second", "gflop_per_second", "peak_mb")


# --- Trials: each prepares something to be timed ---
def default_step(config: Config, processes: Processes = ALONE) -> Act:
    """Prepare a training step on random pictures, as train.py takes it."""
    machine = choose_machine(config.device, config.precision, processes)
    sides = known_sides(config)
    state = new_state(config, sides, machine)
    share = replace(config, batch_size=config.batch_size // processes.count)
    return partial(batch_step(state, sides, config, machine), random_batch(share, machine))


def plain_step(config: Config) -> Act:
    """Prepare the same step as the popular repositories take it."""
    torch.backends.cudnn.allow_tf32 = False
    # Made by hand, it lets the system have freed memory back.
    machine = Machine(pick_device(config.device), torch.float32)
    state = new_state(config, known_sides(config), machine)
    for adam in (state.optimizer_g, state.optimizer_d):
        # Parameter by parameter, operation by operation.
        adam.param_groups[0] |= {"fused": False, "foreach": False}
    x, y = normalise(random_batch(config, machine), known_sides(config))
    return partial(step_and_read, state, x, y, config, machine)


def step_and_read(*arguments: Any) -> None:
    """Take a training step, and wait for each of its losses."""
    for loss in train_step(*arguments).values():
        loss.item()


def random_batch(config: Config, machine: Machine) -> Tensor:
    """Return a batch of random pairs as it comes from the loader, on the device."""
    n_channels = sum(side.channels for side in known_sides(config))
    size = (config.batch_size, n_channels, *[config.crop_size] * 2)
    return torch.randint(256, size, dtype=torch.uint8).to(machine.device)


def translation(config: Config) -> Act:
    """Prepare the generator at test time, on ``config.batch_size`` random pictures."""
    machine = choose_machine(config.device, config.precision)
    sides = known_sides(config)
    generator = build_generator(config, sides).to(machine.device).eval()
    x, _ = normalise(random_batch(config, machine), sides)

    def act() -> None:
        with torch.inference_mode(), machine.autocast:
            generator(x)

    return act


def product(config: Config) -> Act:
    """Prepare a matrix product, large enough to keep all of the device busy."""
    machine = choose_machine(config.device, config.precision)
    side = 2048 if machine.device.type == "cpu" else 8192
    if machine.dtype != torch.float32 and pick_dtype("auto", machine.device) == torch.float32:
        side //= 4  # emulated it would take minutes, and is as slow in small
    a, b = torch.rand(2, side, side, device=machine.device).to(machine.dtype)
    return partial(torch.mm, a, b)


# --- Trials that processes share ---
def messages(config: Config, processes: Processes) -> Act:
    """Prepare what processes tell each other in a step: the gradients of both networks."""
    machine = choose_machine(config.device, config.precision, processes)
    state = new_state(config, known_sides(config), machine)
    networks = [[*network.parameters()] for network in (state.discriminator, state.generator)]

    def act() -> None:
        with torch.no_grad():
            for gradients in networks:
                processes.average(gradients)

    return act


@dataclass(frozen=True)
class Shared:
    """Prepares what processes do together, this one being the first; it starts the others."""

    prepare: Callable[[Config, Processes], Act]
    n_processes: int

    def __call__(self, config: Config) -> Act:
        """Start them, and return this one's part."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(1, self.n_processes):
            arguments = (self, config, rank, port)
            get_context("spawn").Process(target=keep_up, args=arguments, daemon=True).start()
        return self.prepare(config, connected(0, self.n_processes, port))


def keep_up(shared: Shared, config: Config, rank: int, port: int) -> None:
    """Do what the first process does, for as long as that lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(LostProcessError):
        act = shared.prepare(config, connected(rank, shared.n_processes, port))
        while True:
            act()


def connected(rank: int, n_processes: int, port: int) -> Processes:
    """Join the processes of this computer, which share its cores evenly."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // n_processes))
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in facts.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    return find_others()


# --- Processes that take turns ---
def take_turns(trials: Mapping[str, tuple[Prepare, Config]], seconds: float) -> dict[str, Row]:
    """Time trials in turns, each in a process of its own.

    So a machine that slows down slows all alike, and memory and settings of one do not touch
    another.

    Args:
        trials: By name what prepares each of them, and its settings.
        seconds: How long to time each of them; it is done ROUNDS times at least.

    Returns:
        Rows as from ``attempt``, by name; a trial that fails does not stop the others.
    """
    rows: dict[str, Row] = {name: {"error": None} for name in trials}
    new_process = partial(
        ProcessPoolExecutor,
        max_workers=1,
        mp_context=get_context("spawn"),  # a fork would begin with the memory of this process
        initializer=signal.signal,  # what Ctrl-C means is for this process to decide
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    with ExitStack() as stack:
        processes = {name: stack.enter_context(new_process()) for name in trials}
        for started in [process.submit(int) for process in processes.values()]:
            started.result()  # all before any is timed
        for name in progress([*trials] * ROUNDS, desc="timing", unit="turn", leave=False):
            if not rows[name]["error"]:
                turn = processes[name].submit(take_turn, *trials[name], seconds / ROUNDS)
                rows[name] = attempt(turn.result)
    return rows


def attempt(turn: Callable[[], Row]) -> Row:
    """Return the NUMBERS that a turn gives, or None for each and the reason as ``error``."""
    try:
        return turn() | {"error": None}
    except BrokenProcessPool:
        reason = "its process was killed, most often for want of memory"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "out of memory"
    return dict.fromkeys(NUMBERS) | {"error": reason}


def take_turn(prepare: Prepare, config: Config, seconds: float) -> Row:
    """Time a trial for so many seconds, at least once; return the NUMBERS of all turns so far."""
    act, flops, ms = warmed_up(prepare, config, seconds)
    device = pick_device(config.device)
    group = 1 if device.type == "cpu" else AHEAD
    times: list[float] = []
    while sum(times) < seconds or not times:
        began = time.perf_counter()
        for _ in range(group):
            act()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    ms += [duration * 1000 / group for duration in times]
    low, median, high = np.percentile(ms, (25, 50, 75)).tolist()
    speeds = config.batch_size / median * 1000, flops / median / 1e6
    return dict(zip(NUMBERS, (median, low, high, *speeds, peak_mb(device)), strict=True))


@cache
def warmed_up(prepare: Prepare, config: Config, seconds: float) -> tuple[Act, int, list[float]]:
    """Prepare a trial in the first turn of its process, and warm it up.

    Returns:
        The trial, the floating-point operations of doing it once, and a list for its times.
    """
    act = prepare(config)
    end = time.perf_counter() + seconds
    with FlopCounterMode(display=False) as counter:
        act()
    while time.perf_counter() < end:  # what is fast has more to warm up than once
        act()
    return act, counter.get_total_flops(), []


def peak_mb(device: torch.device) -> float | None:
    """Return the most memory (1e6 bytes) that torch on CUDA, or on a CPU the process, has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type != "cpu" or sys.platform != "linux":
        return None
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# --- What is measured ---
def measure_steps(
    config: Config, modes: Sequence[Mode], batch_size: int, seconds: float
) -> list[Row]:
    """Return a row for each way to train, held against the product in the same precision."""
    auto = NAMES[pick_dtype("auto", pick_device(config.device))]
    precisions = {"plain": "fp32", "default": auto, "amp": "bf16" if auto == "fp32" else auto}
    trials = {}
    for mode in modes:
        settings = replace(config, precision=precisions[mode], batch_size=batch_size)
        trials[mode] = (plain_step if mode == "plain" else default_step, settings)
        trials[settings.precision] = (product, settings)
    found = take_turns(trials, seconds)
    rows = []
    for mode in modes:
        speed, ceiling = (found[name]["gflop_per_second"] for name in (mode, precisions[mode]))
        share = speed / ceiling if speed and ceiling else None
        row = {"mode": mode, "precision": precisions[mode], "batch_size": batch_size, **found[mode]}
        rows.append(row | {"ceiling": ceiling, "share_of_ceiling": share})
    return rows


def measure_lessons(crop_size: int, device: str, seconds: float) -> list[Row]:
    """Return a row for a step of each of the LESSONS, one picture a step."""
    trials = {}
    for lesson, changes in LESSONS.items():
        config = Config(crop_size=crop_size, device=device, batch_size=1, **changes)
        trials[lesson] = (default_step, resolve(config)[0])
    return [{"lesson": name, **row} for name, row in take_turns(trials, seconds).items()]


def measure_sharing(config: Config, n_processes: int, batch_size: int, seconds: float) -> list[Row]:
    """Return a row for a step of one process, and of as many as share it."""
    config = replace(config, batch_size=batch_size)
    found = take_turns(
        {
            1: (default_step, config),
            n_processes: (Shared(default_step, n_processes), config),
            "messages": (Shared(messages, n_processes), config),
        },
        seconds,
    )
    told = found["messages"]["ms"]
    rows = []
    for count, ms in ((1, 0.0), (n_processes, told)):
        row = {"processes": count, "batch_size": batch_size, **found[count], "messages_ms": ms}
        rows.append({name: value for name, value in row.items() if name != "gflop_per_second"})
    return rows


def measure_loading(config: Config, seconds: float) -> list[Row]:
    """Return the pictures a second that come out of JPEG files, and out of the cache."""
    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        drawn = [np.concatenate(draw_pair(0, "train", n, 286), axis=1) for n in range(10)]
        Path(folder, "pairs").mkdir()
        for number, pair in enumerate(drawn * 10):
            Image.fromarray(pair).save(f"{folder}/pairs/{number:03d}.jpg", quality=90)
        config = replace(config, dataset=f"{folder}/pairs", cache_dir=f"{folder}/cache")
        for source, limit_gb in (("files", 0.0), ("cache", 1.0)):
            config = replace(config, cache_limit_gb=limit_gb)
            pairs = open_pairs(config, split_of(config).train, augment=True)
            for workers in WORKERS:
                speed = loader_speed(pairs, replace(config, num_workers=workers), seconds)
                rows.append({"source": source, "workers": workers, "pictures_per_second": speed})
    return rows


def loader_speed(pairs: PairedImages, config: Config, seconds: float) -> float:
    """Return the pictures a second that come out of the loader, one in a batch."""
    config = replace(config, batch_size=1, n_epochs=sys.maxsize // 2)
    with training_batches(pairs, config, Machine(torch.device("cpu"), torch.float32)) as batches:
        for _ in range(10):  # by then the workers have started
            next(batches)
        count, began = 0, time.perf_counter()
        # A few lay ready before it began.
        while count < 50 or time.perf_counter() - began < seconds:
            count += len(next(batches))
        return count / (time.perf_counter() - began)


def measure_translating(config: Config, seconds: float) -> list[Row]:
    """Return a row for batch size 1, whose ms are the latency, and one for 8."""
    rows = []
    for batch_size in (1, 8):
        turn = partial(take_turn, translation, replace(config, batch_size=batch_size), seconds)
        rows.append({"batch_size": batch_size, **attempt(turn)})
    return rows


# --- The check ---
def compare_ways(config: Config) -> list[Row]:
    """Train a little on towns in each of the WAYS, by train.py itself.

    Returns:
        For each way the losses of its last epoch, ``apart``, the largest difference of its
        weights from those of the first way (0: the same bits), the seconds, and what went wrong.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        draw_towns(Path(folder, "towns"), STEPS // 2, 2, size=config.crop_size)
        with ProcessPoolExecutor(1, get_context("spawn"), enter_quietly, (folder,)) as process:
            for way, runs in progress(WAYS.items(), desc="training", unit="way", leave=False):
                began, error = time.perf_counter(), None
                try:
                    for changes in runs:
                        settings = replace(config, name=way, **changes)
                        process.submit(train, settings).result()
                except (ValueError, RuntimeError) as raised:
                    error = str(raised).strip().partition("\n")[0]
                losses = dict.fromkeys(LOSSES) if error else last_losses(folder, way)
                apart = None if error else distance(folder, way, next(iter(WAYS)))
                seconds = time.perf_counter() - began
                rows.append({"way": way, **losses, "apart": apart, "s": seconds, "error": error})
    return rows


def enter_quietly(folder: str) -> None:
    """Let this process work in ``folder`` and print nothing."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def last_losses(folder: str, name: str) -> Row:
    """Return the mean LOSSES of a run's last epoch."""
    with open(Path(folder, "evaluation", name, "metrics.csv"), newline="") as file:
        *_, last = csv.DictReader(file)
    return {loss: f"{float(last[loss]):.5f}" for loss in LOSSES}


def distance(folder: str, one: str, other: str) -> str:
    """Return the largest difference between the weights of two runs."""
    paths = [Path(folder, "checkpoints", name, "latest.pt") for name in (one, other)]
    states = [load_checkpoint(path) for path in paths]
    apart = 0.0
    for network in ("generator", "discriminator"):
        for first, second in zip(*(state[network].values() for state in states), strict=True):
            apart = max(apart, (first - second).abs().max().item())
    return f"{apart:.1e}"


def waits_in_a_step(config: Config) -> str:
    """Say whether a step, once it has begun, waits for the card."""
    if pick_device(config.device).type != "cuda":
        return "not looked at: only CUDA can tell"
    usual = Config(crop_size=config.crop_size, device=config.device, cuda_graph=False)
    step = default_step(resolve(usual)[0])
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


# --- Up to a score ---
def measure_learning(config: Config, score: str, goal: float) -> list[Row]:
    """Train whole runs, by train.py itself, and tell when they reached a score.

    Args:
        config: Settings as typed, of which each way changes the recipe.
        score: A column of the table of a run, without ``val_``.
        goal: What it is to reach: at most for l1, at least for others.

    Returns:
        For each way the seconds of training to the goal (None: never), the best score, the last
        one, and the seconds of the whole training. The curves are drawn into evaluation/benchmark.

    Raises:
        ValueError: A run has no such score.
    """
    rows, curves = [], []
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        for way, changes in RECIPES_TO_LEARN.items():
            settings = replace(config, name=f"benchmark_{plain_name(way)}", **changes)
            process.submit(train, settings, True).result()
            curve = read_curve(settings.name, score)
            curves += [{"way": way, "seconds": s, score: value} for s, value in curve]
            rows.append({"way": way, **summary_of(curve, score, goal)})
    draw_learning(curves, score, goal)
    return rows


def read_curve(name: str, score: str) -> list[tuple[float, float]]:
    """Return the seconds and a score of each epoch of a run."""
    with open(Path("evaluation", name, "metrics.csv"), newline="") as file:
        table = list(csv.DictReader(file))
    if f"val_{score}" not in table[0]:
        names = ", ".join(column[4:] for column in table[0] if column.startswith("val_"))
        raise ValueError(f"These pictures have no score {score}; they have {names}.")
    return [(float(row["seconds"]), float(row[f"val_{score}"])) for row in table]


def summary_of(curve: Sequence[tuple[float, float]], score: str, goal: float) -> Row:
    """Return when a curve reaches a goal, its best and its last score, and when it ends."""
    sign = -1 if score == "l1" else 1
    reached = [seconds for seconds, value in curve if sign * value >= sign * goal]
    best = max((value for _, value in curve), key=lambda value: sign * value)
    end, last = curve[-1]
    return {"s_to_goal": min(reached, default=None), "best": best, "last": last, "s": end}


def draw_learning(curves: Sequence[Row], score: str, goal: float) -> None:
    """Write a score over the seconds of training, as a table and as a picture."""
    from matplotlib.figure import Figure  # here, as it takes a second to import

    folder = Path("evaluation", "benchmark")
    with whole_file(folder / f"{score}.csv") as draft, open(draft, "w", newline="") as file:
        table = csv.DictWriter(file, curves[0])
        table.writeheader()
        table.writerows(curves)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(row["way"] for row in curves):
        points = [(row["seconds"], row[score]) for row in curves if row["way"] == way]
        axes.plot(*zip(*points, strict=True), label=way, marker=".")
    axes.axhline(goal, color="grey", linewidth=1)
    axes.set(xlabel="seconds of training", ylabel=score)
    axes.legend()
    with whole_file(folder / f"{score}.png") as draft:
        figure.savefig(draft, format="png", dpi=110)


# --- The report ---
def hardware(device: torch.device) -> Row:
    """Return what the numbers depend on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return {
        "system": platform.platform(),
        "cpu": (models or [platform.processor()])[0],
        "threads": f"{torch.get_num_threads()} on {os.cpu_count()} cores",
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
    }


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows that have the same keys as a table."""
    print(f"\n{title}:")
    for line in (dict(zip(rows[0], rows[0], strict=True)), *rows):
        cells = (f"{v:,.2f}" if isinstance(v, float) else str(v) for v in line.values())
        print(*(f"{cell:>{max(len(name), 8)}}" for name, cell in zip(line, cells, strict=True)))


def benchmark(
    batch_sizes: tuple[int, ...] = (1, 4, 16),
    modes: tuple[Mode, ...] = ("plain", "default"),
    crop_size: int | None = None,
    device: str = "auto",
    seconds: float = 10.0,
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    processes: int = 1,
    recipes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    to: tuple[str, float] | None = None,
    dataset: str = "towns",
    n_epochs: int | None = None,
    report: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure how fast this machine trains, reads pictures and translates.

    Args:
        batch_sizes: Pictures a step.
        modes: plain (as the popular repositories do), default (as train.py does), amp (in half
            precision, where that is not the default).
        crop_size: Side of the pictures in pixels; None: 256, or with ``to`` the data set's.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.
        seconds: Time for each number; what is slow is done a few times all the same.
        check: Instead of reading and translating, check that training works on this device.
        processes: Measure instead how long a step takes when so many processes share it.
        recipes: Measure instead a step of each recipe, of classes and of photos.
        to: Measure instead how long whole trainings take to reach a score, as in accuracy 0.9.
        dataset: What these learn from, as in train.py.
        n_epochs: How many epochs they last, in the second half of which the learning rate falls;
            None: as the data set has it.
        report: File for all the numbers, as JSON.
    """
    shown = crop_size or 256
    config = Config(recipe="paper", dataset="benchmark", crop_size=shown, device=device)
    config, _ = resolve(config)
    refuse_early(config, batch_sizes, processes, report)
    content: Row = {"crop_size": shown, "machine": hardware(pick_device(device))}
    print(*(f"{name}: {value}" for name, value in content["machine"].items()), sep="\n")
    if to:
        epochs = epochs_of(n_epochs)
        typed = Config(dataset=dataset, device=device, crop_size=crop_size, **epochs)
        content["learning"] = measure_learning(typed, *to)
        show(f"Seconds of training to {' '.join(map(str, to))}", content["learning"])
        print(f"\nThe curves: {Path('evaluation', 'benchmark', to[0])}.png and .csv")
    elif recipes:
        content["recipes"] = measure_lessons(shown, device, seconds)
        show(f"By recipe at {shown} px, batch 1, ms a step (median, quartiles)", content["recipes"])
    else:
        if check:
            content |= check_training(config)
        measure = partial(measure_steps, config, modes)
        if processes > 1:
            measure = partial(measure_sharing, config, processes)
        content["steps"] = [row for n in batch_sizes for row in measure(n, seconds)]
        show(f"Training at {shown} px, ms a step (median, quartiles)", content["steps"])
        if not check and processes == 1:
            content["loading"] = measure_loading(config, seconds)
            show("Reading pairs", content["loading"])
            content["translating"] = measure_translating(config, seconds)
            show(f"Translating at {shown} px, ms a batch", content["translating"])
    if report:
        with whole_file(report) as draft:
            draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def refuse_early(
    config: Config, batch_sizes: Sequence[int], processes: int, report: Path | None
) -> None:
    """Say before all the work what is wrong with the request.

    Raises:
        ValueError, OSError: A batch size, or the file of the report, cannot be.
    """
    for batch_size in batch_sizes:
        replace(config, batch_size=batch_size)
        if batch_size % processes:
            raise ValueError(
                f"{processes} processes cannot share {batch_size} pictures evenly; give multiples "
                "of it as --batch-sizes."
            )
    if report:
        make_folder(report.absolute().parent)
        if report.is_dir():
            raise IsADirectoryError(f"{report} is a folder; name a file in it.")


def epochs_of(n_epochs: int | None) -> dict[str, int]:
    """Return the settings of so many epochs, in the second half of which the rate falls."""
    if n_epochs is None:
        return {}
    return {"n_epochs": n_epochs - n_epochs // 2, "n_epochs_decay": n_epochs // 2}


def check_training(config: Config) -> Row:
    """Check that training works on the device of ``config``; show and return what was found."""
    narrow = {"ngf": 32, "ndf": 32}  # for small checkpoints, which take most of the time
    size = {"crop_size": config.crop_size, "device": config.device}
    ways = compare_ways(Config(**size, n_epochs=2, n_epochs_decay=0, **narrow))
    show(f"Training {STEPS} steps", ways)
    waits = waits_in_a_step(config)
    print(f"\nWaits for the card within a step: {waits}")
    return {"ways": ways, "waits": waits}


def main() -> None:
    """Measure what the command line says."""
    tyro.cli(benchmark)


if __name__ == "__main__":
    run_script(main)
