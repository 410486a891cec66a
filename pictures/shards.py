"""Pairs in tar files, read in place: for sets too large to be unpacked, checked or cached.

An index, made once, holds in which shard each pair lies and at which byte its files begin. So the
pairs are read in any order, as those in folders are, and a run goes on exactly.
"""

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.lib.format import open_memmap

from machine.disk import reason_of, sealed, unsealed, whole_file
from machine.progress import progress
from pictures.folders import NO_PICTURES, SUFFIXES, normal_name, shortened, state_of
from pictures.layouts import (
    VAL_NAMES,
    ByName,
    Named,
    Pair,
    Split,
    by_name,
    check_apart,
    check_partners,
    hold_out,
    matched,
    rank_of,
)
from pictures.tars import LINKS, RANGE, Member, find_shards, members_of

ENDS = (".a", ".b")  # of the names of both sides, as in WebDataset: 0001.a.jpg and 0001.b.png
# Of a pair: the number of its shard, where A and B begin in it (at one byte if they lie side by
# side), and a number that follows from its name, by which pairs are held out.
ROW = np.dtype([("shard", "<u4"), ("a", "<u8"), ("b", "<u8"), ("rank", "<u8")])
VAL_SHARD = re.compile(rf"(?<![a-z])({'|'.join(VAL_NAMES)})(?![a-z])", re.IGNORECASE)
FORMAT = 2  # to be raised when the index of the same shards changes
SAMPLE, SAMPLED_EVERY = 1 << 16, 1 << 24  # bytes of a shard that its hash is made of


class ShardedPairs(Sequence[Pair]):
    """The pairs of some shards, each made when it is asked for, as there may be millions.

    Args:
        shards: Absolute paths.
        index: File of a ROW for each pair.
        contents: A hash of each shard by its name, in the order of the shards.
        held_out: Rows, in order, that do not belong to these.
    """

    def __init__(
        self, shards: Sequence[Path], index: Path, contents: dict[str, str], held_out: np.ndarray
    ) -> None:
        self.shards, self.index, self.contents = tuple(shards), index, contents
        self.held_out = held_out
        self.rows = open_memmap(index, mode="r")
        self.names = [name.removesuffix(".tar") for name in contents]

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
        # So many of these pairs stand before each row that is held out.
        before = self.held_out - np.arange(len(self.held_out))
        return self.pair_at(numbers + int(np.searchsorted(before, numbers, "right")))

    def pair_at(self, row: int) -> Pair:
        """Return the pair of a row of the index."""
        shard, *starts, _ = self.rows[row].tolist()
        a, b = (Member(self.shards[shard], start) for start in starts)
        folder = PurePosixPath(self.names[shard], a.path.parent).as_posix()
        return Pair(a, None if a == b else b, folder)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping out: pickled it would be copied, a worker opens the file itself."""
        names = ("shards", "index", "contents", "held_out")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the index again."""
        self.__init__(**state)


