"""Decode every pair once: a file that workers and later runs share through memory mapping."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm.auto import tqdm

from pictures.layouts import Pair
from pictures.pairs import Recipe, check_pair, read_pair, shape_of
from pictures.decode import BadPictures, Header, PictureError, listed

FORMAT = 3  # to be raised when the bytes of a file change for the same pairs and recipe
MAGIC = b"\nPAIRS\r\n"
CHUNK = 64  # pairs decoded ahead of the one being written
STALE_S = 3600  # a file under construction is left alone while it was written to so lately


class PairCache:
    """The arrays of all pairs, end to end in one file, followed by their index.

    If they would take more than the limit, the file holds the index alone, which spares later
    runs the checks, and a pair is decoded whenever it is read.

    Args:
        pairs: The pairs.
        recipe: What to make of them.
        folder: Where the file is or will be.
        limit_gb: Gigabytes (1e9 bytes) that the arrays may take.
        skip: Whether to leave out pairs that cannot be used, as long as any can.

    Attributes:
        pairs: The pairs that can be used, in the order given.
        sizes: Original (height, width) of the input, per pair.
        notes: Remarks for the user; the one on pairs left out lists them below it.

    Raises:
        BadPictures: Naming every pair that cannot be used.
        OSError: If the file cannot be written.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        recipe: Recipe,
        *,
        folder: Path,
        limit_gb: float,
        skip: bool = False,
    ) -> None:
        self.recipe = recipe
        self.path = folder.absolute() / f"{_fingerprint(pairs, recipe)}.pairs"
        limit = limit_gb * 1e9
        index = _read_index(self.path)
        if index is None or not (index["stored"] or index["needed"] > limit):
            index = _build(self.path, pairs, recipe, limit=limit, skip=skip)
        bad = _bad_pictures(index, len(pairs))
        if bad.errors and not (skip and index["good"]):
            raise bad
        self.pairs = tuple(pairs[number] for number in index["good"])
        self.sizes = [(height, width) for height, width in index["sizes"]]
        self.dtype = np.dtype(index["dtype"])
        self.stored: bool = index["stored"]
        self.shapes = [tuple(shape) for shape in index["shapes"]]
        self.offsets = _offsets(self.shapes, self.dtype)
        self._bytes: np.ndarray | None = None
        self.notes: list[str] = []
        if bad.errors:
            left_out = f"{len(bad.errors)} of {len(pairs)} pairs cannot be used and are left out"
            self.notes.append(f"{left_out}:\n{listed(bad.errors)}")
        if not self.stored:
            self.notes.append(
                f"the cache would need {index['needed'] / 1e9:.1f} GB, over cache_limit_gb "
                f"{limit_gb:g}: pictures are decoded on the fly"
            )

    def read(self, index: int) -> np.ndarray:
        """Return a pair as an array (height, width, channels) that must not be written to.

        Raises:
            BadPictures: If the pair is decoded now and its file has vanished or changed.
            OSError: If the cache file has vanished.
        """
        if not self.stored:
            try:
                return read_pair(self.pairs[index], self.recipe, self.dtype)
            except PictureError as error:
                raise BadPictures([error], len(self.pairs), can_skip=False) from error
        if self._bytes is None:
            try:
                self._bytes = np.asarray(np.memmap(self.path, mode="r"))
            except OSError as error:
                raise OSError(
                    f"the picture cache {self.path} was removed or cannot be read any more "
                    f"({error.strerror}). Give the same command again to have it made anew"
                ) from error
        array = self._bytes[self.offsets[index] : self.offsets[index + 1]]
        return array.view(self.dtype).reshape(self.shapes[index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping out: pickled it would be copied, a worker opens the file itself."""
        return {**self.__dict__, "_bytes": None}


def _build(
    path: Path, pairs: Sequence[Pair], recipe: Recipe, *, limit: float, skip: bool
) -> dict[str, Any]:
    """Check and decode all pairs and write the cache file; return its index."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        check = partial(check_pair, recipe=recipe)
        headers = list(_in_order(pool, check, pairs, "checking pictures"))
        good = [header for header in headers if isinstance(header, Header)]
        dtype = np.dtype(np.uint16 if any(h.deep for h in good) else np.uint8)
        needed = _offsets([shape_of(header, recipe) for header in good], dtype)[-1]
        index = {"dtype": dtype.name, "needed": needed, "stored": needed <= limit}
        index |= {"good": [], "shapes": [], "sizes": [], "bad": []}

        def decode(number: int) -> np.ndarray:
            if isinstance(headers[number], PictureError):
                raise headers[number]
            return read_pair(pairs[number], recipe, dtype)

        with _whole_file(path, needed if index["stored"] else 0) as file:
            arrays = _in_order(pool, decode, range(len(pairs)), "decoding pictures")
            _write(file, index, zip(headers, arrays, strict=True))
            if index["bad"] and not skip:
                raise _bad_pictures(index, len(pairs))
    return index


def _write(file: BinaryIO, index: dict[str, Any], read: Iterable[tuple[Any, Any]]) -> None:
    """Write the arrays that could be read, fill the index in and write it after them."""
    for number, (header, array) in enumerate(read):
        if isinstance(array, PictureError):
            reasons = {str(file.absolute()): why for file, why in array.reasons.items()}
            index["bad"].append((reasons, array.advice))
            continue
        index["good"].append(number)
        index["shapes"].append(array.shape)
        index["sizes"].append((header.height, header.width))
        if index["stored"]:
            file.write(array.data)
    tail = json.dumps(index).encode()
    file.write(tail + len(tail).to_bytes(8, "little") + MAGIC)


def _bad_pictures(index: dict[str, Any], n_pairs: int) -> BadPictures:
    errors = [
        PictureError({Path(path): why for path, why in reasons.items()}, advice)
        for reasons, advice in index["bad"]
    ]
    return BadPictures(errors, n_pairs)


def _fingerprint(pairs: Sequence[Pair], recipe: Recipe) -> str:
    """Hash everything that the bytes of the file follow from."""
    files = [file for pair in pairs for file in (pair.a, pair.b) if file]
    facts = {"format": FORMAT, "recipe": asdict(recipe), "files": [_facts(f) for f in files]}
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _facts(file: Path) -> tuple[str, int, int, int]:
    try:
        stat = file.stat()
    except OSError:
        return str(file.absolute()), -1, -1, -1  # reading its header will say what is wrong
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_mode


def _offsets(shapes: Sequence[Sequence[int]], dtype: np.dtype) -> list[int]:
    """Return where each array begins in the file, and last where the arrays end, in bytes."""
    return [0, *accumulate(int(np.prod(shape)) * dtype.itemsize for shape in shapes)]


def _read_index(path: Path) -> dict[str, Any] | None:
    """Return the index of a cache file, or None if the file is missing or not whole."""
    foot = 8 + len(MAGIC)
    try:
        with path.open("rb") as file:
            n_total = file.seek(0, os.SEEK_END)
            file.seek(max(0, n_total - foot))
            n_tail, magic = int.from_bytes(file.read(8), "little"), file.read()
            if magic != MAGIC:
                return None
            file.seek(n_total - foot - n_tail)
            index = json.loads(file.read(n_tail))
    except (OSError, ValueError):
        return None
    n_bytes = _offsets(index["shapes"], np.dtype(index["dtype"]))[-1] if index["stored"] else 0
    return index if n_bytes + n_tail + foot == n_total else None


def _in_order(
    pool: ThreadPoolExecutor, read: Callable[[Any], Any], items: Sequence[Any], title: str
) -> Iterator[Any]:
    """Yield what ``read`` makes of each item, or its PictureError, with a progress bar."""

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except PictureError as error:
            return error

    with tqdm(total=len(items), desc=title, unit="pair", leave=False) as bar:
        for start in range(0, len(items), CHUNK):
            for result in pool.map(attempt, items[start : start + CHUNK]):
                yield result
                bar.update()


@contextlib.contextmanager
def _whole_file(path: Path, n_bytes: int) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when it is whole, or not at all."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        free = shutil.disk_usage(path.parent).free
        if n_bytes > free:
            raise OSError(f"it needs {n_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(part, path)
    except OSError as error:
        raise OSError(
            f"the picture cache {path.parent} cannot be written: {error.strerror or error}. Free "
            f"some space, set cache_dir to another folder, or lower cache_limit_gb to have "
            f"pictures decoded each time"
        ) from error
    finally:
        if part:
            part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except PermissionError:
        # Windows: another run has finished the same file first and holds it open.
        if _read_index(path) is None:
            raise


def _remove_stale(folder: Path) -> None:
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):  # another run may remove it first
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
