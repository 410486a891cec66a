"""Measure how fast this machine trains, reads pictures and translates: ``python benchmark.py``.

Three ways to train the same networks on the same pictures:

    plain    as the popular repositories do: float32 with TF32 off, unfused Adam, memory given
             back after each use, four losses read in every step
    amp      what train.py does with --precision bf16 (fp16 on CUDA cards without bf16)
    default  what train.py does

Times are medians of as many as ``measured`` says, ms_low and ms_high their quartiles;
``share_of_ceiling`` is the speed of a step's arithmetic over that of a large matrix product in the
same precision.
"""

import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from config import Config
from dataset import PairedImages, normalise, training_loader
from devices import PRECISIONS, pick_device, pick_dtype
from disk import make_folder, whole_file
from recipes import resolve
from scripts import run_script
from sources import open_pairs, split_of
from towns.draw import draw_pair
from trials import PlainStep, Product, Step, Translation, take_turns, timed

Mode = Literal["plain", "amp", "default"]
Row = dict[str, Any]
NAMES = {dtype: name for name, dtype in PRECISIONS.items()}
N_FILES, FILE_SIDE = 100, 286  # files to read, and the side of their halves in pixels


# --- Training ---
def usual_modes(device: torch.device) -> tuple[Mode, ...]:
    """Return the modes that are worth their time on ``device``."""
    if pick_dtype("auto", device) != torch.float32:
        return get_args(Mode)
    print(f"amp is left out: train.py chooses fp32 on this {device.type} (else: --modes amp)")
    return ("plain", "default")


def measure_steps(
    config: Config, modes: Sequence[Mode], batch_sizes: Sequence[int], seconds: float
) -> tuple[list[Row], dict[str, float]]:
    """Return a row for each batch size and mode, and the GFLOP/s of the ceiling by precision."""
    auto = NAMES[pick_dtype("auto", pick_device(config.device))]
    all_modes = {"plain": "fp32", "amp": "bf16" if auto == "fp32" else auto, "default": auto}
    precisions = {mode: all_modes[mode] for mode in modes}
    products = {
        f"{name} product": (Product, replace(config, precision=name))
        for name in precisions.values()
    }
    rows: list[Row] = []
    ceilings = dict.fromkeys(precisions.values(), 0.0)
    for batch_size in batch_sizes:
        steps = {
            mode: (
                PlainStep if mode == "plain" else Step,
                replace(config, batch_size=batch_size, precision=precision),
            )
            for mode, precision in precisions.items()
        }
        timings = take_turns(steps | products, seconds, f"batch size {batch_size}")
        for mode, precision in precisions.items():
            row: Row = {"mode": mode, "precision": precision, "batch_size": batch_size}
            rows.append(row | timings[mode].numbers(batch_size))
        for name in ceilings:
            product = timings[f"{name} product"]
            ceilings[name] = max([ceilings[name], *(product.flops / ms / 1e6 for ms in product.ms)])
    for row in rows:
        ceiling = ceilings[row["precision"]]
        known = ceiling and not row["error"]
        row["share_of_ceiling"] = row["gflop"] / row["ms"] * 1000 / ceiling if known else None
    return rows, ceilings


