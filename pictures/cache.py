"""Decode every pair once: into a file that workers and later runs share by memory mapping."""

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from machine.disk import (
    check_space,
    is_full,
    reason_of,
    remove_drafts,
    sealed,
    unsealed,
    whole_file,
)
from machine.progress import progress
from pictures.decode import BadPictures, PictureError
from pictures.folders import state_of
from pictures.jobs import ahead
from pictures.layouts import Pair
from pictures.pairs import (
    Kinds,
    PairHeader,
    Preparation,
    check_kinds,
    check_pair,
    content_of,
    read_pair,
    settle_kinds,
    shape_of,
)
from pictures.sides import Kind, common_dtype

N_THREADS = min(8, os.cpu_count() or 1)
FORMAT = 7  # to be raised when what is stored changes for the same pairs and preparation


class PairCache:
    """A PairStore of all pairs: their numbers end to end in KEY.pixels, and KEY.index.

    If they would take more than the limit, there is the index alone, which spares later runs the
    checks, and a pair is decoded whenever it is read.

    Args:
        pairs: The pairs; those that cannot be used are left out where on_bad_picture says so, as
            long as any can.
        preparation: What to make of them, and where to keep it.

    Raises:
        BadPictures: Naming every pair that cannot be used.
        OSError: If the cache cannot be written.
    """

    def __init__(self, pairs: Sequence[Pair], preparation: Preparation) -> None:
        self.preparation = preparation
        self.path = Path(preparation.cache_dir).absolute() / f"{_key(pairs, preparation)}.pixels"
        index = self._opened()
        if index is None:
            try:
                _build(self.path, pairs, preparation)
            except OSError as error:
                # Windows: another run has made the same files first and holds them open.
                if self._opened() is None:
                    raise _unwritable(self.path, error) from error
            index = self._opened()
        bad = _bad_pictures(index["bad"], len(pairs))
        if bad.errors and (preparation.on_bad_picture == "stop" or not index["good"]):
            raise bad
        self.pairs = tuple(pairs[number] for number in index["good"])
        named = zip(self.pairs, index["contents"], strict=True)
        self.contents: dict[str, str] = {pair.key: content for pair, content in named}
        self.looked_at = range(len(self.pairs))
        self.checksums: list[int] = index["checksums"]
        self._sound: set[int] = set()  # pairs whose checksum has been compared
        self.notes = [*self._notes(bad, index["n_transparent"])]

    def _opened(self) -> dict[str, Any] | None:
        """Open the files; return the index, or None where anything is missing or damaged."""
        index = unsealed(self.path.with_suffix(".index"))
        if index is None:
            return None
        self.kinds: Kinds = tuple(Kind(*kind) for kind in index["kinds"])
        self.sizes = [(height, width) for height, width in index["sizes"]]
        headers = (PairHeader(*size, self.kinds) for size in self.sizes)
        self.shapes = [shape_of(header, self.preparation, self.kinds) for header in headers]
        self.starts = [0, *accumulate(map(math.prod, self.shapes))]
        self._pixels: np.ndarray | None = None
        with contextlib.suppress(OSError, ValueError):
            self._pixels = self._mapped()
        self.is_stored = self._pixels is not None
        return index if self.is_stored or not _fits(self.n_bytes, self.preparation) else None

    @property
    def n_bytes(self) -> int:
        """What all arrays take."""
        return self.starts[-1] * common_dtype(self.kinds).itemsize

    def _mapped(self) -> np.ndarray:
        mode, shape = "r", self.starts[-1:]
        return np.asarray(np.memmap(self.path, common_dtype(self.kinds), mode, shape=tuple(shape)))

    def _notes(self, bad: BadPictures, n_transparent: int) -> Iterator[str]:
        if bad.errors:
            yield (
                f"{len(bad.errors)} of {bad.n_pairs} pairs cannot be used and are left out:\n"
                f"{bad.files()}"
            )
        if n_transparent:
            yield (
                f"{n_transparent} of {len(self.pairs)} pairs are partly transparent and are drawn "
                "over white; with --alpha keep opacity is a channel"
            )
        if not self.is_stored:
            yield (
                f"the cache would need {self.n_bytes / 1e9:.1f} GB, over cache_limit_gb "
                f"{self.preparation.cache_limit_gb:g}: pictures are decoded on the fly"
            )

    def read(self, number: int) -> np.ndarray:
        """Return a pair as an array (height, width, channels) that must not be written to.

        Raises:
            BadPictures: If the pair is decoded now and its file has vanished or changed.
            OSError: If the cache file has vanished or is damaged.
        """
        if not self.is_stored:
            try:
                return read_pair(self.pairs[number], self.preparation, self.kinds)[0]
            except PictureError as error:
                raise BadPictures([error], len(self.pairs), can_skip=False) from error
        if self._pixels is None:
            try:
                self._pixels = self._mapped()
            except (OSError, ValueError) as error:
                why = f"was removed or cannot be read any more ({reason_of(error)})"
                raise self._lost(why) from error
        array = self._pixels[self.starts[number] : self.starts[number + 1]]
        if number not in self._sound:
            if zlib.crc32(array) != self.checksums[number]:
                raise self._lost(f"is damaged ({self.pairs[number].name} is not what was written)")
            self._sound.add(number)
        return array.reshape(self.shapes[number])

    def _lost(self, why: str) -> OSError:
        """Return the error on arrays that cannot be used, and have the next run make them anew."""
        with contextlib.suppress(OSError):
            self.path.with_suffix(".index").unlink(missing_ok=True)
        advice = "Give the same command again to have it made anew"
        return OSError(f"the picture cache {self.path} {why}. {advice}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping out: pickled it would be copied, a worker opens the file itself."""
        return {**self.__dict__, "_pixels": None}


def _key(pairs: Sequence[Pair], preparation: Preparation) -> str:
    """Hash everything that the arrays follow from."""
    files = [state_of(file) for pair in pairs for file in pair.files]
    facts = {"format": FORMAT, "preparation": preparation.of_the_arrays, "files": files}
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _fits(n_bytes: int, preparation: Preparation) -> bool:
    return n_bytes <= preparation.cache_limit_gb * 1e9


def _bad_pictures(saved: Sequence[tuple[dict[str, str], str]], n_pairs: int) -> BadPictures:
    errors = [
        PictureError({Path(path): why for path, why in reasons.items()}, advice)
        for reasons, advice in saved
    ]
    return BadPictures(errors, n_pairs)


def _build(path: Path, pairs: Sequence[Pair], preparation: Preparation) -> None:
    """Check and decode all pairs and write their files, the index last: it makes them whole."""
    with (
        whole_file(path.with_suffix(".index")) as draft,
        ThreadPoolExecutor(N_THREADS) as pool,
    ):
        draft.touch()  # whether it can be written is better known before the work
        remove_drafts(path.parent)
        check = partial(check_pair, preparation=preparation)
        headers = list(_each(pool, check, pairs, "checking pictures"))
        good = [header for header in headers if isinstance(header, PairHeader)]
        if not good:
            raise BadPictures(headers, len(pairs))
        kinds = settle_kinds(good, preparation)

        def read(numbered: tuple[int, PairHeader]) -> tuple[np.ndarray, bool, str]:
            pair = pairs[numbered[0]]
            check_kinds(pair, numbered[1], kinds, preparation)
            return *read_pair(pair, preparation, kinds), content_of(pair)

        numbers = sum(math.prod(shape_of(header, preparation, kinds)) for header in good)
        n_bytes = numbers * common_dtype(kinds).itemsize
        checked = [h if isinstance(h, PictureError) else (n, h) for n, h in enumerate(headers)]
        store = _to_fill(path, n_bytes) if _fits(n_bytes, preparation) else contextlib.nullcontext()
        with store as file:
            pictures = _each(pool, read, checked, "decoding pictures")
            index = {"kinds": kinds} | _write(file, headers, pictures)
            if index["bad"] and (preparation.on_bad_picture == "stop" or not index["good"]):
                raise _bad_pictures(index["bad"], len(pairs))
        draft.write_text(sealed(index))


def _each(
    pool: Executor, function: Callable[[Any], Any], items: Sequence[Any], title: str
) -> Iterator[Any]:
    results = ahead(pool, function, items)
    return iter(progress(results, desc=title, total=len(items), unit="pair", leave=False))


@contextlib.contextmanager
def _to_fill(path: Path, n_bytes: int) -> Iterator[BinaryIO]:
    """Open a file for so many bytes."""
    check_space(path.parent, n_bytes)
    with whole_file(path) as draft, draft.open("wb") as file:
        yield file


def _write(
    file: BinaryIO | None,
    headers: Sequence[PairHeader | PictureError],
    pictures: Iterator[tuple[np.ndarray, bool, str] | PictureError],
) -> dict[str, Any]:
    """Write the arrays that could be read, if to a file, and say which, and why others not."""
    found: dict[str, list] = {n: [] for n in ("good", "sizes", "contents", "checksums", "bad")}
    n_transparent = 0
    for number, (header, picture) in enumerate(zip(headers, pictures, strict=True)):
        if isinstance(picture, PictureError):
            reasons = {os.path.abspath(str(path)): why for path, why in picture.reasons.items()}
            found["bad"].append((reasons, picture.advice))
            continue
        array, is_transparent, content = picture
        n_transparent += is_transparent
        found["good"].append(number)
        found["sizes"].append((header.height, header.width))
        found["contents"].append(content)
        found["checksums"].append(zlib.crc32(array))
        if file:
            file.write(array.data)
    return found | {"n_transparent": n_transparent}


def _unwritable(path: Path, error: OSError) -> OSError:
    advice = "Set cache_dir to a folder of your own"
    if is_full(error):
        advice = (
            "Free some space, set cache_dir to another folder, or lower cache_limit_gb to have "
            "pictures decoded each time"
        )
    return OSError(f"the picture cache {path} cannot be written: {reason_of(error)}. {advice}")
