"""What lies in folders: their pictures, what else there is, and how messages tell of it."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".npy")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # two letters or more: not of a drive
# What lies beside pictures and is none; whatever else is left out is named.
NO_PICTURES = {".txt", ".md", ".json", ".csv", ".xml", ".html", ".ini", ".db", ".py", ".tfw"}


def is_picture(path: Path) -> bool:
    """Tell by its name whether a path is that of a picture that is read."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def pictures_below(folder: Path) -> list[Path]:
    """List the picture files in a folder and below it, in an order that no system changes."""
    return [path for path in files_below(folder) if is_picture(path)]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and below it: files, and linked folders, which are not entered."""
    for path in entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from files_below(path)
        else:
            yield path


def counted(paths: Iterable[Path], root: Path) -> str:
    """Say how many of each kind there are in each folder, as seen from ``root``; "" if none."""
    kinds: Counter[str] = Counter()
    for path in paths:
        kind = "linked folder(s)" if path.is_dir() else path.suffix.lower() or "without suffix"
        where = os.path.relpath(path.parent, root)
        kinds[kind if where == "." else f"{kind} in {where}"] += 1
    return ", ".join(shortened([f"{n} {kind}" for kind, n in kinds.most_common()], most=6))


def held(folder: Path) -> str:
    """Say what a folder without pictures holds."""
    hidden = "hidden files and empty folders alone" if os.listdir(folder) else "it is empty"
    return counted(files_below(folder), folder) or hidden


def no_pictures(folder: Path, sought: str = "") -> str:
    """Return the message on a folder without the pictures that are ``sought``, if not any."""
    shards = any(path.suffix == ".tar" for path in files_below(folder))
    pattern = f" (or the tar files in it as the data set, as '{folder}/train-*.tar')" * shards
    return (
        f"{folder} holds no pictures{sought} ({held(folder)}). Expected {', '.join(SUFFIXES)}"
        f"{pattern}"
    )


def check_folder(folder: Path, what: str) -> None:
    """Refuse what is not a folder, naming those that it may be mistaken for.

    Args:
        folder: The path.
        what: What it was given as.

    Raises:
        OSError: It does not exist, or is a file.
    """
    if folder.is_dir():
        return
    if ADDRESS.match(str(folder)):
        raise FileNotFoundError(f"{what} {folder} is an address. Fetch it, and give a local folder")
    if folder.exists():
        raise NotADirectoryError(
            f"{what} {folder} is a file. Expected a folder of pictures; unpack an archive first"
        )
    parent = next(p for p in folder.absolute().parents if p.is_dir())
    names = [d.name for d in entries(parent) if d.is_dir()]
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5) if names else []
    hint = f"did you mean {' or '.join(str(folder.with_name(n)) for n in near)}?"
    if not near or parent != folder.absolute().parent:
        hint = f"{parent} holds {', '.join(names[:10]) or 'no folders'}"
    raise FileNotFoundError(f"{what} {folder} does not exist ({hint}). Give the path of a folder")


def folders_below(folder: Path, depth: int) -> list[Path]:
    """List a folder and those down to ``depth`` levels below it, but none named as a picture."""
    found = [folder]
    for child in entries(folder) if depth else []:
        if child.suffix.lower() not in SUFFIXES and child.is_dir():
            found += folders_below(child, depth - 1)
    return found


def find_folder(folder: Path, path: str) -> Path | None:
    """Return the folder at ``path`` below a folder, upper or lower case, if there is one."""
    if (exact := folder / path).is_dir():
        return exact
    found: Path | None = folder if folder.is_dir() else None
    for name in PurePath(path).parts if found else ():
        names = (d for d in entries(found) if d.name.lower() == name.lower() and d.is_dir())
        found = next(names, None)
        if found is None:
            break
    return found


def entries(folder: Path) -> list[Path]:
    """List what is directly in a folder and not hidden, in an order that no system changes.

    Raises:
        OSError: It cannot be read.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be read ({error.strerror}). Give yourself the right to read it, or "
            f"copy the data set to a folder of your own"
        ) from error
    shown = (n for n in names if not n.startswith(".") and n != "__MACOSX")
    return [folder / n for n in sorted(shown, key=lambda n: (normal_name(n).casefold(), n))]


def identity(path: Path) -> object:
    """Return what all links to a file have in common."""
    try:
        stat = path.stat()
    except OSError:
        return path  # reading it will say what is wrong
    return (stat.st_dev, stat.st_ino) if stat.st_ino else path  # some systems number no files


def state_of(path: Path) -> tuple[str, int, int, int]:
    """Return a file's absolute path and numbers that change when the file does."""
    where = os.path.abspath(str(path))
    try:
        stat = path.stat()
    except OSError:
        return where, -1, -1, -1  # reading it will say what is wrong
    # The last one also tells of a file that another of the same size and time has replaced.
    return where, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def shortened(items: Sequence[str], most: int = 20) -> list[str]:
    """Return ``items``, or the first ones of many and how many are left."""
    left = len(items) - most
    return [*items[:most], f"and {left} more"] if left > 0 else list(items)


def listed(lines: Sequence[str]) -> str:
    """Return ``lines``, or the first ones of many, indented, one below the other."""
    return "\n".join(f"  {line}" for line in shortened(lines))


def normal_name(name: str) -> str:
    """Return a name in the one spelling that stands for all that look alike."""
    return unicodedata.normalize("NFC", name)  # macOS stores accents apart from their letters