# --- The data ---
def measure_pipeline(config: Config, seconds: float) -> tuple[list[Row], dict[str, float]]:
    """Time how pairs come out of JPEG files, out of the cache, and onto the device.

    Returns:
        Pictures a second, one at a time, by source and workers of the loader; and the speed of
        building the cache, and the seconds from opening it to the first batch.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        draw_files(Path(folder, "pairs"))
        config = replace(config, dataset=f"{folder}/pairs", cache_dir=f"{folder}/cache")
        found = split_of(config).train
        files = open_pairs(replace(config, cache_limit_gb=0), found, augment=True)
        began = time.perf_counter()
        cache = open_pairs(config, found, augment=True)
        build = len(found) / (time.perf_counter() - began)
        for source, pairs in (("files", files), ("cache", cache)):
            for workers in (0, 1, 2):
                speed = loader_speed(pairs, replace(config, num_workers=workers), seconds)
                row = {"source": source, "workers": workers, "pictures_per_second": speed}
                rows.append(row | {"per_worker": speed / max(1, workers)})
        began = time.perf_counter()
        batch = next(batches_of(open_pairs(config, found, augment=True), config))
        start = time.perf_counter() - began
    speed = transfer_speed(batch, config, seconds)
    rows.append(rows[0] | {"source": "transfer", "pictures_per_second": speed, "per_worker": speed})
    return rows, {"build_pictures_per_second": build, "warm_start_s": start}


def draw_files(folder: Path) -> None:
    """Draw ten pairs, and save them under N_FILES names."""
    folder.mkdir()
    pairs = [np.concatenate(draw_pair(0, "train", i, FILE_SIDE), axis=1) for i in range(10)]
    for number in range(N_FILES):
        Image.fromarray(pairs[number % 10]).save(folder / f"{number:03d}.jpg", quality=90)


def batches_of(pairs: PairedImages, config: Config) -> Iterator[Tensor]:
    """Return batches of one pair without end, as a run gets them."""
    return iter(training_loader(pairs, replace(config, batch_size=1, n_epochs=sys.maxsize // 2)))


def loader_speed(pairs: PairedImages, config: Config, seconds: float) -> float:
    """Return the pictures a second that come out of the loader."""
    batches = batches_of(pairs, config)
    for _ in range(10):  # by then the workers have started
        next(batches)
    count, began = 0, time.perf_counter()
    while count < 50 or time.perf_counter() - began < seconds:  # a few lay ready before it began
        count += len(next(batches))
    return count / (time.perf_counter() - began)


def transfer_speed(batch: Tensor, config: Config, seconds: float) -> float:
    """Return the pictures a second that get from a ``batch`` in memory to the networks."""
    device = pick_device(config.device)
    batch = batch.pin_memory() if device.type == "cuda" else batch

    def transfer() -> None:
        normalise(batch.to(device, non_blocking=True), config.input_nc)

    return len(batch) * 1000 / statistics.median(timed(transfer, device, seconds))


# --- Translating ---
def measure_inference(config: Config, seconds: float) -> list[Row]:
    """Return a row for batch size 1, whose ms are the latency, and one for 8."""
    trials = {f"of {size}": (Translation, replace(config, batch_size=size)) for size in (1, 8)}
    timings = take_turns(trials, seconds, "translating batches")
    sizes = zip((1, 8), timings.values(), strict=True)
    return [{"batch_size": size} | timing.numbers(size) for size, timing in sizes]


# --- The report ---
def hardware(device: torch.device) -> Row:
    """Return the hardware and the versions that the numbers depend on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return {
        "system": platform.platform(),
        "cpu": (models or [platform.processor()])[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "albumentations", "numpy")},
    }


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows that have the same keys as a table."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return "-" if value is None else str(value)

    lines = [list(row) for row in rows[:1]]
    lines += [[text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}:")
    for line in lines:
        print("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)))


def benchmark(
    batch_sizes: tuple[int, ...] = (1, 4, 16),
    modes: tuple[Mode, ...] = (),
    crop_size: int = 256,
    device: str = "auto",
    seconds: float = 10.0,
    report: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure how fast this machine trains, reads pictures and translates.

    Args:
        batch_sizes: Pictures a step; empty: do not train.
        modes: plain (as the popular repositories do), amp (half precision), default (as train.py
            does); empty: all of them, but amp only where the hardware computes in it.
        crop_size: Side of the pictures in pixels.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.
        seconds: Time for each number; what is slow is done a few times all the same.
        report: File for all the numbers, as JSON.

    Raises:
        ValueError, OSError: A setting that cannot work, or a file that cannot be written.
    """
    settings = {"recipe": "paper", "crop_size": crop_size, "device": device}
    config, _ = resolve(Config(dataset="benchmark", **settings))
    for batch_size in batch_sizes:
        replace(config, batch_size=batch_size)  # says what is wrong with it before all the work
    place = pick_device(device)
    if report:
        make_folder(report.absolute().parent)
        if report.is_dir():
            raise IsADirectoryError(f"{report} is a folder; name a file in it.")
    content: Row = {"machine": hardware(place), "crop_size": crop_size}
    print(*(f"{name}: {value}" for name, value in content["machine"].items()), sep="\n")

    steps, ceilings = measure_steps(config, modes or usual_modes(place), batch_sizes, seconds)
    content |= {"steps": steps, "ceiling_gflops": ceilings}
    for name, ceiling in ceilings.items():
        print(f"ceiling in {name}: {ceiling:,.0f} GFLOP/s")
    show(f"Training at {crop_size} px, ms a step (median, quartiles)", steps)

    content["pipeline"], content["cache"] = measure_pipeline(config, seconds)
    show("Reading pairs", content["pipeline"])
    print(*(f"{name}: {value:.3g}" for name, value in content["cache"].items()), sep="\n")

    content["inference"] = measure_inference(config, seconds)
    show(f"Translating at {crop_size} px, ms a batch (median, quartiles)", content["inference"])
    if report:
        with whole_file(report) as draft:
            draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what the command line says."""
    tyro.cli(benchmark)


if __name__ == "__main__":
    run_script(main)