# --- Finding them ---
def find_sharded(
    pattern: str,
    val: str = "",
    *,
    val_fraction: float,
    seed: int,
    cache_dir: str,
    a: str = "",
    b: str = "",
    on_bad_picture: str = "stop",
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
        a: Where A pictures are, as in ``Named``, but for paths.
        b: Where B pictures are, likewise.
        on_bad_picture: Whether a picture without a partner stops, or with "skip" is left out.

    Raises:
        OSError: Shards are missing or cannot be read, or the index cannot be written.
        ValueError: A shard is damaged; or holds no pictures, or such that do not pair up.
    """
    names = Named(a, b)
    if names.paths:
        raise ValueError(
            f"{pattern} are shards, but a and b are paths. Give the names of folders within the "
            "shards, or endings such as '*.photo'"
        )
    opened = partial(_opened, names=names, folder=Path(cache_dir), on_bad_picture=on_bad_picture)
    shards = find_shards(pattern)
    vals = find_shards(val) if val else _val_shards(pattern)
    by_name = {(shard,): bool(VAL_SHARD.search(shard.stem)) for shard in shards}
    check_apart(by_name, [(shard,) for shard in vals])
    train, left_out = opened(shards)
    layout = "side by side" if train[0].b is None else "two files each"
    layout = f"{layout}, in {len(shards)} shard{'s' * (len(shards) > 1)}"
    if vals:
        all_val, left_out_too = opened(vals)
        val_pairs = all_val[:]
        left_out = "\n".join(filter(None, (left_out, left_out_too)))
        _check_alike(train[0], val_pairs[0])
    else:
        train.held_out = hold_out(train.rows["rank"], val_fraction, seed, shards[0].parent)
        val_pairs = tuple(map(train.pair_at, train.held_out.tolist()))
        layout = f"{layout}, {len(val_pairs)} of {len(train.rows)} held out by val_fraction"
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


def _check_alike(train: Pair, val: Pair) -> None:
    if (train.b is None) != (val.b is None):
        raise ValueError(
            f"Training pairs ({train.a}) and validation pairs ({val.a}) have different layouts: "
            "one set is side by side, the other in two files each. Give both one layout"
        )


# --- The index ---
class Listed(NamedTuple):
    """What a shard holds."""

    rows: np.ndarray
    """A ROW for each pair."""
    others: Counter[str]
    """How many files of which kinds are in no pair."""
    problems: list[str]
    """Lines on pictures without a partner."""
    content: str
    """A hash of it."""


def _opened(
    shards: Sequence[Path], names: Named, folder: Path, on_bad_picture: str
) -> tuple[ShardedPairs, str]:
    """Return the pairs in some shards, and remarks for the user on what else these hold."""
    states = [state_of(shard) for shard in shards]
    facts = json.dumps({"format": FORMAT, "names": asdict(names), "shards": states})
    key = hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
    index = folder.absolute() / f"{key}.npy"
    notes = unsealed(index.with_suffix(".index"))
    if notes is None or notes["checksum"] != _checksum(index):
        notes = _write_index(index, shards, names)
    problems = check_partners(notes["problems"], on_bad_picture)
    contents = dict(zip(_names_of(shards), notes["contents"], strict=True))
    pairs = ShardedPairs(shards, index, contents, np.arange(0))
    others = Counter(notes["others"]).most_common()
    kinds = ", ".join(shortened([f"{n} {kind}" for kind, n in others], most=6))
    left_out = f"left out of {shards[0].parent}: {kinds}" if kinds else ""
    return pairs, "\n".join(filter(None, (left_out, problems)))


def _names_of(shards: Sequence[Path]) -> list[str]:
    """Return their paths as seen from the folder that holds all: a name alone may come twice."""
    above = os.path.commonpath([shard.parent for shard in shards])
    return [shard.relative_to(above).as_posix() for shard in shards]


def _checksum(index: Path) -> int | None:
    """Return the checksum of an index; None if it is gone."""
    try:
        return zlib.crc32(np.memmap(index, np.uint8, "r"))
    except (OSError, ValueError):
        return None


def _write_index(index: Path, shards: Sequence[Path], names: Named) -> dict[str, Any]:
    """List all shards in an index; return what else there is to say of them."""
    bar = progress(shards, desc="listing shards", unit="shard", leave=False)
    # Threads would slow each other down: it is Python's own work.
    listings = [_listed(number, shard, names) for number, shard in enumerate(bar)]
    rows, others = np.concatenate([one.rows for one in listings]), Counter()
    problems = [line for one in listings for line in one.problems]
    for one in listings:
        others.update(one.others)
    if not len(rows):
        check_partners(problems, "stop")
    _check_rows(rows, shards, others)
    notes = {"others": others, "problems": problems, "contents": [one.content for one in listings]}
    try:
        with whole_file(index) as draft:
            with draft.open("wb") as file:
                np.save(file, rows)
            notes["checksum"] = _checksum(draft)
        with whole_file(index.with_suffix(".index")) as draft:  # last: it makes the index whole
            draft.write_text(sealed(notes))
    except OSError as error:
        raise OSError(
            f"the index of the shards, {index}, cannot be written: {reason_of(error)}. Set "
            "cache_dir to a folder of your own"
        ) from error
    return notes


def _listed(number: int, shard: Path, names: Named) -> Listed:
    """List a shard."""
    starts: dict[PurePosixPath, int] = {}
    others: Counter[str] = Counter()
    checksums: list[int] = []
    n_links = 0
    for path, member in members_of(shard):
        checksums.append(member.chksum)
        suffix = path.suffix.lower()
        if member.type in LINKS:
            n_links += 1
        elif suffix in SUFFIXES:
            starts[path] = member.offset  # a later one of the same name replaces it, as unpacked
        elif suffix not in NO_PICTURES:
            others[suffix or "without suffix"] += 1
    check_apart({(shard / p,): bool({*p.parent.parts} & {*VAL_NAMES}) for p in starts}, [])
    sides = _sides(starts, names)
    if len(sides) == 1:
        _check_single(shard, starts)
    pairs, problems = matched(sides, [shard] * 2)
    if problems and n_links:
        problems.append(
            f"  {n_links} members of {shard} are links, which are not followed; make it with files "
            "alone (tar --hard-dereference --dereference)"
        )
    used = {path for pair in pairs for path in pair}
    others.update(path.suffix.lower() for path in starts if path not in used)
    others["linked file(s)"] += n_links
    others["shard(s) without pairs"] += not pairs
    ranks = (rank_of(normal_name(f"{shard.stem}/{a}")) for a, _ in pairs)
    rows = [(number, starts[a], starts[b], r) for (a, b), r in zip(pairs, ranks, strict=True)]
    return Listed(np.array(rows, ROW), +others, problems, _content_of(shard, checksums))


def _content_of(shard: Path, checksums: Sequence[int]) -> str:
    """Return a hash of a shard: of its headers, its ends and samples between, as it may be large.

    Args:
        shard: The file.
        checksums: Those of its headers, which hold the size and time of each member.
    """
    digest = hashlib.blake2b(np.array(checksums, "<u4"), digest_size=8)
    with shard.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in (*range(0, size, SAMPLED_EVERY), max(0, size - SAMPLE)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _sides(paths: Iterable[PurePosixPath], names: Named) -> list[ByName]:
    """Return the files of A and B by their names; one side alone if one file holds both halves."""
    if names.folders:
        return _by_folder(paths, names)
    if names.endings:
        return by_name(paths, names.endings)
    for sides in (by_name(paths, ENDS), _by_folder(paths, Named("A", "B"))):
        if all(sides):
            return sides
    return by_name(paths, [""])


def _by_folder(paths: Iterable[PurePosixPath], names: Named) -> list[ByName]:
    sides: list[ByName] = []
    for folder, ending in zip(names.folders, names.endings or ("", ""), strict=True):
        inside = {
            PurePosixPath(*(part for part in path.parts if part != folder)): path
            for path in paths
            if folder in path.parent.parts
        }
        (side,) = by_name(inside, [ending])
        sides.append({name: [inside[path] for path in found] for name, found in side.items()})
    return sides


def _check_single(shard: Path, paths: Iterable[PurePosixPath]) -> None:
    """Refuse to cut pictures in half that are sides of a pair, by WebDataset's rule for names."""
    samples: dict[PurePosixPath, list[str]] = {}
    for path in paths:
        samples.setdefault(path.parent / path.name.partition(".")[0], []).append(path.name)
    more = [names for names in samples.values() if len(names) > 1]
    if more:
        raise ValueError(
            f"In {shard} pictures have a name in common: {', '.join(shortened(more[0], most=4))}. "
            "If they are the sides of pairs, set a and b to what tells them apart, such as "
            '"*.photo" and "*.map"'
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
