"""Which pictures become which files, and how they are read and written beside other work."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from machine.disk import is_full, reason_of, whole_file
from pictures.decode import Picture, PictureError
from pictures.encode import HOLDS, write
from pictures.folders import (
    NO_PICTURES,
    SUFFIXES,
    check_folder,
    counted,
    files_below,
    is_picture,
    listed,
    normal_name,
)

A, B = TypeVar("A"), TypeVar("B")


@dataclass(frozen=True)
class Job:
    """One picture file, and the files of its outputs by their seeds; None: no noise."""

    source: Path
    targets: dict[int | None, Path]


def find_jobs(source: str, output: Path, *, suffix: str = ".png", samples: int = 0) -> list[Job]:
    """Return what to translate to which files.

    Args:
        source: A picture, a folder (with the folders below it), or a pattern such as ``a/*.jpg``.
        output: The file, where the source is one picture and this ends in a picture's suffix;
            else the folder, in which the tree below the source is kept.
        suffix: Of the outputs in a folder.
        samples: With one or more, that many outputs a picture, called NAME_1 and so on.

    Raises:
        ValueError, OSError: Nothing is found; or an output would overwrite an input or another
            output, or lie among the inputs.
    """
    source, output = os.path.expanduser(source), Path(os.path.expanduser(output))
    one_file = os.path.isfile(source) and bool(output.suffix) and not output.is_dir()
    if one_file and output.suffix.lower() not in HOLDS:
        raise ValueError(
            f"{output} cannot be written; end it in {', '.join(HOLDS)}, or name a folder."
        )
    root = _root(source)
    jobs: list[Job] = []
    for path in _pictures_at(source, output):
        target = output if one_file else (output / path.relative_to(root)).with_suffix(suffix)
        numbered = {
            seed: target.with_name(f"{target.stem}_{seed + 1}{target.suffix}")
            for seed in range(samples)
        }
        jobs.append(Job(path, numbered or {None: target}))
    _check_targets(jobs)
    if not one_file and any(job.source.parent.resolve() == output.resolve() for job in jobs):
        raise ValueError(
            f"The outputs would lie among the pictures in {output}; give another folder for them."
        )
    return jobs


def left_out(source: str, output: Path, jobs: Sequence[Job]) -> str:
    """Say in one line what lies at a source and is in none of its ``jobs``; "" if nothing does."""
    source, taken = os.path.expanduser(source), {job.source for job in jobs}
    files = [path for path in _files_at(source, output) if path not in taken]
    left = counted((f for f in files if f.suffix.lower() not in NO_PICTURES), _root(source))
    return f"left out of {source}: {left}" if left else ""


def _pictures_at(source: str, output: Path) -> list[Path]:
    files = _files_at(source, output)
    found = files if os.path.isfile(source) else [path for path in files if is_picture(path)]
    if not found:
        pattern = " as a pattern, in which [ ] have a meaning," if "[" in source else ""
        held = f" ({counted(files, _root(source))})" if files else ""
        raise ValueError(
            f"{source}{pattern} holds no pictures{held}; expected {', '.join(SUFFIXES)}."
        )
    return found


def _files_at(source: str, output: Path) -> list[Path]:
    """Return the files at a source, but for those that an earlier run wrote below it."""
    if os.path.isfile(source):
        return [Path(source)]
    if glob.has_magic(source) and not os.path.exists(source):
        matches = sorted(Path(path) for path in glob.glob(source, recursive=True))
        files = [path for path in matches if path.is_file()]
    else:
        check_folder(Path(source), "the folder of pictures")
        files = list(files_below(Path(source)))
    inside = output.resolve()
    if _root(source).resolve() in inside.parents:
        files = [path for path in files if inside not in path.resolve().parents]
    return files


def _root(source: str) -> Path:
    """Return the folder to which the names of the outputs are relative."""
    if os.path.exists(source):
        return Path(source).parent if os.path.isfile(source) else Path(source)
    parts = Path(source).parts
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:plain])


def _check_targets(jobs: list[Job]) -> None:
    taken = {_place(job.source): job.source for job in jobs}
    inputs, clashes = set(taken), []
    for job in jobs:
        for target in job.targets.values():
            place = _place(target)
            if place in taken:
                what = "overwrite" if place in inputs else "be that of"
                clashes.append(f"{target}, from {job.source}, would {what} {taken[place]}")
            taken[place] = job.source
    if clashes:
        raise ValueError(
            f"Outputs would overwrite pictures:\n{listed(clashes)}\n"
            "Give another folder for the outputs, or rename the pictures listed."
        )


def _place(path: Path) -> str:
    # Windows and macOS take names for the same that differ in case or in how accents are stored.
    return normal_name(os.path.realpath(path)).casefold()


def save(output: tuple[Path, Picture]) -> None:
    """Write a picture so that no moment leaves half of it under its name.

    Raises:
        PictureError: It cannot be written.
        OSError: The disk is full, as it will be for the next one.
    """
    path, picture = output
    try:
        with whole_file(path) as draft:
            write(draft, picture, HOLDS[path.suffix.lower()][0])
    except OSError as error:
        if is_full(error):
            raise OSError(f"{path} cannot be written: {reason_of(error)}; free some.") from error
        raise PictureError({path: f"it cannot be written ({reason_of(error)})"}) from error


def ahead(
    pool: Executor, function: Callable[[A], B], items: Iterable[A | PictureError], depth: int = 8
) -> Iterator[B | PictureError]:
    """Yield ``function`` of each item, in order, while more are being worked on.

    Instead of a result comes the PictureError that was raised, or that the item was already.
    """
    waiting: deque[Future[B | PictureError]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_attempt, function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _attempt(function: Callable[[A], B], item: A | PictureError) -> B | PictureError:
    try:
        return item if isinstance(item, PictureError) else function(item)
    except PictureError as error:
        return error
