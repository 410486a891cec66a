"""How scripts stop: on signals, at mistakes, and when memory runs out."""

import functools
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# What asks a program to end in good order: a person, `kill` and most batch systems, a closed
# terminal, Slurm's warning before the time is up, and a limit on processor time.
POLITE = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop.

    Args:
        message: What was done about it, and how to go on.
        signum: Number of the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message, signum)  # which is what pickle makes it from again
        self.message, self.signum = message, signum

    @property
    def exit_code(self) -> int:
        """The shell's number for it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signum

    def __str__(self) -> str:
        return self.message


def _is_ignored(signum: int) -> bool:
    return signal.getsignal(signum) == signal.SIG_IGN


class StopRequest:
    """Turns the POLITE signals into a request; a second Ctrl-C stops at once.

    A context: outside it, and in threads that cannot take signals, they act as ever. SIGHUP stays
    ignored under nohup.

    Args:
        speaks: Whether to say at once that the signal was heard.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for name in POLITE:
                signum = getattr(signal, name, None)  # Windows has the first two alone
                if signum is None or (name == "SIGHUP" and _is_ignored(signum)):
                    continue
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # Only a person presses twice; `timeout` sends SIGTERM twice within microseconds.
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if self.speaks and sys.__stderr__ is not None:
            with suppress(OSError, ValueError):  # where stderr was closed nobody listens
                # Not by print: the signal may have come in the middle of one.
                place = sys.__stderr__.fileno()
                os.write(place, b"\nStopping after this step (Ctrl-C again: at once).\n")

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.signum is not None:
            raise Interrupted("stopped", self.signum)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``, checking before each."""
        for item in items:
            self.check()
            yield item


def freeing_frames(function: Callable[..., T]) -> Callable[..., T]:
    """Let a stop of ``function`` free at once what it held, networks and workers above all.

    The traceback of an exception holds every frame that it passed through, and a notebook keeps
    the last one until the next.
    """

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> T:
        try:
            return function(*arguments, **options)
        except Interrupted as stop:
            message, signum = stop.args
        gc.collect()
        raise Interrupted(message, signum)

    return wrapper


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out; only some devices have a class of their own for that."""
    # The last is what torch says of a worker; systems that are short of memory kill one.
    signs = ("out of memory", "allocate memory", "not enough memory", "by signal: Killed")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def print_anything() -> None:
    """Let everything be printed: what an encoding lacks by its code, to nowhere if that is shut."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        elif stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the script


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``: a user's mistake ends in its message and exit code 2."""
    print_anything()
    try:
        main()
    except KeyboardInterrupt as stop:
        message = str(stop) or "Stopped at once; what was written before is as it was."
        print(message, file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "Lower num_workers; or, in a run of another --name, batch_size, crop_size or ngf."
        print(f"{error or 'Out of memory.'}\n{advice}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end would, too
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
