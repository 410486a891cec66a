"""The processes that share a run: those that torchrun or Slurm has started, or this one alone.

Each takes its share of every batch; the mean of their gradients is that of the whole batch. What
one of them meets, a signal or a bad picture, ends all of them between the same two steps.
"""

import functools
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from config import PATHS, Config
from machine.stopping import Interrupted

T = TypeVar("T")

# Settings that may differ from one computer to the other.
MAY_DIFFER = {*PATHS, "name", "mirror", "device", "num_workers"}

START_S = 300  # to find each other
TURN_S = 24 * 3600  # to fetch and decode a data set, while the others wait
SILENT_S = 600  # between two steps; a checkpoint is written in that time
ROLL_CALL_S = 5  # to say that one is there, after another was lost
POLL_S = 0.1
SHARED = (ValueError, OSError, MemoryError, Interrupted)  # what ends all in good order


class LostProcessError(OSError):
    """Another process of this run is gone or silent."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them; without others all of this does nothing."""

    rank: int = 0
    """Number of this process among all."""
    count: int = 1
    local_rank: int = 0
    """Number of this process among those of its computer."""
    store: dist.Store | None = None
    """Where each can be heard by the others when nothing else works."""
    cards: dist.ProcessGroup | None = None
    """The way by which CUDA cards talk, if there are any; all else goes by gloo."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    @property
    def rank_seed(self) -> tuple[int, ...]:
        """What is added to (seed, epoch, step) for noise of its own; rank 0 adds nothing."""
        return () if self.is_first else (self.rank,)

    def share_of(self, items: Sequence[T]) -> Sequence[T]:
        """Return what of ``items`` is for this process; the shares follow each other by rank."""
        start, end = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return items[start:end]

    # --- Tensors ---
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of ``tensors`` by its mean over the processes; it is one message for all."""
        if self.count == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._connected():
            dist.all_reduce(flat, group=self.cards if flat.is_cuda else None)
        means = (flat / self.count).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    # --- Anything else ---
    def gather(self, value: T) -> list[T]:
        """Return what each process gives, by rank."""
        values = [value] * self.count
        if self.count > 1:
            with self._connected():
                dist.all_gather_object(values, value)
        return values

    def from_rank_zero(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what ``function`` returns in the first process, which alone calls it.

        Raises:
            Exception: What it raises there.
        """
        with self.barrier():
            result = [function(*arguments) if self.is_first else None]
        if self.count > 1:
            with self._connected():
                dist.broadcast_object_list(result)
        return result[0]

    def in_turns(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function`` in the first process; then once on each computer; then everywhere.

        So the first makes what the later ones find: on a disk that all share, or else on that of
        their computer.

        Raises:
            Exception: What it raises in any of them.
        """
        own = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for turn in range(3 if self.count > 1 else 1):
            with self.barrier(TURN_S):
                if turn == own:
                    result = function(*arguments)
        return result

    # --- Ending together ---
    @contextmanager
    def barrier(self, patience_s: float = SILENT_S) -> Iterator[None]:
        """Wait at the end of the block for all others; an error of one is raised in all.

        Args:
            patience_s: How long to wait.

        Raises:
            LostProcessError: Some did not come; the message says which.
        """
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except LostProcessError:
            raise
        except SHARED as raised:
            error = raised
        first, _ = self._meet(error, patience_s=patience_s)
        if first is not None:
            raise first

    def _meet(
        self, error: BaseException | None, *, leaving: bool = False, patience_s: float = SILENT_S
    ) -> tuple[BaseException | None, bool]:
        """Wait for all; return the first error that any of them brings, and whether all leave."""
        flags = torch.tensor([error is not None, not leaving], dtype=torch.int32)
        with self._connected():
            if patience_s > SILENT_S:
                dist.monitored_barrier(timeout=timedelta(seconds=patience_s))
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        is_error, some_stay = flags.tolist()
        errors = [e for e in self.gather(error) if e is not None] if is_error else [None]
        return errors[0], not some_stay

    def leave(self, error: BaseException | None) -> None:
        """Wait until all are about to end, those that have yet to hear of an ``error`` included.

        Raises:
            Exception: The error of another.
        """
        all_leave = False
        while not all_leave:
            first, all_leave = self._meet(error, leaving=True)
        if error is None and first is not None:
            raise first

    def in_step(self, items: Iterator[T], check: Callable[[], None]) -> Iterator[T]:
        """Yield ``items`` when all processes have theirs; what stops one stops all before it.

        Args:
            items: As many in each process.
            check: Called before each; it may raise.

        Raises:
            Exception: What ``check`` or ``items`` raise in any process.
        """
        while True:
            with self.barrier():
                check()
                item = next(items, None)
            if item is None:
                return
            yield item

    # --- When one is missing ---
    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Say who is missing when a message cannot be sent, or does not come."""
        try:
            yield
        except RuntimeError as error:
            if dist.is_initialized():
                dist.destroy_process_group()  # so that those who wait for this one notice, too
            missing = self.roll_call("after a loss", ROLL_CALL_S)
            self.lose(missing, "ended, or was silent for long", error)

    def roll_call(self, occasion: str, patience_s: float) -> list[int]:
        """Return the ranks of those that do not answer in time."""
        missing = [*range(self.count)]
        ends = time.monotonic() + patience_s
        try:
            self.store.set(f"{occasion}/{self.rank}", platform.node())
            while missing and time.monotonic() < ends:
                missing = [rank for rank in missing if not self.store.check([f"{occasion}/{rank}"])]
                time.sleep(POLL_S)
        except RuntimeError:  # the first process may keep the store, and is gone
            return [0]
        return missing

    def lose(self, missing: Sequence[int], what: str, error: Exception | None = None) -> NoReturn:
        """End this process; the first that is still there says why."""
        if self.rank != min({*range(self.count)} - {*missing}):
            sys.exit(2)
        named = ", ".join(map(str, missing)) or "unknown"
        raise LostProcessError(
            f"Of {self.count} processes, rank {named} {what}; its own output, or torchrun's, may "
            "say why. The run goes on from its last checkpoint: give the same command."
        ) from error


ALONE = Processes()


def _place() -> tuple[int, int]:
    """Return the rank of this process and the number of all, as the environment says."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    *numbers, address = (os.environ.get(name, "") for name in names)
    if all(map(str.isdecimal, numbers)) and int(numbers[0]) < int(numbers[1]) and address:
        return int(numbers[0]), int(numbers[1])
    said = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in names)
    raise ValueError(
        f"The environment says {said}. Expected whole numbers, RANK below WORLD_SIZE, and the "
        "address of the first process, as torchrun sets them: start by torchrun, or unset "
        "WORLD_SIZE to train in one process"
    )


