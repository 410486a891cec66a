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

from pictures.folders import listed, normal_name

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2|txz)$", re.IGNORECASE)
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

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return self.path.stem

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

    def absolute(self) -> "Member":
        """Return itself: a shard is known by its absolute path."""
        return self

    def is_symlink(self) -> bool:
        """Links in shards are not followed."""
        return False

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
        ValueError: They are no tar files, or compressed.
    """
    if COMPRESSED.search(pattern):
        raise ValueError(
            f"{pattern} names compressed shards, in which nothing can be read by itself. Unpack "
            "them to plain .tar files; pictures are compressed as they are"
        )
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
    return [Path(path) for path in dict.fromkeys(paths)]


def _numbered(pattern: str) -> list[str]:
    """Return a path for each number of the ranges in a pattern."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for number in numbers for path in _numbered(f"{before}{number}{after}")]


def _there(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    return sorted(glob.glob(pattern), key=normal_name)


def members_of(shard: Path) -> Iterator[tuple[PurePosixPath, int | None]]:
    """Yield path and start of each file in a shard that is not hidden; of a link the start is None.

    Raises:
        ValueError: It is no tar file, or damaged.
        OSError: It cannot be read.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would remember all
                path = PurePosixPath(member.name)
                is_hidden = any(p.startswith(".") or p == "__MACOSX" for p in path.parts)
                if not is_hidden and (member.isreg() or member.type in LINKS):
                    yield path, None if member.type in LINKS else member.offset
            # It stops without a word at a header that is damaged.
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read(PADDING)
            if not rest:
                raise tarfile.ReadError("it is cut: the zeros at its end are missing")
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"it goes on after its end, at byte {tar.offset}")
    except tarfile.TarError as error:
        raise ValueError(
            f"The shard {shard} is no tar file, or damaged, or several joined ({error}). Copy or "
            "make it again, or leave it out"
        ) from error
