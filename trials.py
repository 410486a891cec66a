"""What benchmark.py times, and the processes that time it in turns."""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from config import Config
from dataset import normalise
from train import TrainingState, discriminator_loss, generator_loss, l1_loss, new_state, train_step
from devices import keep_freed_memory, pick_device, pick_dtype
from scripts import is_out_of_memory
from utils import build_generator, configure_for_test, pick_autocast, set_tf32

Mode = Literal["plain", "amp", "default"]
ROUNDS = 5  # turns that each trial gets


# --- What is timed ---
class Trial(Protocol):
    """Something to be timed: calling it does it once."""

    device: torch.device
    group: int
    """How often it is done before the device is waited for."""

    def __call__(self) -> None:
        """Do it."""


class Step:
    """A training step on random pictures.

    Args:
        mode: "plain" trains as the popular repositories do, the others as train.py does.
        config: Resolved settings.
    """

    def __init__(self, mode: Mode, config: Config) -> None:
        self.config, self.device = config, pick_device(config.device)
        # As in a run, where an accelerator works ahead until the losses are read.
        self.group = 1 if self.device.type == "cpu" else config.log_interval
        self.autocast = pick_autocast(config.precision, self.device)
        set_tf32(config.precision)
        self.is_plain = mode == "plain"
        if not self.is_plain:
            keep_freed_memory()
        self.state = new_state(config, self.device)
        if self.is_plain:
            unfuse(self.state)
        size = (config.batch_size, config.input_nc + config.output_nc, *[config.crop_size] * 2)
        batch = torch.randint(256, size, dtype=torch.uint8)
        self.x, self.y = normalise(batch.to(self.device), config.input_nc)

    def __call__(self) -> None:
        """Take one step."""
        if self.is_plain:
            plain_step(self.state, self.x, self.y, self.config)
        else:
            train_step(self.state, self.x, self.y, self.config, self.autocast)


def unfuse(state: TrainingState) -> None:
    """Give ``state`` optimisers that take the parameters one by one, operation by operation."""
    for name in ("optimizer_g", "optimizer_d"):
        group = getattr(state, name).param_groups[0]
        settings = {"lr": group["lr"], "betas": group["betas"], "foreach": False, "fused": False}
        setattr(state, name, torch.optim.Adam(group["params"], **settings))


def plain_step(state: TrainingState, x: Tensor, y: Tensor, config: Config) -> None:
    """Do what ``train_step`` does, written out to stay what it is when that becomes faster."""
    generator, discriminator = state.generator, state.discriminator
    fake = generator(x)
    real_logits, fake_logits = discriminator(x, y), discriminator(x, fake.detach())
    loss_d = discriminator_loss(real_logits, fake_logits, config.gan_mode)
    state.optimizer_d.zero_grad()
    loss_d.backward()
    state.optimizer_d.step()

    discriminator.requires_grad_(False)
    loss_g_gan, l1 = generator_loss(discriminator(x, fake), config.gan_mode), l1_loss(fake, y)
    loss_g = loss_g_gan + config.lambda_l1 * l1
    state.optimizer_g.zero_grad()
    loss_g.backward()
    state.optimizer_g.step()
    discriminator.requires_grad_(True)
    for loss in (loss_d, loss_g_gan, l1, loss_g):
        loss.item()


class Product:
    """A matrix product, large enough to keep all of the device busy.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: Where to multiply.
    """

    group = 1

    def __init__(self, precision: str, device: str) -> None:
        self.device = pick_device(device)
        set_tf32(precision)
        dtype = pick_dtype(precision, self.device)
        side = 2048 if self.device.type == "cpu" else 8192
        if dtype != torch.float32 and pick_dtype("auto", self.device) == torch.float32:
            side //= 4  # emulated it would take minutes, and is as slow in small
        self.a, self.b = torch.rand(2, side, side, device=self.device).to(dtype)

    def __call__(self) -> None:
        """Multiply."""
        torch.mm(self.a, self.b)


class Translation:
    """The generator at test time, on ``config.batch_size`` random pictures.

    Args:
        config: Resolved settings.
    """

    group = 1

    def __init__(self, config: Config) -> None:
        self.device = pick_device(config.device)
        self.autocast = pick_autocast(config.precision, self.device)
        set_tf32(config.precision)
        self.generator = build_generator(config).to(self.device)
        configure_for_test(self.generator, config)
        size = (config.batch_size, config.input_nc, config.crop_size, config.crop_size)
        self.x = torch.rand(size, device=self.device) * 2 - 1

    def __call__(self) -> None:
        """Translate the batch."""
        with torch.inference_mode(), self.autocast:
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
    trials: Mapping[str, tuple[Any, ...]], seconds: float, title: str
) -> dict[str, Timing]:
    """Time ``trials`` in turns, each in a process of its own.

    So a machine that slows down slows all alike, and memory and settings of one do not touch
    another.

    Args:
        trials: For each name, what makes the trial, and its arguments.
        seconds: How long to time each of them; it is done ROUNDS times at least.
        title: What the progress bar says.

    Returns:
        The timings by name. A trial that does not fit into the memory, or whose process dies, has
        an error instead, and the others go on.
    """
    processes = {name: _Process(*trial) for name, trial in trials.items()}
    try:
        with tqdm([*processes] * ROUNDS, desc=title, unit="turn", leave=False) as bar:
            for name in bar:
                bar.set_postfix_str(name)
                processes[name].take_turn(seconds / ROUNDS)
    finally:
        for process in processes.values():
            process.end()
    return {name: process.timing for name, process in processes.items()}


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


class _Process:
    """Asks a process for one turn after the other, and collects its timing."""

    def __init__(self, make: Callable[..., Trial], *arguments: Any) -> None:
        self.timing = Timing()
        context = get_context("spawn")  # a fork would begin with the memory of this process
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def take_turn(self, seconds: float) -> None:
        if self.timing.error:
            return
        try:
            self.pipe.send(seconds)
            turn = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            why = " (killed, most often for want of memory)" if code == -9 else ""
            turn = Timing(error=f"its process ended with exit code {code}{why}")
        turn.ms = self.timing.ms + turn.ms
        self.timing = turn

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, make: Callable[..., Trial], *arguments: Any) -> None:
    """Answer each number of seconds that comes through ``pipe`` with the Timing of one turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means is for the parent to decide
    try:
        seconds = pipe.recv()
        trial = make(*arguments)
        began = time.perf_counter()
        with FlopCounterMode(display=False) as counter:
            trial()
        if time.perf_counter() - began < seconds:  # what is fast has more to warm up than once
            timed(trial, trial.device, seconds, trial.group)
        while True:
            ms = timed(trial, trial.device, seconds, trial.group)
            pipe.send(Timing(ms, counter.get_total_flops(), _peak_mb(trial.device)))
            seconds = pipe.recv()
    except (EOFError, ConnectionError):
        return  # the parent has all that it wants
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        pipe.send(Timing(error="out of memory"))


def _peak_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
