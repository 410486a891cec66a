"""Tar files, called shards: what they hold, and their members as files that are read in place."""

import errno
import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pictures.folders import ADDRESS, identity, listed, normal_name

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2|txz)$", re.IGNORECASE)
# What compressed files begin with, whatever they are called.
COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\3\4")
MOST_SHARDS = 1_000_000  # that a pattern may number
PADDING = 1 << 20  # bytes after its end that a tar file may be filled up with
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)


@dataclass(frozen=True)
class Member:
    """A file in a shard, for those who open it as they would a Path."""

    shard: Path
    start: int
    """Where in the shard it begins, with its header."""

    @cached_property
    def path(self) -> PurePosixPath:
        """Its path within the shard; of one that is not there any more, its place."""
        try:
            with self._found() as (_, member):
                return PurePosixPath(member.name)
        except OSError:
            return PurePosixPath(f"at byte {self.start}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return its content.

        Raises:
            OSError: The shard is gone, or no longer the one that was listed.
        """
        with self._found() as (tar, member):
            return io.BytesIO(tar.extractfile(member).read())

    def stat(self) -> os.stat_result:
        """Return what the system knows of its shard."""
        return self.shard.stat()

    def __str__(self) -> str:
        return f"{self.shard}/{self.path}"

    @contextmanager
    def _found(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with tarfile.open(self.shard, "r:") as tar:
                tar.fileobj.seek(self.start)
                yield tar, tarfile.TarInfo.fromtarfile(tar)
        except tarfile.TarError as error:
            reason = f"its shard has changed or is damaged ({error})"
            raise OSError(errno.EIO, reason, str(self.shard)) from error


def is_shards(dataset: str) -> bool:
    """Tell by its name whether a data set is one of shards."""
    return dataset.endswith(".tar") or bool(COMPRESSED.search(dataset) and RANGE.search(dataset))


def find_shards(pattern: str) -> list[Path]:
    """Return the shards that a pattern names, by absolute paths.

    Args:
        pattern: A path; ``{000..099}`` in it stands for each of these numbers, and ``*`` and ``?``
            for whatever is there.

    Raises:
        OSError: Some do not exist.
        ValueError: They are no tar files, or compressed, or not on this computer.
    """
    if ADDRESS.match(pattern):
        raise ValueError(
            f"{pattern} is an address, but shards must be local files. Fetch them, or mount their "
            "place as a folder"
        )
    if COMPRESSED.search(pattern):
        raise _compressed(pattern)
    if not is_shards(pattern):
        raise ValueError(f"{pattern} names no shards. Expected the path of .tar files")
    paths = list(chain.from_iterable(map(_there, _numbered(os.path.abspath(pattern)))))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        raise FileNotFoundError(
            f"Of the {len(paths)} shards of {pattern} {len(missing)} do not exist:\n"
            f"{listed(missing)}\nGive the numbers that there are, as in train-{{000..099}}.tar, "
            "or train-*.tar for all"
            if paths
            else f"There are no shards {pattern}. Give the path of tar files"
        )
    found: dict[object, Path] = {}  # each once, though a link names it again
    for path in map(Path, paths):
        found.setdefault(identity(path), path)
    return [*found.values()]


def _compressed(name: object) -> ValueError:
    return ValueError(
        f"{name} is compressed, so that nothing in it can be read by itself. Unpack such shards to "
        "plain .tar files; pictures are compressed as they are"
    )


def _numbered(pattern: str) -> list[str]:
    """Return a path for each number of the ranges in a pattern."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    if int(last) - int(first) >= MOST_SHARDS:
        raise ValueError(
            f"{pattern} stands for more than {MOST_SHARDS} shards. Give the numbers that exist"
        )
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for number in numbers for path in _numbered(f"{before}{number}{after}")]


def _there(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    return sorted(glob.glob(pattern), key=normal_name)


def members_of(shard: Path) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """Yield path and header of each file or link in a shard that is not hidden.

    Raises:
        ValueError: It is no tar file, or damaged.
        OSError: It cannot be read.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in headers_in(tar):
                tar.members.clear()  # it would remember all
                path = PurePosixPath(member.name)
                is_hidden = any(p.startswith(".") or p == "__MACOSX" for p in path.parts)
                if not is_hidden and (member.isreg() or member.type in LINKS):
                    yield path, member
            # It stops without a word at a header that is damaged.
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read(PADDING)
            if not rest:
                raise tarfile.ReadError("it is cut: the zeros at its end are missing")
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"it goes on after its end, at byte {tar.offset}")
    except tarfile.TarError as error:
        if _starts_with(shard, COMPRESSIONS):
            raise _compressed(shard) from error
        raise ValueError(
            f"The shard {shard} is no tar file, or damaged, or several joined ({error}). Copy or "
            "make it again, or leave it out"
        ) from error


def _starts_with(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, beginnings))).startswith(beginnings)


def headers_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member of an open tar file.

    Raises:
        tarfile.TarError: It is damaged; or a header gives a size that leads back to itself.
    """
    end = -1
    while (member := _next(tar)) is not None:
        if member.size < 0 or tar.offset <= end:
            raise tarfile.ReadError(f"{member.name!r} has a size of {member.size} bytes")
        end = tar.offset
        yield member


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (ValueError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        raise tarfile.ReadError(f"a header makes no sense ({type(error).__name__})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place in the file that cannot be
            raise
        raise tarfile.ReadError("a header leads out of the file") from error
