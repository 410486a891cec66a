"""Find the pairs of a data set on disk and say how it is laid out. Opens no picture."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import numpy as np

from pictures.folders import (
    NO_PICTURES,
    check_folder,
    counted,
    entries,
    files_below,
    find_folder,
    folders_below,
    identity,
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
        return PurePath(self.folder, self.a.name).with_suffix("").as_posix()

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
    """Where A and B pictures are, as the settings ``a`` and ``b`` say; "": where they usually are.

    Attributes:
        a: One of these: the name of the folders of A pictures; the absolute path of one folder; a
            star and what the names of A pictures end in ("*_A", or "*.jpg" where types differ); or
            a folder and an ending ("images/*_A").
        b: The same of B pictures.
    """

    a: str = ""
    b: str = ""

    def __post_init__(self) -> None:
        """Refuse the path of one folder beside the name of others."""
        if len(self.paths) == 1:
            raise ValueError(
                f"a is {self.a!r} and b is {self.b!r}: one is the path of a folder. Give the paths "
                "of both folders, or the names of both"
            )

    @property
    def folders(self) -> tuple[str, ...]:
        """Names or paths of the folders of A and B, or () where no setting names one."""
        named = [_folder_and_ending(side)[0] for side in (self.a, self.b)]
        return (named[0] or "A", named[1] or "B") if any(named) else ()

    @property
    def paths(self) -> list[Path]:
        """The folders that are given by their paths: both or none."""
        return [Path(folder) for folder in self.folders if os.path.isabs(folder)]

    @property
    def endings(self) -> tuple[str, ...]:
        """What the names of A and B end in, or () where that does not tell them apart."""
        endings = tuple(_folder_and_ending(side)[1] for side in (self.a, self.b))
        return endings if any(endings) else ()

    def patterns(self, part: str) -> tuple[str, ...]:
        """Return the patterns by which a part of a set may lie, or a set without parts."""
        two = TWO_FOLDERS if part else ("{side}",)
        return two if self.folders else (*two, ONE_FOLDER)

    @property
    def sought(self) -> str:
        """What pictures are looked for, where that is not the usual."""
        if self.folders:
            return f" in folders {' and '.join(self.folders)}"
        ends = " and ".join(filter(None, self.endings))
        return f" whose names end in {ends}" if ends else ""


def _folder_and_ending(setting: str) -> tuple[str, str]:
    folder, star, ending = setting.rpartition("*")
    return (folder.rstrip("/" + os.sep), ending) if star else (setting, "")


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


def find_pairs(
    dataset: Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    train_dir: str = "",
    val_dir: str = "",
    a: str = "",
    b: str = "",
    on_bad_picture: str = "stop",
) -> Split:
    """Find the training and validation pairs below a folder.

    Each folder from ``dataset`` to two levels below is looked at for a training set in one of
    these layouts, the validation set being called ``val``, ``validation`` or ``test`` instead of
    ``train``. Folders below those of a set belong to it.

    - Two folders of pictures that pair up by name, whatever the suffix: ``trainA`` and ``trainB``,
      ``train_A`` and ``train_B``, ``A/train`` and ``B/train``, or ``train/A`` and ``train/B``.
    - One folder, ``train``, of pictures that hold A left and B right; or, where endings are named,
      of pictures that pair up by name once those are taken off.

    Where there is no validation set, or pictures lie in ``A`` and ``B`` or in one folder alone,
    ``val_fraction`` of the pairs is held out.

    Args:
        dataset: The folder of the data set.
        val_fraction: Share of the pairs held out where there is no validation set; at least one
            pair is held out and one kept.
        seed: Chooses which pairs are held out.
        train_dir: The training set, absolute or relative to the data set. Its name stands where
            ``train`` does in the layouts: ``learn`` finds ``learnA`` and ``learnB``, too.
        val_dir: The validation set, likewise.
        a: Where A pictures are, as in ``Named``.
        b: Where B pictures are, likewise.
        on_bad_picture: Whether a picture without a partner stops, or with "skip" is left out.

    Raises:
        OSError: If a folder is missing, is a file, or cannot be read.
        ValueError: If there are no pictures, too few, names that do not pair up, or more than
            one place to choose from.
    """
    dataset, names = Path(dataset), Named(a, b)
    for folder in names.paths:
        check_folder(folder, "the folder of pictures")
    if train_dir:
        train, val = _named(dataset / train_dir, "train_dir", names), None
    else:
        if not names.paths:
            check_folder(dataset, "the data set")
        train, val = _look_for(dataset, names, depth=0 if names.paths else DEPTH)
    if val_dir:
        val = _named(dataset / val_dir, "val_dir", names)
    split = _paired(train, val, names, on_bad_picture)
    split = split if val else _split(split, val_fraction, seed)
    searched = [] if train_dir or names.paths else [dataset]
    used = [folder for found in (train, val) if found for folder in found.folders]
    left_out = [split.left_out, _left_out(split, used, searched)]
    return replace(split, left_out="\n".join(filter(None, left_out)))


def _named(folder: Path, setting: str, names: Named) -> Found:
    """Return the part of a set that a setting names."""
    folder = Path(os.path.abspath(folder))
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
    sides = names.folders or ("A", "B")
    a, b = (find_folder(root, pattern.format(part=part, side=side)) for side in sides)
    if not (a and b):
        return None
    if pattern == ONE_FOLDER:
        # Without parts, every folder that has folders of pictures below it would be a set.
        holds = _directly(a) or (part and pictures_below(a))
        b = b if names.endings else None
    else:
        holds = pictures_below(a) or pictures_below(b)
    return Found(root, pattern, part, a, b) if holds else None


def _directly(folder: Path) -> bool:
    return any(map(is_picture, entries(folder)))


def _paired(train: Found, val: Found | None, names: Named, on_bad_picture: str) -> Split:
    """Return the pairs of both parts, or list every name in either that has no partner."""
    problems: list[str] = []
    train_pairs = _pair_up(train, names, problems)
    val_pairs = _pair_up(val, names, problems) if val else ()
    is_enough = train_pairs and (val_pairs or not val)
    left_out = check_partners(problems, on_bad_picture if is_enough else "stop")
    check_apart(
        {pair.files: pair.key.lower().split("/")[0] in VAL_NAMES for pair in train_pairs},
        [pair.files for pair in val_pairs],
    )
    layout = "side by side" if train.b is None else "two folders"
    layout = f"names in {' and '.join(names.endings)}" if train.a == train.b else layout
    return Split(train_pairs, val_pairs, layout, train.root, left_out=left_out)


def check_partners(problems: Sequence[str], on_bad_picture: str) -> str:
    """Refuse names without a partner, or say in a remark for the user that they are left out.

    Args:
        problems: Lines from ``matched``.
        on_bad_picture: The setting: stop or skip.
    """
    if problems and on_bad_picture == "stop":
        raise ValueError(
            "the pictures do not pair up:\n" + "\n".join(problems) + "\nExpected one picture of "
            "each name on each side, whatever the suffix. Rename, add or remove the ones listed, "
            'or set a and b to what the names of A and B end in, as in "*_A" and "*_B"'
        )
    return "\n".join(["left out, as they do not pair up:", *problems]) if problems else ""


def check_apart(
    train: Mapping[tuple[Path | Member, ...], bool], val: Iterable[tuple[Path | Member, ...]]
) -> None:
    """Refuse to train on what is to validate on: scores would be worth nothing.

    Args:
        train: What is to train on, by its files; and whether it is for validation by its name.
        val: The files of what is to validate on. Links to the same files are the same.
    """
    known = {tuple(map(identity, files)) for files in val}
    both = [files for files in train if known and tuple(map(identity, files)) in known]
    named = [files for files, is_val in train.items() if is_val]
    if mixed := both or (named if len(named) < len(train) else []):
        names = ", ".join(shortened([str(files[0]) for files in mixed], most=3))
        raise ValueError(
            f"{len(mixed)} of {len(train)} training pairs or shards are also for validation: "
            f"{names}. Keep both apart: in folders of their own, as train and val, or in shards of "
            "their own, as train-0.tar and val-0.tar"
        )


def _pair_up(found: Found, names: Named, problems: list[str]) -> tuple[Pair, ...]:
    """Return the pairs of a part; names without a partner go to ``problems``."""
    endings = names.endings or ("", "")
    if found.b is None:
        sides = by_name(_below(found.a), [""])
    elif found.b.samefile(found.a):
        if len({*endings}) == 1:
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
    """Return for each ending the files whose names have it, by their names without it.

    A name is the path without its suffix, unless that is the ending. Of several endings that fit
    the longest counts.
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
    problems: list[str] = []
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
    both = [(files, theirs[name]) for name, files in ours.items() if name in theirs]
    return [(a[0], b[0]) for a, b in both if len(a) == len(b) == 1], problems


