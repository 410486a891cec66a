"""What benchmark.py times, and the processes that time it in turns."""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from dataset import normalise
from devices import Machine, choose_machine, pick_device, pick_dtype
from progress import progress
from scripts import is_out_of_memory
from train import discriminator_loss, generator_losses, new_state, train_step, weights
from utils import build_generator

ROUNDS = 5  # turns that each trial gets


# --- What is timed ---
class Trial:
    """Something to be timed: calling it does it once.

    Args:
        config: Resolved settings.
        machine: Where and how to compute; None: as the settings say.
    """

    group = 1
    """How often it is done before the device is waited for."""

    def __init__(self, config: Config, machine: Machine | None = None) -> None:
        self.config = config
        self.machine = machine or choose_machine(config.device, config.precision)


class Step(Trial):
    """A training step on random pictures, as train.py takes it."""

    def __init__(self, config: Config, machine: Machine | None = None) -> None:
        super().__init__(config, machine)
        device = self.machine.device
        if device.type != "cpu":  # as in a run, which works ahead until the losses are read
            self.group = config.log_interval
        self.state = new_state(config, self.machine)
        size = (config.batch_size, config.input_nc + config.output_nc, *[config.crop_size] * 2)
        batch = torch.randint(256, size, dtype=torch.uint8)
        self.x, self.y = normalise(batch.to(device), config.input_nc)

    def __call__(self) -> None:
        """Take one step."""
        train_step(self.state, self.x, self.y, self.config, self.machine)


class PlainStep(Step):
    """A step as the popular repositories take it.

    It is written out, to stay what it is when ``train_step`` becomes faster.
    """

    def __init__(self, config: Config) -> None:
        torch.backends.cudnn.allow_tf32 = False
        # Made by hand, it lets the system have freed memory back.
        super().__init__(config, Machine(pick_device(config.device), torch.float32))
        for name in ("optimizer_g", "optimizer_d"):
            (group,) = getattr(self.state, name).param_groups
            # Parameter by parameter, operation by operation.
            plain = {"lr": group["lr"], "betas": group["betas"], "foreach": False, "fused": False}
            setattr(self.state, name, torch.optim.Adam(group["params"], **plain))

    def __call__(self) -> None:
        """Take one step."""
        state, x, y, config = self.state, self.x, self.y, self.config
        fake = state.generator(x)
        logits = state.discriminator(x, y), state.discriminator(x, fake.detach())
        loss_d = discriminator_loss(*logits, config.gan_mode)
        state.optimizer_d.zero_grad()
        loss_d.backward()
        state.optimizer_d.step()

        state.discriminator.requires_grad_(False)
        terms = generator_losses(state.discriminator(x, fake), fake, y, config)
        loss_g = sum(weight * terms[name] for name, weight in weights(config).items())
        state.optimizer_g.zero_grad()
        loss_g.backward()
        state.optimizer_g.step()
        state.discriminator.requires_grad_(True)
        for loss in (loss_d, *terms.values(), loss_g):
            loss.item()


class Product(Trial):
    """A matrix product, large enough to keep all of the device busy."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        device, dtype = self.machine.device, self.machine.dtype
        side = 2048 if device.type == "cpu" else 8192
        if dtype != torch.float32 and pick_dtype("auto", device) == torch.float32:
            side //= 4  # emulated it would take minutes, and is as slow in small
        self.a, self.b = torch.rand(2, side, side, device=device).to(dtype)

    def __call__(self) -> None:
        """Multiply."""
        torch.mm(self.a, self.b)


class Translation(Trial):
    """The generator at test time, on ``config.batch_size`` random pictures."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.generator = build_generator(config).to(self.machine.device).eval()
        size = (config.batch_size, config.input_nc, config.crop_size, config.crop_size)
        self.x = torch.rand(size, device=self.machine.device) * 2 - 1

    def __call__(self) -> None:
        """Translate the batch."""
        with torch.inference_mode(), self.machine.autocast:
            self.generator(self.x)


