"""Find the pairs of a data set on disk and say how it is laid out. Opens no picture."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from pictures.folders import (
    NO_PICTURES,
    check_folder,
    counted,
    entries,
    files_below,
    find_folder,
    folders_below,
    is_picture,
    listed,
    no_pictures,
    normal_name,
    pictures_below,
    shortened,
)
from pictures.tars import Member

P = TypeVar("P", bound=PurePath)
ByName = dict[str, list[P]]  # the files of one side

VAL_NAMES = ("val", "validation", "test")
DEPTH = 2  # unpacked archives nest: GIVEN/maps/maps/train

# Where the sides of a part (train, val) may lie.
TWO_FOLDERS = ("{part}{side}", "{part}_{side}", "{side}/{part}", "{part}/{side}")
ONE_FOLDER = "{part}"  # pictures side by side, or of both sides with other endings


@dataclass(frozen=True)
class Pair:
    """Where one pair lies: two files, or one file that holds both halves side by side.

    Attributes:
        a: The file of picture A, or of both halves (A left, B right) if ``b`` is None.
        b: The file of picture B, or None.
        folder: The folders between that of the set and the file, such as "city/north"; in a shard
            its name comes first.
    """

    a: Path | Member
    b: Path | Member | None = None
    folder: str = ""

    @property
    def key(self) -> str:
        """What tells it from the other pairs of its set: the path of A within the set."""
        return normal_name(PurePath(self.folder, self.a.name).as_posix())

    @property
    def name(self) -> str:
        """The pair's name in reports: the path of A within the set, without its suffix."""
        return PurePath(self.folder, self.a.stem).as_posix()

    @property
    def files(self) -> tuple[Path | Member, ...]:
        """The one or two files."""
        return (self.a, self.b) if self.b else (self.a,)


@dataclass(frozen=True)
class Split:
    """The pairs of a data set, in an order that is the same on every system.

    Attributes:
        train: Pairs to train on, at least one.
        val: Pairs to validate on, at least one.
        layout: How the pairs lie on disk, in a few words.
        root: The folder in which they were found.
        held_out: Whether there was no validation set, so that ``val`` was held out of all pairs.
        left_out: What else lies there and is not used, in one line, or "".
    """

    train: Sequence[Pair]
    val: Sequence[Pair]
    layout: str
    root: Path
    held_out: bool = False
    left_out: str = ""

    def describe(self, name: str, sizes: Sequence[tuple[int, int]]) -> str:
        """Say in one line what was found; ``sizes`` are the (height, width) of a half, per pair."""
        halves = 2 if self.train[0].b is None else 1
        seen = sorted({(halves * width, height) for height, width in sizes})
        spread = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys([*seen[:1], *seen[-1:]]))
        counts = f"{len(self.train)} train and {len(self.val)} val pairs"
        return f"{name}: {counts}, {self.layout}, {spread}"


@dataclass(frozen=True)
class Named:
    """What settings name of a layout; what is empty goes by its usual name.

    Attributes:
        train_dir: The training set, absolute or relative to the data set. Its name stands where
            ``train`` does in the layouts: ``learn`` finds ``learnA`` and ``learnB``, too.
        val_dir: The validation set, likewise.
        a: The folders of A pictures by their name, or one folder by its absolute path.
        b: The folders of B pictures, likewise.
        suffix_a: What the names of A pictures end in: "_A", or ".jpg" where the types differ.
        suffix_b: What the names of B pictures end in.
    """

    train_dir: str = ""
    val_dir: str = ""
    a: str = ""
    b: str = ""
    suffix_a: str = ""
    suffix_b: str = ""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of both sides end in, if that tells them apart."""
        return (self.suffix_a, self.suffix_b) if self.suffix_a or self.suffix_b else ()

    def patterns(self, part: str) -> tuple[str, ...]:
        """Return the patterns by which a part of a set may lie, or a set without parts."""
        two = TWO_FOLDERS if part else ("{side}",)
        return two if self.a else (*two, ONE_FOLDER)

    @property
    def sought(self) -> str:
        """What pictures are looked for, where that is not the usual."""
        if self.a:
            return f" in folders {self.a} and {self.b}"
        ends = " and ".join(filter(None, self.suffixes))
        return f" whose names end in {ends}" if ends else ""


class Found(NamedTuple):
    """A part of a data set: ``b`` is ``a`` if both sides lie in it, None if side by side."""

    root: Path
    pattern: str
    part: str
    a: Path
    b: Path | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The one or two folders."""
        return (self.a, self.b) if self.b and self.b != self.a else (self.a,)


