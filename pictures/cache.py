"""Decode every pair once: into a NumPy file that workers and later runs share by memory mapping."""

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
from numpy.lib.format import dtype_to_descr, open_memmap, write_array_header_1_0

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
Read = tuple[np.ndarray, bool, str]  # a pair, whether any of it was transparent, hash of its files
FORMAT = 7  # to be raised when what is stored changes for the same pairs and preparation


class PairCache:
    """A PairStore of all pairs: end to end in KEY.npy, with an index in KEY.json.

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
        self.path = Path(preparation.cache_dir).absolute() / f"{_key(pairs, preparation)}.npy"
        index, self._pixels = _load(self.path)
        if index is None or (self._pixels is None and _fits(index["n_bytes"], preparation)):
            try:
                _build(self.path, pairs, preparation)
            except OSError as error:
                # Windows: another run has made the same files first and holds them open.
                if _load(self.path)[1] is None:
                    raise _unwritable(self.path, error) from error
            index, self._pixels = _load(self.path)
        bad = _bad_pictures(index, len(pairs))
        if bad.errors and (preparation.on_bad_picture == "stop" or not index["good"]):
            raise bad
        self.pairs = tuple(pairs[number] for number in index["good"])
        self.sizes = [(height, width) for height, width in index["sizes"]]
        named = zip(self.pairs, index["contents"], strict=True)
        self.contents: dict[str, str] = {pair.key: content for pair, content in named}
        self.kinds: Kinds = tuple(Kind(*kind) for kind in index["kinds"])
        self.looked_at = range(len(self.pairs))
        self.shapes = [tuple(shape) for shape in index["shapes"]]
        self.starts = [0, *accumulate(map(math.prod, self.shapes))]
        self.checksums: list[int] = index["checksums"]
        self._sound: set[int] = set()  # pairs whose checksum has been compared
        self.is_stored = self._pixels is not None
        self.notes: list[str] = []
        if bad.errors:
            left_out = f"{len(bad.errors)} of {len(pairs)} pairs cannot be used and are left out"
            self.notes.append(f"{left_out}:\n{bad.files()}")
        if index["n_transparent"]:
            self.notes.append(
                f"{index['n_transparent']} of {len(self.pairs)} pairs are partly transparent and "
                "are drawn over white; with --alpha keep opacity is a channel"
            )
        if not self.is_stored:
            self.notes.append(
                f"the cache would need {index['n_bytes'] / 1e9:.1f} GB, over cache_limit_gb "
                f"{preparation.cache_limit_gb:g}: pictures are decoded on the fly"
            )

    def read(self, index: int) -> np.ndarray:
        """Return a pair as an array (height, width, channels) that must not be written to.

        Raises:
            BadPictures: If the pair is decoded now and its file has vanished or changed.
            OSError: If the cache file has vanished.
        """
        if not self.is_stored:
            try:
                return read_pair(self.pairs[index], self.preparation, self.kinds)[0]
            except PictureError as error:
                raise BadPictures([error], len(self.pairs), can_skip=False) from error
        if self._pixels is None:
            try:
                self._pixels = np.asarray(open_memmap(self.path, mode="r"))
            except (OSError, ValueError) as error:
                why = f"was removed or cannot be read any more ({reason_of(error)})"
                raise self._lost(why) from error
        array = self._pixels[self.starts[index] : self.starts[index + 1]]
        if index not in self._sound:
            if zlib.crc32(array) != self.checksums[index]:
                raise self._lost(f"is damaged ({self.pairs[index].name} is not what was written)")
            self._sound.add(index)
        return array.reshape(self.shapes[index])

    def _lost(self, why: str) -> OSError:
        """Return the error on arrays that cannot be used, and have the next run make them anew."""
        with contextlib.suppress(OSError):
            self.path.with_suffix(".json").unlink(missing_ok=True)
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


def _load(path: Path) -> tuple[dict[str, Any] | None, np.ndarray | None]:
    """Return the index and the pixels of all pairs, mapped; None for what is missing or damaged."""
    index = unsealed(path.with_suffix(".json"))
    if index is None:
        return None, None
    try:
        pixels = np.asarray(open_memmap(path, mode="r"))
    except Exception:  # damaged bytes make NumPy raise nearly anything
        return index, None
    dtype = common_dtype(Kind(*kind) for kind in index["kinds"])
    expected = (dtype, sum(map(math.prod, index["shapes"])))
    return index, pixels if (pixels.dtype, pixels.size) == expected else None


def _fits(n_bytes: int, preparation: Preparation) -> bool:
    return n_bytes <= preparation.cache_limit_gb * 1e9


def _bad_pictures(index: dict[str, Any], n_pairs: int) -> BadPictures:
    errors = [
        PictureError({Path(path): why for path, why in reasons.items()}, advice)
        for reasons, advice in index["bad"]
    ]
    return BadPictures(errors, n_pairs)


def _build(path: Path, pairs: Sequence[Pair], preparation: Preparation) -> None:
    """Check and decode all pairs and write their files, the index last: it makes them whole."""
    with whole_file(path.with_suffix(".json")) as draft, ThreadPoolExecutor(N_THREADS) as pool:
        draft.touch()  # whether it can be written is better known before the work
        remove_drafts(path.parent)
        check = partial(check_pair, preparation=preparation)
        headers = list(_each(pool, check, pairs, "checking pictures"))
        good = [header for header in headers if isinstance(header, PairHeader)]
        if not good:
            raise BadPictures(headers, len(pairs))
        kinds = settle_kinds(good, preparation)
        headers = [_fitting(*one, kinds, preparation) for one in zip(pairs, headers, strict=True)]
        dtype, good = common_dtype(kinds), [h for h in headers if isinstance(h, PairHeader)]
        n_bytes = sum(math.prod(shape_of(h, preparation, kinds)) for h in good) * dtype.itemsize
        checked = zip(pairs, headers, strict=True)
        sound = [head if isinstance(head, PictureError) else pair for pair, head in checked]

        def read(pair: Pair) -> Read:
            return *read_pair(pair, preparation, kinds), content_of(pair)

        pictures = _each(pool, read, sound, "decoding pictures")
        store = _npy_file(path, dtype, n_bytes) if _fits(n_bytes, preparation) else None
        with store or contextlib.nullcontext() as file:
            index = {"kinds": kinds, "n_bytes": n_bytes} | _write(file, headers, pictures)
            if index["bad"] and preparation.on_bad_picture == "stop":
                raise _bad_pictures(index, len(pairs))
        draft.write_text(sealed(index))


def _fitting(
    pair: Pair, header: PairHeader | PictureError, kinds: Kinds, preparation: Preparation
) -> PairHeader | PictureError:
    """Return the header, or why the pair does not fit those that are of one kind."""
    try:
        if isinstance(header, PairHeader):
            check_kinds(pair, header, kinds, preparation)
    except PictureError as error:
        return error
    return header


def _write(
    file: BinaryIO | None,
    headers: Sequence[PairHeader | PictureError],
    pictures: Iterator[Read | PictureError],
) -> dict[str, Any]:
    """Write the arrays that could be read, if to a file, and say which, and why others not."""
    names = ("good", "sizes", "contents", "shapes", "checksums", "bad")
    found: dict[str, list] = {name: [] for name in names}
    n_transparent = 0
    for number, (header, picture) in enumerate(zip(headers, pictures, strict=True)):
        if isinstance(picture, PictureError):
            reasons = {str(path.absolute()): why for path, why in picture.reasons.items()}
            found["bad"].append((reasons, picture.advice))
            continue
        array, is_transparent, content = picture
        n_transparent += is_transparent
        found["good"].append(number)
        found["contents"].append(content)
        found["shapes"].append(array.shape)
        found["checksums"].append(zlib.crc32(array))
        found["sizes"].append((header.height, header.width))
        if file:
            file.write(array.data)
    return found | {"n_transparent": n_transparent}


def _each(
    pool: Executor, function: Callable[[Any], Any], items: Sequence[Any], title: str
) -> Iterator[Any]:
    results = ahead(pool, function, items)
    return iter(progress(results, desc=title, total=len(items), unit="pair", leave=False))


@contextlib.contextmanager
def _npy_file(path: Path, dtype: np.dtype, n_bytes: int) -> Iterator[BinaryIO]:
    """Open a ``.npy`` file of numbers in a row, to be written one after the other."""
    check_space(path.parent, n_bytes)
    header = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": (0,)}
    with whole_file(path) as draft, draft.open("wb") as file:
        write_array_header_1_0(file, header)
        start = file.tell()
        yield file
        # NumPy's header has room for the length to grow.
        header["shape"] = ((file.tell() - start) // dtype.itemsize,)
        file.seek(0)
        write_array_header_1_0(file, header)


def _unwritable(path: Path, error: OSError) -> OSError:
    advice = "Set cache_dir to a folder of your own"
    if is_full(error):
        advice = (
            "Free some space, set cache_dir to another folder, or lower cache_limit_gb to have "
            "pictures decoded each time"
        )
    return OSError(f"the picture cache {path} cannot be written: {reason_of(error)}. {advice}")