# --- Processes that take turns ---
@dataclass
class Timing:
    """What the turns of one process gave."""

    ms: list[float] = field(default_factory=list)
    """Milliseconds of each time; of a group of times, their mean."""
    flops: int = 0
    """Floating-point operations of one time, as torch counts them."""
    peak_mb: float | None = None
    """Most memory (1e6 bytes) that the process, or on CUDA torch, has held, where it is known."""
    error: str = ""
    """Why there are no numbers."""

    def numbers(self, pictures: int) -> dict[str, Any]:
        """Return what a table says of it, each time having dealt with so many ``pictures``.

        ``ms`` is the median, ``ms_low`` and ``ms_high`` are the quartiles; all are None where
        there is an ``error``.
        """
        names = ("ms", "ms_low", "ms_high", "measured", "pictures_per_second", "peak_mb", "gflop")
        row: dict[str, Any] = dict.fromkeys(names)
        if not self.error:
            low, ms, high = statistics.quantiles(self.ms, n=4, method="inclusive")
            speed = pictures / ms * 1000
            values = (ms, low, high, len(self.ms), speed, self.peak_mb, self.flops / 1e9)
            row |= zip(names, values, strict=True)
        return row | {"error": self.error or None}


def take_turns(
    trials: Mapping[str, tuple[type[Trial], Config]], seconds: float, title: str
) -> dict[str, Timing]:
    """Time ``trials`` in turns, each in a process of its own.

    So a machine that slows down slows all alike, and memory and settings of one do not touch
    another.

    Args:
        trials: For each name the class of the trial, and its settings.
        seconds: How long to time each of them; it is done ROUNDS times at least.
        title: What the progress bar says.

    Returns:
        The timings by name. A trial that does not fit into the memory, or whose process dies, has
        an error instead, and the others go on.
    """
    timings = {name: Timing() for name in trials}
    options: dict[str, Any] = {
        "max_workers": 1,
        "mp_context": get_context("spawn"),  # a fork would begin with the memory of this process
        # What Ctrl-C means is for this process to decide.
        "initializer": signal.signal,
        "initargs": (signal.SIGINT, signal.SIG_IGN),
    }
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(**options)) for name in trials}
        for started in [pool.submit(int) for pool in pools.values()]:  # all before any is timed
            started.result()
        with progress([*trials] * ROUNDS, desc=title, unit="turn", leave=False) as bar:
            for name in bar:
                bar.set_postfix_str(name)
                if not timings[name].error:
                    turn = _turn_in(pools[name], *trials[name], seconds / ROUNDS)
                    turn.ms = timings[name].ms + turn.ms
                    timings[name] = turn
    return timings


def _turn_in(pool: Executor, *arguments: Any) -> Timing:
    try:
        return pool.submit(_turn, *arguments).result()
    except BrokenProcessPool:
        return Timing(error="its process was killed, most often for want of memory")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Timing(error="out of memory")


def _turn(make: type[Trial], config: Config, seconds: float) -> Timing:
    trial, flops = _prepared(make, config, seconds)
    device = trial.machine.device
    return Timing(timed(trial, device, seconds, trial.group), flops, _peak_mb(device))


@cache
def _prepared(make: type[Trial], config: Config, seconds: float) -> tuple[Trial, int]:
    """Make a trial and warm it up, in the first turn of its process; count its operations."""
    trial = make(config)
    began = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        trial()
    if time.perf_counter() - began < seconds:  # what is fast has more to warm up than once
        timed(trial, trial.machine.device, seconds, trial.group)
    return trial, counter.get_total_flops()


def timed(
    act: Callable[[], None], device: torch.device, seconds: float, group: int = 1
) -> list[float]:
    """Act for so many ``seconds``, at least once; return milliseconds as in ``Timing``."""
    ms: list[float] = []
    end = time.perf_counter() + seconds
    while not ms or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(group):
            act()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        ms.append((time.perf_counter() - began) * 1000 / group)
    return ms


def _peak_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