def find_pairs(dataset: Path, *, val_fraction: float = 0.1, seed: int = 0, **named: str) -> Split:
    """Find the training and validation pairs below a folder.

    Each folder from ``dataset`` to two levels below is looked at for a training set in one of
    these layouts, the validation set being called ``val``, ``validation`` or ``test`` instead of
    ``train``. Folders below those of a set belong to it.

    - Two folders of pictures that pair up by name, whatever the suffix: ``trainA`` and ``trainB``,
      ``train_A`` and ``train_B``, ``A/train`` and ``B/train``, or ``train/A`` and ``train/B``.
    - One folder, ``train``, of pictures that hold A left and B right; or, where suffixes are named,
      of pictures that pair up by name once those are taken off.

    Where there is no validation set, or pictures lie in ``A`` and ``B`` or in one folder alone,
    ``val_fraction`` of the pairs is held out.

    Args:
        dataset: The folder of the data set.
        val_fraction: Share of the pairs held out where there is no validation set; at least one
            pair is held out and one kept.
        seed: Chooses which pairs are held out.
        **named: Fields of ``Named``.

    Raises:
        OSError: If a folder is missing, is a file, or cannot be read.
        ValueError: If there are no pictures, too few, names that do not pair up, or more than
            one place to choose from.
    """
    dataset, names = Path(dataset), Named(**named)
    apart = [Path(side) for side in (names.a, names.b) if os.path.isabs(side)]
    for folder in apart:
        check_folder(folder, "the folder of pictures")
    if names.train_dir:
        train, val = _named(dataset, "train_dir", names), None
    else:
        if not apart:
            check_folder(dataset, "the data set")
        train, val = _look_for(dataset, names, depth=0 if apart else DEPTH)
    if names.val_dir:
        val = _named(dataset, "val_dir", names)
    split = _paired(train, val, names)
    split = split if val else _split(split, val_fraction, seed)
    searched = [] if names.train_dir or apart else [dataset]
    used = [folder for found in (train, val) if found for folder in found.folders]
    return replace(split, left_out=_left_out(split, used, searched))


def _named(dataset: Path, setting: str, names: Named) -> Found:
    """Return the part of a set that a setting names."""
    folder = Path(os.path.abspath(dataset / getattr(names, setting)))
    found = _sets([folder.parent], folder.name, names)
    if not found:
        check_folder(folder, setting)
    return _only(found, folder, names)


def _look_for(dataset: Path, names: Named, depth: int) -> tuple[Found, Found | None]:
    """Return the one training set at or below a folder, and its validation set."""
    roots = folders_below(dataset, depth)
    train = _only(_sets(roots, "train", names) or _sets(roots, "", names), dataset, names)
    if not train.part:
        return train, None
    vals = (_set_at(train.root, train.pattern, part, names) for part in VAL_NAMES)
    return train, next((val for val in vals if val), None)


