"""Bars that show how far a long work is; where nobody watches, a line now and then."""

import builtins
import contextlib
import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

LOG_S = 60  # seconds between two lines in a log file


class _LogLines(io.TextIOBase):
    """Turns the states of a bar into lines of their own on stderr."""

    def write(self, text: str) -> int:
        """Print a state of the bar as a line."""
        # Not the bare ends of lines between them. A log on a full disk is not worth a run.
        if line := text.strip():
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)
        return len(text)


def progress(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar over ``items``, with the ``options`` of tqdm."""
    is_watched = sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__")  # a notebook
    if not is_watched:
        options |= {"file": _LogLines(), "miniters": 1, "ncols": 110}
        # What is done within that time needs no line.
        options |= dict.fromkeys(("delay", "mininterval", "maxinterval"), LOG_S)
    return tqdm(items, dynamic_ncols=is_watched, **options)