def _left_out(split: Split, used: Sequence[Path], searched: Sequence[Path]) -> str:
    """List the files in the folders searched or used that belong to no pair."""
    known = {file for pair in (*split.train, *split.val) for file in pair.files}
    known |= {above for folder in used for above in (folder, *folder.parents)}  # perhaps linked
    here = dict.fromkeys(path for folder in (*searched, *used) for path in files_below(folder))
    left = [p for p in here if p not in known and p.suffix.lower() not in NO_PICTURES]
    root = searched[0] if searched else split.root
    return f"left out of {root}: {counted(left, root)}" if left else ""


def _split(split: Split, val_fraction: float, seed: int) -> Split:
    ranks = np.array([rank_of(pair.key) for pair in split.train], np.uint64)
    numbers = {*hold_out(ranks, val_fraction, seed, split.root).tolist()}
    return replace(
        split,
        train=tuple(pair for n, pair in enumerate(split.train) if n not in numbers),
        val=tuple(pair for n, pair in enumerate(split.train) if n in numbers),
        held_out=True,
        layout=f"{split.layout}, {len(numbers)} of {len(ranks)} held out by val_fraction",
    )


def rank_of(name: str) -> int:
    """Return a number of 64 bits that follows from a pair's name."""
    name_bytes = name.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name_bytes, digest_size=8).digest(), "little")


def hold_out(ranks: np.ndarray, val_fraction: float, seed: int, where: Path) -> np.ndarray:
    """Return the numbers, in order, of the pairs that are held out to validate on.

    Args:
        ranks: ``rank_of`` of the name of each pair, uint64.
        val_fraction: Share of the pairs; at least one pair is held out and one kept.
        seed: Chooses which.
        where: Where they lie, for the message.

    Raises:
        ValueError: There are fewer than two pairs.
    """
    if len(ranks) < 2:
        raise ValueError(
            f"{where} holds only one pair; training and validation need one each. Add pairs, or "
            "set val_dir to others"
        )
    n_val = min(max(1, round(len(ranks) * val_fraction)), len(ranks) - 1)
    # Ranks follow from names, so most of the split stays when pairs are added later.
    shuffled = ranks * np.uint64(rank_of(str(seed)) | 1)
    return np.sort(np.argpartition(shuffled, n_val - 1)[:n_val])


def _folded(name: str) -> str:
    return normal_name(name).casefold()