def _only(found: list[Found], where: Path, names: Named) -> Found:
    if not found:
        raise ValueError(
            f"{no_pictures(where, names.sought)} in it, or in folders train and val in it or at "
            f"most {DEPTH} folders down"
            + ", side by side or in folders A and B"
            * (not names.sought)
        )
    if len(found) > 1:
        sets = [" and ".join(map(str, one.folders)) for one in found]
        raise ValueError(
            f"{where} holds more than one set of pictures:\n{listed(sets)}\n"
            "Expected one. Give the folder of one as the data set, or set train_dir and val_dir; "
            "if two of these hold A and B, set a and b to their names"
        )
    return found[0]


def _sets(roots: Sequence[Path], part: str, names: Named) -> list[Found]:
    found: list[Found] = []
    for root in roots:
        inside = {folder for one in found for folder in one.folders if folder != one.root}
        # A/train is half of a set, not a set in A; and what is in a set belongs to it.
        if inside & {root, *root.parents} or root in {folder.parent for folder in inside}:
            continue
        here = [_set_at(root, pattern, part, names) for pattern in names.patterns(part)]
        here = [one for one in here if one]
        if len(here) > 1:  # train/A and train/B are no pictures below train
            here = [one for one in here if one.pattern != ONE_FOLDER or _directly(one.a)]
        found += here
    return found


def _set_at(root: Path, pattern: str, part: str, names: Named) -> Found | None:
    """Return the part of a set that lies in a folder by a pattern, if it does."""
    sides = names.a or "A", names.b or "B"
    a, b = (find_folder(root, pattern.format(part=part, side=side)) for side in sides)
    if not (a and b):
        return None
    if pattern == ONE_FOLDER:
        # Without parts, every folder that has folders of pictures below it would be a set.
        holds = _directly(a) or (part and pictures_below(a))
        b = b if names.suffixes else None
    else:
        holds = pictures_below(a) or pictures_below(b)
    return Found(root, pattern, part, a, b) if holds else None


def _directly(folder: Path) -> bool:
    return any(map(is_picture, entries(folder)))


def _paired(train: Found, val: Found | None, names: Named) -> Split:
    """Return the pairs of both parts, or list every name in either that has no partner."""
    problems: list[str] = []
    train_pairs = _pair_up(train, names, problems)
    val_pairs = _pair_up(val, names, problems) if val else ()
    if problems:
        raise unpaired(problems)
    _check_apart(train_pairs, val_pairs)
    layout = "side by side" if train.b is None else "two folders"
    layout = f"names in {' and '.join(names.suffixes)}" if train.a == train.b else layout
    return Split(train_pairs, val_pairs, layout, train.root)


def unpaired(problems: Sequence[str]) -> ValueError:
    """Return the error on names without a partner, of which ``matched`` gives the lines."""
    return ValueError(
        "the pictures do not pair up:\n" + "\n".join(problems) + "\nExpected one picture of "
        "each name on each side, whatever the suffix. Rename, add or remove the ones listed, "
        "or set suffix_a and suffix_b to what the names of A and B end in"
    )


def _check_apart(train: Sequence[Pair], val: Sequence[Pair]) -> None:
    files = {pair.a for pair in val}
    mixed = [p.key for p in train if p.a in files or p.key.lower().split("/")[0] in VAL_NAMES]
    if mixed:
        raise ValueError(
            f"{len(mixed)} pairs to validate on lie in the folder of those to train on: "
            f"{', '.join(shortened(mixed, most=3))}. Give each a folder of its own, such as train "
            "and val"
        )


def _pair_up(found: Found, names: Named, problems: list[str]) -> tuple[Pair, ...]:
    """Return the pairs of a part; names without a partner go to ``problems``."""
    endings = names.suffixes or ("", "")
    if found.b is None:
        sides = by_name(_below(found.a), [""])
    elif found.b.samefile(found.a):
        if not names.suffixes:
            raise ValueError(f"A and B are the same folder, {found.a}. Name two folders")
        sides = by_name(_below(found.a), endings)
    else:
        sides = by_name(_below(found.a), endings[:1]) + by_name(_below(found.b), endings[1:])
    folders = (found.a, found.b or found.a)
    for folder, ending, side in zip(folders, endings, sides, strict=False):
        if not side:
            raise ValueError(no_pictures(folder, ending and f" whose names end in {ending}"))
    pairs, alone = matched(sides, folders)
    problems += alone
    return tuple(
        Pair(
            found.a / a,
            found.b / b if found.b else None,
            a.parent.as_posix().removeprefix("."),
        )
        for a, b in pairs
    )


