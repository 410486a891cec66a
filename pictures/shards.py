"""Pairs in tar files, read in place: for sets too large to be unpacked, checked or cached.

An index, made once, holds in which shard each pair lies and at which byte its files begin. So the
pairs are read in any order, as those in folders are, and a run goes on exactly.
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
from numpy.lib.format import open_memmap

from machine.disk import reason_of, whole_file
from machine.progress import progress
from pictures.decode import BadPictures, PictureError
from pictures.folders import NO_PICTURES, SUFFIXES, normal_name, shortened
from pictures.layouts import VAL_NAMES, ByName, Named, Pair, Split, by_name, matched, unpaired
from pictures.pairs import (
    Kinds,
    PairHeader,
    Preparation,
    check_kinds,
    check_pair,
    content_of,
    read_pair,
    settle_kinds,
)
from pictures.tars import RANGE, Member, find_shards, members_of

ENDS = (
    ".a",
    ".b",
)  # of the names of both sides, as in WebDataset: 0001.a.jpg and 0001.b.png
# Of a pair: the number of its shard, where A and B begin in it (at one byte if they lie side by
# side), and a number that follows from its name, by which pairs are held out.
ROW = np.dtype([("shard", "<u4"), ("a", "<u8"), ("b", "<u8"), ("rank", "<u8")])
VAL_SHARD = re.compile(rf"(?<![a-z])({'|'.join(VAL_NAMES)})(?![a-z])", re.IGNORECASE)
FORMAT = 1  # to be raised when the index of the same shards changes
LOOKED_AT = 256  # pairs that tell what all are
MOST_BAD = 100  # pairs in a row that are passed over


class ShardedPairs(Sequence[Pair]):
    """The pairs of some shards, each made when it is asked for, as there may be millions.

    Args:
        shards: Absolute paths.
        index: File of a ROW for each pair.
        held_out: Numbers, in order, of those that do not belong to these.
    """

    def __init__(self, shards: Sequence[Path], index: Path, held_out: np.ndarray) -> None:
        self.shards, self.index, self.held_out = tuple(shards), index, held_out
        self.rows = open_memmap(index, mode="r")

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.rows) - len(self.held_out)

    @overload
    def __getitem__(self, number: int) -> Pair: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, number: int | slice) -> Pair | tuple[Pair, ...]:
        """Return a pair, or those of a slice."""
        numbers = range(len(self))[number]
        if isinstance(number, slice):
            return tuple(self[one] for one in numbers)
        # Before each that is held out so many are left as its number, less those held out earlier.
        left = self.held_out - np.arange(len(self.held_out))
        return _pair(self.shards, self.rows[numbers + np.searchsorted(left, numbers, "right")])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping out: pickled it would be copied, a worker opens the file itself."""
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the index again."""
        self.__init__(**state)


def _pair(shards: Sequence[Path], row: np.void) -> Pair:
    shard = shards[row["shard"]]
    a, b = (Member(shard, int(row[side])) for side in ("a", "b"))
    return Pair(a, None if a == b else b, PurePosixPath(shard.stem, a.path.parent).as_posix())


# --- Finding them ---
def find_sharded(
    pattern: str,
    val: str = "",
    *,
    val_fraction: float,
    seed: int,
    cache_dir: str,
    **named: str,
) -> Split:
    """Find the pairs in shards.

    The files of a pair lie in one shard. Their names end in ``.a`` and ``.b`` before the suffix, or
    in what is named; or they lie in folders ``A`` and ``B`` within it, or those named; or one file
    holds both halves.

    Args:
        pattern: As ``find_shards`` takes it.
        val: The same of the validation set; "": shards whose path has ``val``, ``validation`` or
            ``test`` where the others have ``train``; without these pairs are held out.
        val_fraction: Share of the pairs held out; at least one is, and one kept.
        seed: Chooses which.
        cache_dir: Where the index is kept.
        **named: Fields of ``Named``.

    Raises:
        OSError: Shards are missing or cannot be read, or the index cannot be written.
        ValueError: A shard is damaged; or holds no pictures, or such that do not pair up.
    """
    indexed = partial(_indexed, names=Named(**named), folder=Path(cache_dir))
    shards = find_shards(pattern)
    vals = find_shards(val) if val else _val_shards(pattern)
    _check_apart(shards, vals)
    index, left_out = indexed(shards)
    rows = open_memmap(index, mode="r")
    layout = "side by side" if rows["a"][0] == rows["b"][0] else "two files each"
    layout = f"{layout}, in {len(shards)} shard{'s' * (len(shards) > 1)}"
    if vals:
        val_index, left_out_too = indexed(vals)
        val_pairs, held_out = ShardedPairs(vals, val_index, np.arange(0))[:], np.arange(0)
        left_out = "\n".join(filter(None, (left_out, left_out_too)))
    else:
        held_out = _held_out(rows["rank"], val_fraction, seed)
        val_pairs = tuple(_pair(shards, row) for row in rows[held_out])
        layout = f"{layout}, {len(held_out)} of {len(rows)} held out by val_fraction"
    train = ShardedPairs(shards, index, held_out)
    _check_alike(train[0], val_pairs[0])
    return Split(train, val_pairs, layout, shards[0].parent, not vals, left_out)


def _val_shards(pattern: str) -> list[Path]:
    """Return the shards that lie beside those to train on and are named as for validation."""
    before, train, after = os.path.abspath(pattern).rpartition("train")
    for name in VAL_NAMES if train else ():
        try:
            return find_shards(RANGE.sub("*", f"{before}{name}{after}"))
        except FileNotFoundError:
            continue
    return []


def _check_apart(shards: Sequence[Path], vals: Sequence[Path]) -> None:
    """Refuse to train on shards for validation, as a pattern for all that there are would."""
    if both := {*shards} & {*vals}:
        raise ValueError(f"{min(both)} is a shard to train on and to validate on; name it once")
    named = [shard for shard in shards if VAL_SHARD.search(shard.stem)]
    if 0 < len(named) < len(shards):
        raise ValueError(
            f"{named[0]} is by its name for validation, among shards to train on. Name the latter "
            "alone, as in train-*.tar"
        )


def _check_alike(train: Pair, val: Pair) -> None:
    if (train.b is None) != (val.b is None):
        raise ValueError(
            f"{train.a} and, to validate on, {val.a} do not lie alike: one file holds both "
            "halves, or each has its own. Make both sets in one way"
        )


def _held_out(ranks: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    if len(ranks) < 2:
        raise ValueError(
            "The shards hold one pair only, and at least two are needed, one of them to validate "
            "on. Add pairs, or set val_dir to shards of their own"
        )
    n_val = min(max(1, round(len(ranks) * val_fraction)), len(ranks) - 1)
    # Ranks follow from names, so most of the split stays when shards are added later.
    shuffled = ranks * np.uint64(_number(str(seed)) | 1)
    return np.sort(np.argpartition(shuffled, n_val - 1)[:n_val])


def _number(text: str) -> int:
    text_bytes = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text_bytes, digest_size=8).digest(), "little")


# --- The index ---
def _indexed(shards: Sequence[Path], names: Named, folder: Path) -> tuple[Path, str]:
    """Return the index of the pairs in some shards, and what else these hold, in one line."""
    files = [(str(s), stat.st_size, stat.st_mtime_ns) for s in shards for stat in [s.stat()]]
    facts = json.dumps({"format": FORMAT, "names": asdict(names), "shards": files})
    key = hashlib.blake2b(facts.encode(errors="surrogatepass"), digest_size=12).hexdigest()
    index = folder.absolute() / f"{key}.npy"
    notes = index.with_suffix(".json")  # written last, it makes the index whole
    if not notes.exists():
        bar = progress(shards, desc="listing shards", unit="shard", leave=False)
        # Threads would slow each other down: it is Python's own work.
        listings = [_listed(number, shard, names) for number, shard in enumerate(bar)]
        rows, others = np.concatenate([rows for rows, _ in listings]), Counter()
        for _, more in listings:
            others.update(more)
        _check_rows(rows, shards, others)
        try:
            with whole_file(index) as draft, draft.open("wb") as file:
                np.save(file, rows)
            with whole_file(notes) as draft:
                draft.write_text(json.dumps(others))
        except OSError as error:
            raise OSError(
                f"the index of the shards, {index}, cannot be written: {reason_of(error)}. Set "
                "cache_dir to a folder of your own"
            ) from error
    others = Counter(json.loads(notes.read_text()))
    left_out = ", ".join(shortened([f"{n} {kind}" for kind, n in others.most_common()], most=6))
    return index, f"left out of {shards[0].parent}: {left_out}" if left_out else ""


def _listed(number: int, shard: Path, names: Named) -> tuple[np.ndarray, Counter[str]]:
    """Return the pairs in a shard, and how many files of which kinds are in none."""
    starts: dict[PurePosixPath, int] = {}
    others: Counter[str] = Counter()
    for path, start in members_of(shard):
        suffix = path.suffix.lower()
        if start is None:
            others["linked file(s)"] += 1
        elif suffix in SUFFIXES:
            starts[path] = start  # a later one of the same name replaces it, as when unpacked
        elif suffix not in NO_PICTURES:
            others[suffix or "without suffix"] += 1
    _check_part(shard, starts)
    sides = _sides(starts, names)
    if len(sides) == 1:
        _check_single(shard, starts)
    pairs, problems = matched(sides, [shard] * 2)
    if problems:
        raise unpaired(problems)
    used = {path for pair in pairs for path in pair}
    others.update(path.suffix.lower() for path in starts if path not in used)
    others["shard(s) without pairs"] += not pairs
    ranks = (_number(normal_name(f"{shard.stem}/{a}")) for a, _ in pairs)
    rows = [(number, starts[a], starts[b], r) for (a, b), r in zip(pairs, ranks, strict=True)]
    return np.array(rows, ROW), +others


def _sides(paths: Iterable[PurePosixPath], names: Named) -> list[ByName]:
    """Return the files of A and B by their names; one side alone if one file holds both halves."""
    if names.a:
        return _by_folder(paths, (names.a, names.b))
    if names.suffixes:
        return by_name(paths, names.suffixes)
    for sides in (by_name(paths, ENDS), _by_folder(paths, ("A", "B"))):
        if all(sides):
            return sides
    return by_name(paths, [""])


def _by_folder(paths: Iterable[PurePosixPath], folders: tuple[str, str]) -> list[ByName]:
    sides: list[ByName] = [{}, {}]
    for path in paths:
        for side, folder in zip(sides, folders, strict=True):
            above = path.parent.parts
            if folder in above:
                name = PurePosixPath(*(part for part in above if part != folder), path.stem)
                side.setdefault(str(name), []).append(path)
    return sides


def _check_part(shard: Path, paths: Iterable[PurePosixPath]) -> None:
    """Refuse a shard of both training and validation pictures: it would train on the latter."""
    vals = [bool({*path.parent.parts} & {*VAL_NAMES}) for path in paths]
    if len({*vals}) > 1:
        raise ValueError(
            f"{shard} holds pictures to validate on among others ({' or '.join(VAL_NAMES)} is a "
            "folder in it). Make shards of either, or unpack it and give the folder"
        )


def _check_single(shard: Path, paths: Iterable[PurePosixPath]) -> None:
    """Refuse to cut pictures in half that are sides of a pair, by WebDataset's rule for names."""
    samples: dict[PurePosixPath, list[str]] = {}
    for path in paths:
        samples.setdefault(path.parent / path.name.partition(".")[0], []).append(path.name)
    more = [names for names in samples.values() if len(names) > 1]
    if more:
        raise ValueError(
            f"In {shard} pictures have a name in common: {', '.join(shortened(more[0], most=4))}. "
            "If they are the sides of pairs, set suffix_a and suffix_b to what tells them apart, "
            "such as .photo and .map"
        )