def check_alone(script: str) -> None:
    """Refuse to do in each of many processes what one does.

    Raises:
        ValueError: The environment says that there are several.
    """
    if _place()[1] > 1:
        raise ValueError(f"{script} works in one process; start it without torchrun or srun.")


def rank_zero_only(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method of what has ``processes`` do its work in the first of them alone."""

    @functools.wraps(method)
    def wrapper(self: Any, *arguments: Any, **options: Any) -> None:
        if self.processes.is_first:
            method(self, *arguments, **options)

    return wrapper


@contextmanager
def joined(config: Config) -> Iterator[Processes]:
    """Find the other processes of a run, if the environment says that there are some.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are as torchrun sets them.

    Args:
        config: Resolved settings.

    Raises:
        ValueError: With these settings many processes would make another run than one, or the
            environment says what cannot be.
        LostProcessError: Some are missing; the message says which.
    """
    rank, count = _place()
    if count == 1:
        yield ALONE
        return
    with rank_zero_prints(rank):
        _check(config, count)
        with _met(config) as processes:
            yield processes


@contextmanager
def rank_zero_prints(rank: int) -> Iterator[None]:
    """Let the first process alone print, and say what was wrong."""
    with ExitStack() as stack:
        is_silent = rank > 0
        if is_silent:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        try:
            yield
        except (*SHARED, KeyboardInterrupt) as error:
            if not is_silent or isinstance(error, LostProcessError):
                raise
            sys.exit(getattr(error, "exit_code", 2))


@contextmanager
def _met(config: Config) -> Iterator[Processes]:
    """Give the processes once they have found each other; end when all of them end."""
    error = None
    try:
        processes = find_others()
        try:
            _check_all(config, processes)
            yield processes
        except LostProcessError:
            raise
        except SHARED as raised:
            error = raised
            if threading.current_thread() is threading.main_thread():
                # Once one has ended torchrun ends the others, and the last word is yet to be said.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.leave(error)
        if error is not None:
            raise error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check(config: Config, count: int) -> None:
    """Refuse what would not be the run of one process."""
    if config.batch_size % (count * config.accumulate):
        parts = f", each in {config.accumulate} parts (accumulate)" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size {config.batch_size} cannot be shared evenly by {count} processes{parts}; "
            f"set it to a multiple of {count * config.accumulate}, or start another number of "
            "processes."
        )
    if config.norm.startswith("batch"):
        raise ValueError(
            f"norm {config.norm} takes statistics over the batch, and each of {count} processes "
            "sees only its share; use norm instance, or start one process."
        )


def _check_all(config: Config, processes: Processes) -> None:
    """Refuse processes that were started with other settings: they would wait in other places."""
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    first, *others = processes.gather(settings)
    differ = [
        f"  {name} is {other.get(name)} in rank {rank}, {first.get(name)} in rank 0"
        for rank, other in enumerate(others, start=1)
        for name in first | other
        if other.get(name) != first.get(name)
    ]
    if differ:
        raise ValueError(
            "The processes have different settings:\n" + "\n".join(differ) + "\nStart all with the "
            "same code, config.py and command"
        )


def find_others() -> Processes:
    """Find the others, and open the ways over which they talk: gloo for CPUs, NCCL for CUDA."""
    within = timedelta(seconds=START_S)
    try:
        store, rank, count = next(rendezvous("env://", timeout=within))
        store = _fresh_part(store, rank, count)
    except RuntimeError as error:
        place = "{MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)
        raise LostProcessError(
            f"The processes did not find each other at {place} within {START_S} s ({error}); start "
            "all of them with the same address, that of the first, which the others can reach."
        ) from error
    silent = timedelta(seconds=SILENT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=silent)
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()  # Windows has none
    cards = dist.new_group(backend="nccl", timeout=silent) if has_nccl else None
    return Processes(rank, count, int(os.environ.get("LOCAL_RANK", 0)), store, cards)


def _fresh_part(store: dist.Store, rank: int, count: int) -> dist.Store:
    """Return a part of ``store`` without what an earlier start has left there.

    torchrun keeps one store over its restarts. So each process takes a new name, and the first
    collects them until each says that its own is among them.

    Raises:
        LostProcessError: Some did not start in time; the message says which.
    """

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    name, ranks = uuid.uuid4().hex, range(count)
    store.set(f"name/{rank}", name)
    ends = time.monotonic() + START_S
    missing = [0]
    while time.monotonic() < ends:
        if rank == 0:
            names = " ".join(read(f"name/{other}") for other in ranks)
            store.set("names", names)
            missing = [other for other in ranks[1:] if read(f"seen/{other}") != names]
            if not missing:
                store.set("all", names)
        elif name in (names := read("names")):
            store.set(f"seen/{rank}", names)
            missing = []  # but for those that the first will name
        if name in (names := read("all")):
            return dist.PrefixStore(names.split()[0], store)
        time.sleep(POLL_S)
    Processes(rank, count).lose(missing, f"did not start within {START_S} s")
