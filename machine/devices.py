"""Where to compute, and in which precision."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from config import Config
from machine.processes import ALONE, Processes, joined

T = TypeVar("T")
EAGER_STEPS = 3  # before one is recorded: by then all that is set up once is there
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Where a script computes, and how."""

    device: torch.device
    dtype: torch.dtype
    """The type in which autocast computes; float32 means that it is off."""
    processes: Processes = ALONE
    """Those that share the run."""

    @property
    def autocast(self) -> torch.autocast:
        """The context for forward passes; it does nothing for float32."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def new_scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients from vanishing in fp16; it does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def compile(self, network: nn.Module, method: str) -> None:
        """Let torch.compile write faster kernels for a method; the weights stay as they are.

        Raises:
            ValueError: This machine has no compiler for the device.
        """
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(1, device=self.device))
        except Exception as error:  # each backend raises its own
            raise ValueError(
                "compile is on, but torch.compile fails here "
                f"({str(error).strip().splitlines()[0]}); install a C++ compiler (for CUDA, "
                "triton), or leave compile off."
            ) from error
        # Trying out which kernels are fastest takes seconds at the start, and is worth it where
        # convolutions are most of what is left.
        torch.backends.cudnn.benchmark = True
        setattr(network, method, torch.compile(getattr(network, method)))


@contextmanager
def machine_for(config: Config) -> Iterator[Machine]:
    """Give where and how a run computes, together with the other processes that share it, if any.

    Args:
        config: Resolved settings.

    Raises:
        ValueError: This machine has no such device, or processes cannot share such a run.
        LostProcessError: Some processes are missing; the message says which.
    """
    with joined(config) as processes:
        yield choose_machine(config.device, config.precision, processes)


def choose_machine(
    device: str | torch.device = "auto", precision: str = "auto", processes: Processes = ALONE
) -> Machine:
    """Return where and how to compute, and set up this process for it.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32", "bf16", "fp16", or "auto". Anything but fp32 also lets CUDA round the
            inputs of float32 products to 19 bits (TF32).
        processes: Those that share the run; each takes a CUDA card of its own.

    Raises:
        ValueError: This machine has no such device, or too few for the processes.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    keep_freed_memory()
    found = own_device(pick_device(str(device)), processes)
    return Machine(found, pick_dtype(precision, found), processes)


def own_device(device: torch.device, processes: Processes) -> torch.device:
    """Return the device of this process where all are asked to take ``device``.

    Raises:
        ValueError: There are not enough of them, or processes cannot share a run on them.
    """
    if processes.count == 1 or device.type == "cpu":
        return device
    if device != torch.device("cuda:0"):
        raise ValueError(
            f"device {device} serves one process only; with several, set device to cuda (a card "
            "for each process) or cpu."
        )
    # Slurm can show each process one card alone, its own, which it then calls the first. Those of
    # torchrun, which sets LOCAL_WORLD_SIZE, all see the same ones.
    is_shown_its_own = {"CUDA_VISIBLE_DEVICES"} == os.environ.keys() & {
        *("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE")
    }
    shows_one = torch.cuda.device_count() == 1 and is_shown_its_own
    own = pick_device(f"cuda:{0 if shows_one else processes.local_rank}")
    torch.cuda.set_device(own)
    return own


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    found = ["cpu"]
    found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device({"cpu": "cpu", "mps": "mps"}.get(found[-1], "cuda:0"))
    wanted = {"cuda": "cuda:0", "mps:0": "mps"}.get(name, name)
    if wanted not in found:
        raise ValueError(f"device is {name!r}; this machine has {', '.join(found)} (or auto).")
    return torch.device(wanted)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type in which autocast computes: float32 means that it is off.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware has it (emulated
            bf16 is slower than float32), else fp16 on CUDA, else fp32.
        device: Where the networks are.
    """
    if precision in PRECISIONS:
        return PRECISIONS[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def cuda_graphed(
    step: Callable[[Tensor], T],
    optimizers: Sequence[torch.optim.Optimizer],
    config: Config,
    machine: Machine,
) -> Callable[[Tensor], T]:
    """Return ``step``, on CUDA to be recorded at its fourth call and played back from then on.

    At batch size 1 a card is done with each kernel before Python has started the next one. Played
    back, the thousand kernels of a step are started at once.

    Args:
        step: Takes a batch, always of one shape, and never waits for the card. What is no tensor,
            such as the learning rate, stays as it was when the step was recorded.
        optimizers: Those that it uses.
        config: Resolved settings: whether to record at all, and whether the step can be.
        machine: On other devices, and where processes share the run, ``step`` stays as it is.

    Returns:
        The step; recorded, each call overwrites the tensors that the one before it returned.
    """
    # Maps that are computed again ask for the random state, which torch 2.9 cannot record.
    is_plain = config.accumulate == 1 and not config.recompute and machine.processes.count == 1
    if not (config.cuda_graph and is_plain and machine.device.type == "cuda"):
        return step
    graph, n_calls = torch.cuda.CUDAGraph(), 0
    given: Tensor
    result: T

    def act(batch: Tensor) -> T:
        nonlocal n_calls, given, result
        n_calls += 1
        if n_calls <= EAGER_STEPS:
            return step(batch)
        if n_calls == EAGER_STEPS + 1:
            given = batch.clone()
            allow_recording(optimizers, True)
            with torch.cuda.graph(graph):
                result = step(given)
            allow_recording(optimizers, False)
        given.copy_(batch)
        graph.replay()
        return result

    return act


def allow_recording(optimizers: Sequence[torch.optim.Optimizer], allowed: bool) -> None:
    """Say to each optimiser whether it is to be recorded; it warns of what it did not expect."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["capturable"] = allowed


def keep_freed_memory() -> None:
    """Let Linux's C library keep large freed blocks, for the next step or picture to use.

    It gives each back to the system otherwise, and a step at 128 px on a CPU then spends a fifth
    of its time on 50,000 page faults, translating eight pictures at 256 px three quarters. Other
    C libraries are left as they are.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            m_trim_threshold, m_mmap_threshold = -1, -3  # as in glibc's malloc.h
            libc.mallopt(m_mmap_threshold, 2**30)
            libc.mallopt(m_trim_threshold, 2**31 - 1)
