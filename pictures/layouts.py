"""Find the pairs of a data set on disk and say how it is laid out. Opens no picture."""

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
VAL_NAMES = ("val", "validation", "test")
DEPTH = 2  # unpacked archives nest: GIVEN/maps/maps/train

Pattern = tuple[str, str | None]
Halves = tuple[Path, Path | None]  # the folders of A and B, or of both side by side and None

WITH_SPLIT: tuple[Pattern, ...] = (
    ("{}A", "{}B"),
    ("A/{}", "B/{}"),
    ("{}/A", "{}/B"),
    ("{}", None),
)
WITHOUT_SPLIT: tuple[Pattern, ...] = (("A", "B"), ("", None))


@dataclass(frozen=True)
class Pair:
    """Where one pair lies: two files, or one file that holds both halves side by side.

    Attributes:
        a: The file of picture A, or of both halves (A left, B right) if ``b`` is None.
        b: The file of picture B, or None.
    """

    a: Path
    b: Path | None = None

    @property
    def name(self) -> str:
        """The pair's name in reports: the file name of A without its suffix."""
        return self.a.stem

    @property
    def files(self) -> tuple[Path, ...]:
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
    """

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    layout: str
    root: Path
    held_out: bool = False

    def describe(self, name: str, sizes: Sequence[tuple[int, int]]) -> str:
        """Say in one line what was found; ``sizes`` are the (height, width) of a half, per pair."""
        halves = 2 if self.train[0].b is None else 1
        seen = sorted({(halves * width, height) for height, width in sizes})
        spread = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys([*seen[:1], *seen[-1:]]))
        counts = f"{len(self.train)} train and {len(self.val)} val pairs"
        return f"{name}: {counts}, {self.layout}, {spread}"


def find_pairs(dataset: Path, *, val_fraction: float = 0.1, seed: int = 0, **named: str) -> Split:
    """Find the training and validation pairs below a folder.

    Folders that are named are taken. Otherwise each folder from ``dataset`` to two levels below
    is looked at for a training set in one of these layouts, the validation set being called
    ``val``, ``validation`` or ``test`` instead of ``train``:

    - two folders of pictures that pair up by name, whatever the suffix: ``trainA`` and
      ``trainB``, ``A/train`` and ``B/train``, or ``train/A`` and ``train/B``;
    - side by side, A left and B right in each picture: ``train``.

    Where there is no validation set, or pictures lie in ``A`` and ``B`` or in one folder alone,
    ``val_fraction`` of the pairs is held out.

    Args:
        dataset: The folder of the data set.
        val_fraction: Share of the pairs held out where there is no validation set; at least one
            pair is held out and one kept.
        seed: Chooses which pairs are held out.
        **named: Folders to take, absolute or relative to ``dataset``: ``train_dir`` with or without
            ``val_dir``, of pictures or of folders A and B; or ``input_dir`` and ``target_dir``,
            whose pairs are split by ``val_fraction``.

    Raises:
        OSError: If a folder is missing, is a file, or cannot be read.
        ValueError: If there are no pictures, too few, names that do not pair up, or more than
            one place to choose from.
    """
    dataset = Path(dataset)
    if named:
        root, train, val = dataset, *_named_folders(dataset, named)
    else:
        check_folder(dataset, "the data set")
        root, train, val = _look_for(dataset)
    split = _paired(root, train, val)
    return split if val else _split(split, val_fraction, seed)


def pictures_in(folder: Path) -> list[Path]:
    """List the picture files directly in a folder, in an order that no system changes."""
    return [p for p in _entries(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def pictures_below(folder: Path) -> list[Path]:
    """List the picture files in a folder and below it, hidden and linked folders aside."""
    found = pictures_in(folder)
    for child in _entries(folder):
        if child.is_dir() and not child.is_symlink():
            found += pictures_below(child)
    return found


def _named_folders(dataset: Path, named: dict[str, str]) -> tuple[Halves, Halves | None]:
    """Return the training and validation folders that the settings name."""
    given = {name: dataset / folder for name, folder in named.items()}
    for name, folder in given.items():
        check_folder(folder, name)
    first, *second = given.values()
    if second and first.samefile(second[0]):
        raise ValueError(f"{' and '.join(given)} are the same folder, {first}. Name two folders")
    if "input_dir" in given:
        return (first, second[0]), None
    return _halves(first), _halves(second[0]) if second else None


def _halves(folder: Path) -> Halves:
    a, b = _find(folder, "A"), _find(folder, "B")
    return (a, b) if a and b else (folder, None)


def _look_for(dataset: Path) -> tuple[Path, Halves, Halves | None]:
    """Return the one data set at or below a folder: where, to train on, to validate on."""
    found = _candidates(dataset, WITH_SPLIT, "train") or _candidates(dataset, WITHOUT_SPLIT, "")
    if not found:
        raise ValueError(_no_pictures(dataset))
    if len(found) > 1:
        sets = [" and ".join(str(d) for d in halves if d) for _, _, halves in found]
        raise ValueError(
            f"{dataset} holds more than one set of pictures:\n{listed(sets)}\n"
            f"Expected one. Give the folder of one as the data set, or set train_dir and val_dir; "
            f"if two of these hold inputs and targets, set input_dir and target_dir to them"
        )
    root, pattern, train = found[0]
    if pattern in WITHOUT_SPLIT:
        return root, train, None
    vals = (_set_at(root, pattern, name) for name in VAL_NAMES)
    return root, train, next((val for val in vals if val), None)


def _candidates(
    dataset: Path, patterns: Sequence[Pattern], role: str
) -> list[tuple[Path, Pattern, Halves]]:
    found, part_of_another = [], set()
    for root in _below(dataset):
        for pattern in patterns if root not in part_of_another else ():
            if halves := _set_at(root, pattern, role):
                found.append((root, pattern, halves))
                # A/train is half of a set, not a set in A.
                part_of_another |= {d for half in halves if half for d in (half, half.parent)}
    return found


def _set_at(root: Path, pattern: Pattern, role: str) -> Halves | None:
    a, b = (None if half is None else _find(root, half.format(role)) for half in pattern)
    complete = a and (b or pattern[1] is None)
    return (a, b) if complete and (pictures_in(a) or (b and pictures_in(b))) else None


def _paired(root: Path, train: Halves, val: Halves | None) -> Split:
    """Return the pairs of both sets, or list every name in either that has no partner."""
    problems: list[str] = []
    train_pairs = _pair_up(train, problems)
    val_pairs = _pair_up(val, problems) if val else ()
    if problems:
        raise ValueError(
            "the pictures do not pair up:\n" + "\n".join(problems) + "\nExpected one picture of "
            "each name in each folder, whatever the suffix. Rename, add or remove the ones listed"
        )
    return Split(train_pairs, val_pairs, "two folders" if train[1] else "side by side", root)


def _pair_up(halves: Halves, problems: list[str]) -> tuple[Pair, ...]:
    """Return the pairs of two folders, or of one; names without a partner go to ``problems``."""
    a, b = halves
    for folder in (d for d in halves if d):
        if not pictures_in(folder):
            raise ValueError(_no_pictures(folder))
    ours = _by_stem(a)
    theirs = _by_stem(b) if b else ours
    sides = [(a, ours, theirs), *([(b, theirs, ours)] if b else [])]
    for folder, here, there in sides:
        alone = [files[0].name for stem, files in here.items() if stem not in there]
        double = [" = ".join(f.name for f in files) for files in here.values() if len(files) > 1]
        for what, names in (("only", alone), ("the same name", double)):
            if names:
                problems.append(f"  {what} in {folder}: {', '.join(shortened(names))}")
    if b is None:
        return tuple(Pair(files[0]) for files in ours.values())
    return tuple(Pair(files[0], theirs[stem][0]) for stem, files in ours.items() if stem in theirs)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for picture in pictures_in(folder):
        stems.setdefault(normal_name(picture.stem).casefold(), []).append(picture)
    return stems


def _split(split: Split, val_fraction: float, seed: int) -> Split:
    pairs = split.train
    if len(pairs) < 2:
        raise ValueError(
            f"{split.root} holds one pair only, and at least two are needed, one of them to "
            f"validate on. Add pictures, or set train_dir and val_dir to two folders"
        )

    # Ranking by a hash of the name keeps most of the split when pictures are added later.
    def rank(pair: Pair) -> bytes:
        name = f"{seed}/{normal_name(pair.a.name)}".encode(errors="surrogatepass")
        return hashlib.blake2b(name).digest()

    n_val = min(max(1, round(len(pairs) * val_fraction)), len(pairs) - 1)
    held_out = set(sorted(pairs, key=rank)[:n_val])
    unused = _unused_val(split.root)
    left = f", {unused} left unused" if unused else ""
    return replace(
        split,
        train=tuple(pair for pair in pairs if pair not in held_out),
        val=tuple(pair for pair in pairs if pair in held_out),
        held_out=True,
        layout=f"{split.layout}, {n_val} of {len(pairs)} held out by val_fraction{left}",
    )


def _unused_val(root: Path) -> Path | None:
    """Return a folder of validation pictures that was passed over, if there is one."""
    halves = (half for pattern in WITH_SPLIT for half in pattern if half)
    folders = (_find(root, half.format(name)) for half in halves for name in VAL_NAMES)
    return next((folder for folder in folders if folder and pictures_in(folder)), None)


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
    if folder.exists():
        raise NotADirectoryError(
            f"{what} {folder} is a file. Expected a folder of pictures; unpack an archive first"
        )
    parent = next(p for p in folder.absolute().parents if p.is_dir())
    names = [d.name for d in _entries(parent) if d.is_dir()]
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5) if names else []
    hint = f"did you mean {' or '.join(str(folder.with_name(n)) for n in near)}?"
    if not near or parent != folder.absolute().parent:
        hint = f"{parent} holds {', '.join(names[:10]) or 'no folders'}"
    raise FileNotFoundError(f"{what} {folder} does not exist ({hint}). Give the path of a folder")


def _below(folder: Path, depth: int = DEPTH) -> list[Path]:
    found = [folder]
    for child in _entries(folder) if depth else []:
        if child.suffix.lower() not in SUFFIXES and child.is_dir():
            found += _below(child, depth - 1)
    return found


def _find(folder: Path, path: str) -> Path | None:
    """Return the folder at ``path`` below a folder, upper or lower case, if there is one."""
    found: Path | None = folder
    for name in path.split("/") if path else ():
        names = (d for d in _entries(found) if d.name.lower() == name.lower() and d.is_dir())
        found = next(names, None)
        if found is None:
            break
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be read ({error.strerror}). Give yourself the right to read it, or "
            f"copy the data set to a folder of your own"
        ) from error
    shown = (n for n in names if not n.startswith(".") and n != "__MACOSX")
    return [folder / n for n in sorted(shown, key=lambda n: (normal_name(n).casefold(), n))]


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


def _no_pictures(folder: Path) -> str:
    files = (
        f.suffix or "without suffix" for d in _below(folder) for f in _entries(d) if f.is_file()
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(files).most_common(5))
    return (
        f"{folder} holds no pictures ({kinds or 'it is empty'}). Expected {', '.join(SUFFIXES)} in "
        f"it, or in folders train and val below it, side by side or in folders A and B"
    )
