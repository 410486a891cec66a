"""Find the pairs of a data set on disk and say how it is laid out. Opens no picture."""

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
VAL_NAMES = ("val", "test")
DEPTH = 2  # unpacked archives nest: GIVEN/maps/maps/train


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


@dataclass(frozen=True)
class Split:
    """The pairs of a data set, in an order that is the same on every system.

    Attributes:
        train: Pairs to train on, at least one.
        val: Pairs to validate on, at least one.
        layout: How the pairs lie on disk, in a few words.
        root: The folder in which they were found.
    """

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    layout: str
    root: Path


def find_pairs(
    dataset: Path,
    *,
    train_dir: str = "",
    val_dir: str = "",
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Find the training and validation pairs below a folder.

    Looked for in this order: the folders named by ``train_dir`` and ``val_dir``; a folder
    ``train`` with ``val`` (or ``test``) beside it, in ``dataset`` or up to two levels below;
    one folder of pictures, of which ``val_fraction`` is held out for validation.

    Args:
        dataset: The folder of the data set.
        train_dir: Folder of the training pictures, absolute or relative to ``dataset``; empty
            to look for it.
        val_dir: The same for the validation pictures.
        val_fraction: Share of the pictures held out where there is no validation folder,
            above 0 and below 1; at least one picture is held out and one kept.
        seed: Chooses which pictures are held out.

    Raises:
        OSError: If a folder is missing, is a file, or cannot be read.
        ValueError: If there are no pictures, too few, or more than one place to choose from.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be above 0 and below 1, not {val_fraction}")
    dataset = Path(dataset)
    if train_dir or val_dir:
        return _named_folders(dataset, train_dir, val_dir, (val_fraction, seed))
    _check_folder(dataset, "the data set")
    root = _only([d for d in _below(dataset) if _child(d, "train")], dataset, "a train folder")
    if root:
        train = _child(root, "train")
        vals = [v for name in VAL_NAMES if (v := _child(root, name)) and pictures_in(v)]
        if vals:
            return Split(_side_by_side(train), _side_by_side(vals[0]), "side by side", root)
        return _split(train, _side_by_side(train), val_fraction, seed)
    flat = [dataset] if pictures_in(dataset) else [d for d in _below(dataset) if pictures_in(d)]
    folder = _only(flat, dataset, "pictures") or dataset
    return _split(folder, _side_by_side(folder), val_fraction, seed)


def pictures_in(folder: Path) -> list[Path]:
    """List the picture files directly in a folder, in an order that no system changes.

    Raises:
        OSError: If the folder cannot be read.
    """
    return [p for p in _entries(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def _named_folders(
    dataset: Path, train_dir: str, val_dir: str, split_by: tuple[float, int]
) -> Split:
    if not train_dir:
        raise ValueError(
            f"val_dir is set ({val_dir}) but train_dir is not. Set train_dir to the folder of the "
            f"training pictures, or leave both empty to have them looked for"
        )
    train, val = dataset / train_dir, dataset / val_dir
    _check_folder(train, "train_dir")
    if not val_dir:
        return _split(train, _side_by_side(train), *split_by)
    _check_folder(val, "val_dir")
    if train.resolve() == val.resolve():
        raise ValueError(
            f"train_dir and val_dir are the same folder, {train}, so validation would see the "
            f"training pictures. Leave val_dir empty to hold a part of it out (val_fraction)"
        )
    return Split(_side_by_side(train), _side_by_side(val), "side by side", dataset)


def _side_by_side(folder: Path) -> tuple[Pair, ...]:
    found = pictures_in(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no pictures ({_contents(folder)}). Expected side-by-side pictures "
            f"({', '.join(SUFFIXES)}) in it, or in folders train and val below it"
        )
    return tuple(Pair(p) for p in found)


def _split(root: Path, pairs: Sequence[Pair], val_fraction: float, seed: int) -> Split:
    if len(pairs) < 2:
        raise ValueError(
            f"{root} holds one pair only, and at least two are needed, one of them to validate "
            f"on. Add pictures, or set val_dir to a folder of validation pictures"
        )

    # Ranking by a hash of the name keeps most of the split when pictures are added later.
    def rank(pair: Pair) -> bytes:
        return hashlib.blake2b(f"{seed}/{_normal(pair.a.name)}".encode()).digest()

    n_val = min(max(1, round(len(pairs) * val_fraction)), len(pairs) - 1)
    held_out = set(sorted(pairs, key=rank)[:n_val])
    return Split(
        tuple(p for p in pairs if p not in held_out),
        tuple(p for p in pairs if p in held_out),
        f"side by side, no val folder: {n_val} of {len(pairs)} held out (val_fraction)",
        root,
    )


def _check_folder(folder: Path, what: str) -> None:
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


def _only(found: list[Path], dataset: Path, what: str) -> Path | None:
    if len(found) > 1:
        listed = "\n".join(f"  {folder}" for folder in found[:20])
        raise ValueError(
            f"{len(found)} folders at or below {dataset} hold {what}:\n{listed}\n"
            f"Expected one data set. Give one of these as the data set, or set train_dir and "
            f"val_dir"
        )
    return found[0] if found else None


def _below(folder: Path, depth: int = DEPTH) -> list[Path]:
    found = [folder]
    for child in _entries(folder) if depth else []:
        if child.is_dir():
            found += _below(child, depth - 1)
    return found


def _child(folder: Path, name: str) -> Path | None:
    return next((d for d in _entries(folder) if d.name.lower() == name and d.is_dir()), None)


def _entries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be read ({error.strerror}). Give yourself the right to read it, or "
            f"copy the data set to a folder of your own"
        ) from error
    shown = (n for n in names if not n.startswith(".") and n != "__MACOSX")
    return [folder / n for n in sorted(shown, key=lambda n: (_normal(n).casefold(), n))]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS stores accents apart from their letters


def _contents(folder: Path) -> str:
    kinds = Counter("folders" if p.is_dir() else p.suffix or "no suffix" for p in _entries(folder))
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common(5)) or "it is empty"