def _check_rows(rows: np.ndarray, shards: Sequence[Path], others: Counter[str]) -> None:
    if not len(rows):
        found = ", ".join(f"{n} {kind}" for kind, n in others.items())
        raise ValueError(
            f"{shards[0]} and the shards beside it hold no pairs ({found}). Expected pictures: "
            f"{', '.join(SUFFIXES)}"
        )
    halves = rows["a"] == rows["b"]
    if halves.any() != halves.all():
        ways = [shards[rows["shard"][np.argmax(halves == way)]] for way in (True, False)]
        raise ValueError(
            f"One file holds both halves in {ways[0]}, and each has its own in {ways[1]}. Make all "
            "shards in one way"
        )


# --- Reading them ---
class PairsInShards:
    """The arrays of pairs in shards, each decoded whenever it is read.

    Some pairs, spread over all, tell what the pictures are; the others are checked when they are
    read.

    Args:
        pairs: The pairs.
        preparation: What to make of them; a pair that cannot be used stops, or the next one that can be
            stands for it.

    Attributes:
        pairs: As given.
        looked_at: Numbers of those that were looked at.
        sizes: Original (height, width) of the input, of these.
        contents: A hash of each shard by its name.
        kinds: What the inputs are, and the targets.
        notes: Remarks for the user.

    Raises:
        BadPictures: Naming those among these that cannot be used.
    """

    def __init__(self, pairs: ShardedPairs, preparation: Preparation) -> None:
        self.pairs, self.preparation = pairs, preparation
        self.looked_at = range(0, len(pairs), -(-len(pairs) // LOOKED_AT))
        headers: list[PairHeader] = []
        bad: list[PictureError] = []
        for number in self.looked_at:
            try:
                headers.append(check_pair(pairs[number], preparation))
            except PictureError as error:
                bad.append(error)
        if bad and (preparation.on_bad_picture == "stop" or not headers):
            raise BadPictures(bad, len(self.looked_at))
        self.kinds: Kinds = settle_kinds(headers, preparation)
        self.sizes = [(header.height, header.width) for header in headers]
        self.contents = {shard.name: content_of(Pair(shard)) for shard in pairs.shards}
        self.notes = [
            f"pairs in shards are decoded on the fly; {len(self.looked_at)} of {len(pairs)} were "
            "looked at, each other one is checked when its turn comes"
        ]
        self._told: set[int] = set()

    def read(self, number: int) -> np.ndarray:
        """Return a pair as an array (height, width, channels).

        Raises:
            BadPictures: It cannot be used.
        """
        bad: list[PictureError] = []
        for other in range(number, number + MOST_BAD):
            pair = self.pairs[other % len(self.pairs)]
            try:
                check_kinds(pair, check_pair(pair, self.preparation), self.kinds, self.preparation)
                return read_pair(pair, self.preparation, self.kinds)[0]
            except PictureError as error:
                bad.append(error)
            if self.preparation.on_bad_picture == "stop":
                break
            self._tell(other, bad[-1])
        raise BadPictures(bad, len(self.pairs)) from bad[-1]

    def _tell(self, number: int, error: PictureError) -> None:
        """Say once, whichever process meets it, that a pair is left out."""
        if number not in self._told:
            self._told.add(number)
            print(f"\nleft out, the next pair stands for it:\n{error}", file=sys.__stderr__)
