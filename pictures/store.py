"""The arrays of pairs: kept in a cache, or decoded whenever one is read."""

import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pictures.cache import PairCache
from pictures.decode import BadPictures, PictureError
from pictures.layouts import Pair
from pictures.pairs import (
    Kinds,
    PairHeader,
    Preparation,
    check_kinds,
    check_pair,
    read_pair,
    settle_kinds,
)
from pictures.shards import ShardedPairs

LOOKED_AT = 256  # pairs in shards that tell what all are
MOST_BAD = 100  # pairs in a row that are passed over


class PairStore(Protocol):
    """Pairs that have been checked, and their arrays.

    Attributes:
        pairs: Those that can be used, in the order given.
        looked_at: The numbers of those that tell what the pictures are.
        sizes: The original (height, width) of the input, of these.
        contents: A hash of the files of each pair by its key, or of each shard by its name.
        kinds: What the inputs are, and the targets.
        is_stored: Whether they are kept as arrays, so that to read one is nearly free.
        notes: Remarks for the user; the one on pairs left out lists them below it.
    """

    pairs: Sequence[Pair]
    looked_at: Sequence[int]
    sizes: list[tuple[int, int]]
    contents: dict[str, str]
    kinds: Kinds
    is_stored: bool
    notes: list[str]

    def read(self, number: int) -> np.ndarray:
        """Return a pair as an array (height, width, channels) that must not be written to.

        Raises:
            BadPictures: It is decoded now, and cannot be used.
            OSError: It was kept in a file that has vanished or is damaged.
        """


def open_store(pairs: Sequence[Pair], preparation: Preparation) -> PairStore:
    """Check pairs and return them with their arrays.

    Raises:
        BadPictures: Naming every pair that cannot be used.
        OSError: The cache cannot be written.
    """
    store = PairsInShards if isinstance(pairs, ShardedPairs) else PairCache
    return store(pairs, preparation)


class PairsInShards:
    """A PairStore of pairs in shards, each decoded whenever it is read.

    Some pairs, spread over all, tell what the pictures are; the others are checked when they are
    read.

    Args:
        pairs: The pairs.
        preparation: What to make of them. A pair that cannot be used stops, or the next one that
            can be stands for it, as on_bad_picture says.

    Raises:
        BadPictures: Naming those among these that cannot be used.
    """

    is_stored = False

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
        self.contents = pairs.contents
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
            print(f"\nleft out; the next pair takes its place:\n{error}", file=sys.__stderr__)
