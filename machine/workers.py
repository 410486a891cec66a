"""Batches prepared by other processes, none of which can hang the run.

PyTorch's DataLoader takes each batch from a socket of the worker that made it. Where that one was
stopped, or found no shared memory, the main process waits for ever, deaf to every signal and time
limit. Here batches are written into memory that was allocated once, and a connection carries no
more than the word that one is done.
"""

import atexit
import mmap
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

AHEAD = 2  # batches in preparation, for each process
POLL_S = 1.0  # between two looks at the stop request
SILENT_S = 120.0  # a batch that was waited for so long never comes
REASONS = {
    "silent": "A process that prepares pairs was silent for long: it was stopped, or waits for its "
    "disk. Give the same command to go on, with --num-workers 0 if it happens again.",
    "memory": "The processes that prepare pairs have no shared memory left in /dev/shm. Give the "
    "same command to go on with --num-workers 0, or with more of it (docker run --shm-size 1g).",
    "start": "The processes that prepare pairs could not start: each first runs your script again. "
    'Put what it does below the line if __name__ == "__main__": or set num_workers to 0.',
    "error": "A process that prepares pairs ended by itself; what it said stands above. Mend that, "
    "and give the same command to go on.",
    "signal": "A process that prepares pairs was ended from outside. Give the same command to go "
    "on, with fewer --num-workers if memory ran out.",
}


class Batched(Protocol):
    """A data set that makes batches, all of one shape and type."""

    def __getitems__(self, keys: Any) -> Tensor:
        """Return the batch of these keys."""


def batches_from_workers(
    dataset: Batched,
    tasks: Iterable[Any],
    n_workers: int,
    *,
    check: Callable[[], None] = lambda: None,
    keep: Callable[[Tensor], Tensor] = torch.clone,
    method: str | None = None,
) -> Iterator[Tensor]:
    """Yield the batches of ``tasks`` in order; closing the generator ends the processes.

    Args:
        dataset: What makes a batch of a task, here and in each process.
        tasks: The keys of each batch.
        n_workers: Processes; with 0 each batch is made when it is asked for.
        check: Called every second while a batch is waited for; what it raises ends the waiting.
        keep: Copies a batch out of the shared memory, which a later one will overwrite.
        method: How processes start: "fork", "spawn" or "forkserver"; None is Python's default.

    Raises:
        OSError: A process is gone or silent.
        Exception: Whatever the data set raises, here or in a process.
    """
    tasks = iter(tasks)
    first = next(tasks, None)
    if first is None:
        return
    batch = dataset.__getitems__(first)
    if n_workers == 0:
        yield keep(batch)
        yield from map(keep, map(dataset.__getitems__, tasks))
        return
    with closing(_Workers(batch.numpy(), n_workers, method)) as workers:
        workers.start(dataset)
        for task in islice(tasks, AHEAD * n_workers):
            workers.give(task)
        yield batch
        while workers.taken < workers.given:
            batch = keep(workers.take(check))
            for task in islice(tasks, 1):
                workers.give(task)
            yield batch


class _Workers:
    """The processes, and the room for what they prepare; each takes every n-th task."""

    def __init__(self, example: np.ndarray, n_workers: int, method: str | None) -> None:
        self.context = multiprocessing.get_context(method)
        self.is_fork = self.context.get_start_method() == "fork"
        self.n_workers, self.n_slots = n_workers, AHEAD * n_workers
        n_bytes = self.n_slots * example.nbytes
        # Anonymous memory takes nothing from /dev/shm, but only a fork inherits it.
        self.memory = (
            mmap.mmap(-1, n_bytes) if self.is_fork else self.context.RawArray("B", n_bytes)
        )
        self.shape, self.dtype = (self.n_slots, *example.shape), example.dtype
        self.room = np.frombuffer(self.memory, self.dtype).reshape(self.shape)
        self.workers: list[tuple[BaseProcess, Connection]] = []
        self.given = self.taken = 0
        atexit.register(self.close)  # before multiprocessing waits for those that were stopped

    def start(self, dataset: Batched) -> None:
        """Start the processes, each with the data set."""
        for _ in range(self.n_workers):
            ours, theirs = self.context.Pipe()
            arguments = (theirs, dataset, self.memory, self.shape, self.dtype)
            process = self.context.Process(target=_work, args=arguments, daemon=True)
            try:
                process.start()
            except (RuntimeError, BrokenPipeError) as error:
                raise OSError(REASONS["start"]) from error
            self.workers.append((process, ours))
            theirs.close()  # so that its end is seen when the process ends

    def give(self, task: Any) -> None:
        """Hand the next task to the process whose turn it is."""
        _, connection = self.workers[self.given % self.n_workers]
        with suppress(OSError):  # whoever waits for the answer will find that it is gone
            connection.send((self.given % self.n_slots, task))
        self.given += 1

    def take(self, check: Callable[[], None]) -> Tensor:
        """Wait for the next batch; a later one will overwrite it."""
        process, connection = self.workers[self.taken % self.n_workers]
        # Counted, as the clock goes on while all are stopped.
        for _ in range(max(1, round(SILENT_S / POLL_S))):
            if connection.poll(POLL_S):
                break
            check()
        else:
            raise OSError(REASONS["silent"])
        try:
            failure = connection.recv()
        except (EOFError, OSError):
            time.sleep(POLL_S)  # the signal that ended it may be on its way to this process too
            check()
            raise OSError(REASONS[self._fate(process)]) from None
        if failure:
            error, origin = failure
            raise error from RuntimeError(f"in a process that prepares pairs:\n{origin}")
        batch = torch.from_numpy(self.room[self.taken % self.n_slots])
        self.taken += 1
        return batch

    def _fate(self, process: BaseProcess) -> str:
        process.join(POLL_S)
        code = process.exitcode or 0  # the number of a signal is negative
        if code > 0:
            return "error" if self.is_fork or self.taken else "start"
        return "memory" if code == -getattr(signal, "SIGBUS", 0) < 0 else "signal"

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        for process, connection in self.workers:
            process.kill()  # nothing else ends a process that was stopped
            connection.close()
        for process, _ in self.workers:
            process.join(5)


def _work(
    connection: Connection, dataset: Batched, memory: Any, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """Prepare what is asked for until the main process is gone."""
    # Ctrl-C and `timeout` signal the whole process group, but what it means is for the main
    # process to decide, which needs batches until then: workers leave the group.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits the main process's handler
    # A fork has none of the threads that OpenCV believes it started.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    room = np.frombuffer(memory, dtype).reshape(shape)
    parent = multiprocessing.parent_process().sentinel
    while connection in wait([connection, parent]):
        try:
            slot, keys = connection.recv()
        except (EOFError, OSError):
            return
        failure = None
        try:
            room[slot] = dataset.__getitems__(keys).numpy()
        except Exception as error:
            failure = _sendable(error)
        with suppress(BrokenPipeError):
            connection.send(failure)


def _sendable(error: Exception) -> tuple[Exception, str]:
    """Return an error as another process can raise it, and its traceback.

    An error that cannot be pickled becomes one in words.
    """
    origin = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own methods may raise anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error, origin
