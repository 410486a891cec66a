"""Fetch a data set of the paper: its archive is checked whole before anything is unpacked."""

import contextlib
import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from machine.disk import check_space, reason_of, whole_folder
from machine.progress import progress
from pictures.folders import SUFFIXES
from pictures.tars import headers_in

ARCHIVES = ("facades", "maps", "cityscapes", "edges2shoes", "edges2handbags", "night2day")
KAGGLE = "https://www.kaggle.com/datasets/vikramtiwari/pix2pix-dataset"
TIMEOUT_S = 30  # without a byte from the server
CHUNK = 1 << 18  # bytes
# How archives that are damaged end their unpacking.
FAILURES = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, OverflowError)


class DownloadError(OSError):
    """A data set could not be fetched; the message says why, and how to do it by hand."""


def fetch(name: str, *, mirror: str, data_dir: Path = Path("data")) -> Path:
    """Fetch ``mirror/NAME.tar.gz``, unpack it as ``data_dir/NAME`` unless that exists, return that.

    It is unpacked beside that and renamed when whole, so a failure leaves nothing half-made. If
    another process finishes the same data set first, its folder is kept.

    Args:
        name: One of ARCHIVES.
        mirror: Base address (http or https), or a local folder of archives.
        data_dir: Where the folder goes.

    Raises:
        ValueError: There is no data set of that name.
        DownloadError: It could not be fetched or unpacked.
        KeyboardInterrupt: Ctrl-C, with a message like that of DownloadError.
    """
    if name not in ARCHIVES:
        raise ValueError(f"{name!r} cannot be fetched; give one of {', '.join(ARCHIVES)}.")
    target = data_dir / name
    if target.is_dir():
        return target
    address = f"{mirror.rstrip('/')}/{name}.tar.gz"
    with _explained(address, target):
        if target.exists() or target.is_symlink():
            raise ValueError(f"{target} exists but is not a folder; move it elsewhere")
        data_dir.mkdir(parents=True, exist_ok=True)
        with opened(address, data_dir) as archive, whole_folder(target) as folder:
            _unpack(archive, folder, name)
    return target


@contextlib.contextmanager
def opened(address: str, folder: Path) -> Iterator[BinaryIO]:
    """Open the file at ``address``; from a server it comes into a nameless file first.

    Args:
        address: http(s), or a local file.
        folder: Where the nameless file may lie.

    Raises:
        ValueError, OSError, HTTPException: It cannot be had; ``reason`` says why in a few words.
    """
    if not address.lower().startswith(("http://", "https://")):
        with open(os.path.expanduser(address), "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        with urlopen(address, timeout=TIMEOUT_S) as answer:
            expected = answer.length  # bytes; None where the server does not say
            check_space(folder, 2 * (expected or 0))  # pictures hardly compress
            name = address.rpartition("/")[2]
            with progress(total=expected, desc=name, unit="B", unit_scale=True) as bar:
                while chunk := answer.read1(CHUNK):
                    bar.update(file.write(chunk))
        if expected not in (None, file.tell()):
            raise ValueError(f"the connection broke after {file.tell()} of {expected} bytes")
        file.seek(0)
        yield file


def _unpack(archive: BinaryIO, folder: Path, name: str) -> None:
    """Unpack ``archive``, or the one folder NAME that is all it holds, after checking all of it."""
    head = archive.read(512)
    archive.seek(0)
    if not head.startswith(b"\x1f\x8b"):
        kind = "a zip file" if head.startswith(b"PK") else f"one that begins with {head[:12]!r}"
        kind = "a web page" if head.lstrip().startswith(b"<") else kind
        raise ValueError(f"the file is {kind}, not a gzip-compressed tar archive")
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        members = list(progress(headers_in(tar), desc="checking", unit="file", leave=False))
        _check_members(members)
        _check_end(stream)
        check_space(folder.parent, sum(member.size for member in members))
        members = _lifted(members, name)
        files = progress(members, desc="unpacking", unit="file", leave=False)
        tar.extractall(folder, members=files, filter="data")


def _lifted(members: list[tarfile.TarInfo], name: str) -> list[tarfile.TarInfo]:
    """Return the members without the folder NAME, if all lie in it."""
    parts = [PurePosixPath(member.name).parts for member in members]
    if {inside[0] for inside in parts if inside} != {name}:
        return members
    lifted = zip(members, ("/".join(inside[1:]) for inside in parts), strict=True)
    return [member.replace(name=path, deep=False) for member, path in lifted if path]


def _check_members(members: list[tarfile.TarInfo]) -> None:
    """Refuse what could write outside its folder, and archives that hold no pictures."""
    for member in members:
        path = PureWindowsPath(member.name)  # knows drive letters and both slashes
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"its member {member.name!r} is neither a plain file nor a folder")
        if path.anchor or ".." in path.parts or "\\" in member.name:
            raise ValueError(f"its member {member.name!r} could land outside its folder")
    if not any(m.isreg() and m.name.lower().endswith(SUFFIXES) for m in members):
        raise ValueError(f"it holds no pictures ({', '.join(SUFFIXES)})")


def _check_end(stream: BinaryIO) -> None:
    """Read on from behind the first of the two empty blocks that end a tar archive."""
    # tarfile takes a damaged or missing header for the end, without a word.
    mark = stream.read(tarfile.BLOCKSIZE)
    if not mark or mark.strip(b"\0"):
        raise tarfile.ReadError("no end mark")
    while stream.read(CHUNK):  # gzip compares its checksum at the very end
        pass


@contextlib.contextmanager
def _explained(address: str, target: Path) -> Iterator[None]:
    """Turn whatever ends the fetching into one message."""
    advice = (
        f"Nothing half-made was left. Try again; or fetch it by hand, from that address or from "
        f"{KAGGLE}, and unpack it into {target}, or give its folder with --dataset FOLDER; or give "
        f"another address, or a folder with {target.name}.tar.gz in it, with --mirror."
    )
    failed = f"The data set {target.name} could not be fetched from {address}:"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{failed} it was interrupted. {advice}") from None
    except (*FAILURES, OSError, ValueError, HTTPException) as error:
        raise DownloadError(f"{failed} {reason(error)}. {advice}") from error


def reason(error: Exception) -> str:
    """Say in a few words why a file could not be fetched or unpacked."""
    cause = getattr(error, "reason", error)  # urllib wraps what happens while connecting
    if isinstance(cause, TimeoutError):
        return f"the server sent nothing for {TIMEOUT_S} seconds"
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {cause}"
    if isinstance(error, URLError | ConnectionError | HTTPException):
        return f"the connection failed ({cause})"
    if isinstance(error, FAILURES):
        return f"the archive is damaged or cut short ({error})"
    where = f" ({error.filename})" if getattr(error, "filename", None) else ""
    return reason_of(error) + where
