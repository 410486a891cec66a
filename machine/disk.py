"""Files and folders that appear whole or not at all, and what to say when the disk fails."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STALE_S = 3600  # what nothing was written to for so long was left by a killed process
DRAFT = re.compile(r"\.[0-9a-f]{8}-\d+-[0-9a-f]+\.part")  # the names that _draft_of gives


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a draft beside ``path``, which it replaces once the block has ended well.

    Whatever happens, ``path`` holds what it held before or all of the new content: what the block
    wrote is on the disk before the name changes. Processes that write the same file at once each
    have a draft of their own.

    Raises:
        OSError: The disk is full (the error names ``path``), or the folder cannot be written to.
    """
    draft = _draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        _name_file(error, draft, path)
        raise
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _name_file(error: OSError, draft: Path, path: Path) -> None:
    """Make an error name ``path`` where it names its draft, or as on a full disk no file at all."""
    if error.strerror and error.filename in (None, str(draft)):
        error.filename = str(path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, which gets that name once the block has ended well.

    If another process finishes the same folder first, that one is kept and this one removed.
    Drafts of the same folder that killed processes left are removed.

    Raises:
        OSError: It cannot be written; what the block raises. Nothing half-made is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    remove_drafts(path.parent, prefix=draft.name.partition("-")[0])
    draft.mkdir()
    try:
        yield draft
        try:
            draft.rename(path)
        except OSError:  # another process was first, or the disk failed
            if not path.is_dir():
                raise
    except OSError as error:
        _name_file(error, draft, path)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _draft_of(path: Path) -> Path:
    # Long names may fill what a file system allows, so the draft's is made of a checksum.
    checksum = zlib.crc32(os.fsencode(path.name))
    return path.with_name(f".{checksum:08x}-{os.getpid()}-{time.monotonic_ns():x}.part")


def remove_drafts(folder: Path, stale_s: float = STALE_S, prefix: str = "") -> None:
    """Remove what killed processes left half-made in ``folder``.

    Args:
        folder: One of the program's own. In a user's folder a file may have such a name by chance.
        stale_s: Seconds since it was last written to; newer drafts may be somebody's at work.
        prefix: What the names of the drafts begin with.
    """
    for draft in folder.iterdir():
        if not (DRAFT.fullmatch(draft.name) and draft.name.startswith(prefix)):
            continue
        with contextlib.suppress(OSError):  # another run may remove it first
            inside = draft.iterdir() if draft.is_dir() else ()
            if time.time() - max(p.stat().st_mtime for p in (draft, *inside)) >= stale_s:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def sealed(content: Any) -> str:
    """Return plain data as a line of JSON behind its checksum, by which ``unsealed`` knows it."""
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode()):08x}\n{text}"


def unsealed(path: Path) -> Any | None:
    """Return the data of a file that ``sealed`` made; None if it is missing, damaged or edited."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return json.loads(text) if checksum == f"{zlib.crc32(text.encode()):08x}" else None


def make_folder(folder: Path) -> Path:
    """Make ``folder`` where it is missing, and see that files can be written there.

    Raises:
        OSError: They cannot, which is better known before the work than after it.
    """
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; mend the link or "
                "remove it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        own = "start in a folder of your own, or mend its permissions."
        advice = "free some." if is_full(error) else own
        raise OSError(f"{folder} cannot be written to ({reason_of(error)}); {advice}") from error
    return folder


def check_space(folder: Path, n_bytes: float) -> None:
    """Refuse to begin what the disk of ``folder`` cannot hold.

    Raises:
        OSError: Fewer than ``n_bytes`` are free.
    """
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        error = OSError(
            f"{folder} needs {n_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; free some."
        )
        error.errno = errno.ENOSPC
        raise error


def move_aside(*folders: Path) -> None:
    """Rename the ``folders`` that exist to NAME.old1, or the next number that is free for all."""
    number = 1
    while any(os.path.lexists(f"{folder}.old{number}") for folder in folders):
        number += 1
    for folder in folders:
        if folder.exists():
            aside = folder.rename(folder.with_name(f"{folder.name}.old{number}"))
            print(f"{folder} is now {aside}.")


def is_full(error: BaseException) -> bool:
    """Say whether ``error`` means that the disk, or a quota on it, is full."""
    # torch's writer tells of a failed write by where it stands in the file, and of nothing else.
    numbers = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
    return getattr(error, "errno", None) in numbers or "unexpected pos" in str(error)


def reason_of(error: BaseException) -> str:
    """Say in a few words what stopped a file from being written or read."""
    is_own_message = isinstance(error, OSError) and error.strerror is None
    if is_full(error) and not is_own_message:
        return "no space left on the disk"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