def _below(folder: Path) -> list[PurePath]:
    return [picture.relative_to(folder) for picture in pictures_below(folder)]


def by_name(files: Iterable[P], endings: Sequence[str]) -> list[ByName[P]]:
    """Return files by their names, the longest ending taken off, for each ending.

    A name is the path without its suffix, unless that is the ending.
    """
    sides: dict[str, ByName[P]] = {ending: {} for ending in endings}
    longest_first = sorted(sides, key=len, reverse=True)
    for path in files:
        spellings = [_folded(path.with_suffix("").as_posix()), _folded(path.as_posix())]
        for ending, name in product(longest_first, spellings):
            if name.endswith(_folded(ending)):
                name = name.removesuffix(_folded(ending))
                sides[ending].setdefault(name, []).append(path)
                break
    return [sides[ending] for ending in endings]


def matched(
    sides: Sequence[ByName[P]], places: Sequence[Path]
) -> tuple[list[tuple[P, P]], list[str]]:
    """Pair files up by their names.

    Args:
        sides: Those of A and of B by name; or of one side, each its own partner.
        places: Where both lie.

    Returns:
        Pairs; and a line for each place with files that have no partner, or more than one.
    """
    problems = []
    for place, here, there in zip(places, sides, sides[::-1], strict=False):
        alone = [files[0].as_posix() for name, files in here.items() if name not in there]
        double = [
            " = ".join(file.as_posix() for file in files)
            for files in here.values()
            if len(files) > 1
        ]
        for what, files in (("only", alone), ("the same name", double)):
            if files:
                problems.append(f"  {what} in {place}: {', '.join(shortened(files))}")
    ours, theirs = sides[0], sides[-1]
    return [(a, theirs[name][0]) for name, (a, *_) in ours.items() if name in theirs], problems


def _left_out(split: Split, used: Sequence[Path], searched: Sequence[Path]) -> str:
    """Say what lies in the folders that were searched or used and is in no pair."""
    known = {file for pair in (*split.train, *split.val) for file in pair.files}
    known |= {above for folder in used for above in (folder, *folder.parents)}  # perhaps linked
    here = dict.fromkeys(path for folder in (*searched, *used) for path in files_below(folder))
    left = [p for p in here if p not in known and p.suffix.lower() not in NO_PICTURES]
    root = searched[0] if searched else split.root
    return f"left out of {root}: {counted(left, root)}" if left else ""


def _split(split: Split, val_fraction: float, seed: int) -> Split:
    pairs = split.train
    if len(pairs) < 2:
        raise ValueError(
            f"{split.root} holds one pair only, and at least two are needed, one of them to "
            f"validate on. Add pictures, or set train_dir and val_dir to two folders"
        )

    # Ranking by a hash of the name keeps most of the split when pictures are added later.
    def rank(pair: Pair) -> bytes:
        name = f"{seed}/{pair.key}".encode(errors="surrogatepass")
        return hashlib.blake2b(name).digest()

    n_val = min(max(1, round(len(pairs) * val_fraction)), len(pairs) - 1)
    held_out = set(sorted(pairs, key=rank)[:n_val])
    return replace(
        split,
        train=tuple(pair for pair in pairs if pair not in held_out),
        val=tuple(pair for pair in pairs if pair in held_out),
        held_out=True,
        layout=f"{split.layout}, {n_val} of {len(pairs)} held out by val_fraction",
    )


def _folded(name: str) -> str:
    return normal_name(name).casefold()
