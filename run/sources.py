"""From the settings to the pairs: where a data set lies, and its training and validation part."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from config import OFFICIAL, Config
from dataset import PairedImages
from machine.devices import Machine
from pictures.decode import BadPictures
from pictures.download import ARCHIVES, fetch
from pictures.folders import check_folder, shortened
from pictures.halves import check_halves
from pictures.layouts import Pair, Split, find_pairs
from pictures.pairs import ROLES, Kinds, Preparation
from pictures.palettes import IGNORED, Palette, by_numbers, find_classes, share_unknown
from pictures.shards import find_sharded
from pictures.sides import OWN_RANGES, SCALABLE, Side, Sides, quantiles
from pictures.store import LOOKED_AT
from pictures.tars import is_shards
from recipes import PRESETS, is_path, palettes_of
from samples.heights import draw_heights
from samples.towns import N_TRAIN, N_VAL, draw_towns
from utils import Facts

DRAWN = {"towns": draw_towns, "heights": draw_heights}
MAX_NAMES = 8  # in a message
CHECKED_FOR_HALVES = 1000  # pairs in shards that are looked at for single pictures
# Between which quantiles of the numbers the range lies, where a type has no black and white.
RANGE_SHARES = (0.001, 0.999)
MIXED_RATIO = 1.5  # of the largest side to the smallest: pictures of more have mixed sizes
NARROW_RANGE = 1 / 8  # of what the type holds; pictures that fill less are seldom meant so
Identity = dict[str, dict[str, str]]  # of "train" and "val": name of a pair to hash of its files


def find_dataset(dataset: str, mirror: str = OFFICIAL) -> Path:
    """Return the folder of a data set; one in PRESETS is drawn or fetched if it is not there yet.

    Args:
        dataset: A folder, or a name in PRESETS, whose folder is then ``data/NAME``.
        mirror: Where the archives of the paper's data sets are: an address, or a local folder.

    Raises:
        OSError: There is no such folder.
        DownloadError: The data set could not be fetched.
    """
    for folder in (Path(dataset), Path("data") / dataset):
        known = folder == Path(dataset) or dataset in PRESETS
        if folder.is_dir() and known:
            return folder
    if dataset in DRAWN:
        DRAWN[dataset](Path("data") / dataset, N_TRAIN, N_VAL)
        return Path("data") / dataset
    if dataset in ARCHIVES:
        return fetch(dataset, mirror=mirror)
    check_folder(Path(dataset), "the data set")
    return Path(dataset)


def split_of(config: Config) -> Split:
    """Return the training and validation pairs that a resolved ``config`` names.

    Raises:
        ValueError, OSError: The folder does not hold pairs; the message says what was expected.
    """
    sides = {
        side: str(Path(value).absolute()) if is_path(value) else value
        for side in ("a", "b")
        if (value := getattr(config, side))
    }
    held_out = {"val_fraction": config.val_fraction, "seed": config.seed}
    held_out["on_bad_picture"] = config.on_bad_picture
    if is_shards(config.dataset):
        if config.train_dir or is_path(config.a):
            raise ValueError(
                "The data set consists of shards, so train_dir and paths in a and b cannot be "
                "used; leave them out, or give a folder as the data set."
            )
        return find_sharded(
            config.dataset, config.val_dir, **held_out, cache_dir=config.cache_dir, **sides
        )
    folders = {"train_dir": config.train_dir, "val_dir": config.val_dir}
    folders = {name: str(Path(path).absolute()) for name, path in folders.items() if path}
    is_named = config.train_dir or is_path(config.a)
    root = Path(config.dataset) if is_named else find_dataset(config.dataset, config.mirror)
    return find_pairs(root, **folders, **sides, **held_out)


def preparation_of(config: Config, *, augment: bool, kinds: Kinds | None = None) -> Preparation:
    """Return how the pairs of a resolved ``config`` become samples."""
    settled = {"augment": augment, "kinds": kinds, "found_labels": _unknown_labels(config)}
    settled["ranged"] = tuple(role for role in ROLES if getattr(config, f"{role}_range"))
    names = [field.name for field in fields(Preparation) if field.name not in settled]
    return Preparation(**{name: getattr(config, name) for name in names}, **settled)


def _unknown_labels(config: Config) -> str:
    """Return the sides whose pictures are labels in colours that are not known by a name."""
    known = dict(zip(ROLES, palettes_of(config), strict=True))
    unknown = [role for role in ROLES if config.is_label(role) and known[role] is None]
    return {0: "none", 1: "".join(unknown), 2: "both"}[len(unknown)]


def open_pairs(
    config: Config, pairs: Sequence[Pair], *, augment: bool, kinds: Kinds | None = None
) -> PairedImages:
    """Check, decode and cache ``pairs``, to train on (augmented) or to validate on.

    Args:
        config: Resolved settings.
        pairs: Where they lie.
        augment: Whether they are to be trained on.
        kinds: What the pictures are to be; None: whatever they are.

    Raises:
        BadPictures: Listing every picture that cannot be used.
        OSError: The cache cannot be written.
    """
    return PairedImages(pairs, preparation_of(config, augment=augment, kinds=kinds))


@dataclass(frozen=True)
class Data:
    """What a run learns from, opened and checked."""

    train: PairedImages
    val: PairedImages
    sides: Sides
    """What inputs and targets are."""
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of training pairs."""
        return len(self.train) // self.batch_size

    @property
    def picture_size(self) -> tuple[int, int]:
        """Typical (height, width) of the original inputs, in pixels."""
        heights, widths = zip(*self.train.store.sizes, strict=True)
        return statistics.median_high(heights), statistics.median_high(widths)

    def facts(self, config: Config) -> Facts:
        """Return what a generator must be saved with, to be used on other pictures."""
        store = self.train.store
        lengths = np.array(store.sizes)
        ratio = (lengths.max(axis=0) / lengths.min(axis=0)).max()
        return Facts(
            config,
            self.sides,
            self.picture_size,
            side_by_side=store.pairs[0].b is None,
            mixed_sizes=bool(ratio > MIXED_RATIO and not config.keep_aspect),
        )

    def identity(self) -> Identity:
        """Return what the pairs are, or the shards they are in, wherever they lie."""
        return {"train": self.train.store.contents, "val": self.val.store.contents}


def changes(before: Identity, now: Identity) -> str | None:
    """Say why a run may not go on with pairs that are not those it was trained on before.

    Args:
        before: ``Data.identity()`` when the checkpoint was written; empty if it did not tell.
        now: The same of the pairs that there are now.

    Returns:
        Which pairs they are and what to do, or None where nothing changed.
    """
    if not before or before == now:
        return None
    known = set(before["train"].values()) - set(before["val"].values())
    if taught := [name for name, content in now["val"].items() if content in known]:
        return (
            f"{len(taught)} pairs that are now for validation were trained on before: "
            f"{', '.join(shortened(taught, MAX_NAMES))}. Scores on them would be worth nothing: "
            "bring the old split back, or start over with another --name or --fresh."
        )
    lines = []
    for part in ("train", "val"):
        old, new = before[part], now[part]
        for what, names in (
            ("changed", [name for name in old if name in new and old[name] != new[name]]),
            ("missing", [name for name in old if name not in new]),
            ("new", [name for name in new if name not in old]),
        ):
            if names:
                lines.append(f"  {what} in {part}: {', '.join(shortened(names, MAX_NAMES))}")
    return "\n".join(
        [
            "The pairs are not those that were trained on:",
            *lines,
            "Bring the old ones back, or start a new run on these, from what was learned: another "
            "--name, and --init-from the old run's generator.pt.",
        ]
    )


def open_data(config: Config, machine: Machine, sides: Sides | None = None) -> Data:
    """Find, check and open the pairs that a resolved ``config`` names, and say what they are.

    Args:
        config: Resolved settings.
        machine: Of the processes that share the run, the first makes what the others find.
        sides: What the pictures are, where an earlier part of the run has found it.

    Raises:
        BadPictures: Listing every picture of training and validation that cannot be used.
        ValueError, OSError: There are no pairs, or too few; or the cache cannot be written.
    """
    return machine.processes.in_turns(_opened, config, sides)


def _opened(config: Config, sides: Sides | None) -> Data:
    split = split_of(config)
    notes = [split.left_out]
    if config.check_halves and split.train[0].b is None:
        first = split.train[:CHECKED_FOR_HALVES] if is_shards(config.dataset) else split.train
        notes += check_halves(first, preparation_of(config, augment=True))
    train, val = _open_both(config, split)
    if config.batch_size > len(train):
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the data set of {len(train)} training "
            f"pairs, so no batch is full. Set batch_size to {len(train)} or less."
        )
    found = train.store.kinds
    if sides and sides.kinds != found:
        before, now = (" and ".join(map(str, kinds)) for kinds in (sides.kinds, found))
        raise ValueError(
            f"Inputs and targets of this run were {before}; now they are {now}. Bring the old "
            "ones back, or start a new run on these (another --name, or --fresh)."
        )
    sides = sides or find_sides(config, train)
    kinds = [f"{r}s: {s.describe()}" for r, s in zip(ROLES, sides, strict=True) if s != Side()]
    notes = [*notes, *kinds, *train.notes, *val.notes, *_unlike_range(train, sides)]
    notes += unknown_classes(val, sides)
    _check_labelled(config, val)
    print(*filter(None, [split.describe(config.name, train.store.sizes), *notes]), sep="\n")
    return Data(train, val, sides, config.batch_size)


def _check_labelled(config: Config, val: PairedImages) -> None:
    """Refuse validation targets of which no pixel is of a class.

    Raises:
        ValueError: All are the number that ignore names.
    """
    if config.ignore is None or not config.is_label("target"):
        return
    targets = (val.whole(index)[1] for index in val.store.looked_at)
    if all((target == IGNORED).all() for target in targets):
        raise ValueError(
            f"All pixels of the validation targets are {config.ignore}, which ignore leaves out; "
            "give a validation set with labels."
        )


def _open_both(config: Config, split: Split) -> list[PairedImages]:
    """Open the pairs to train and to validate on; list what is wrong with either of them."""
    opened: list[PairedImages] = []
    bad: list[BadPictures] = []
    for pairs, augment in ((split.train, True), (split.val, False)):
        try:  # validation pictures are to be like those of the training
            kinds = opened[0].store.kinds if opened else None
            opened.append(open_pairs(config, pairs, augment=augment, kinds=kinds))
        except BadPictures as error:
            bad.append(error)
    if bad:
        raise BadPictures([e for b in bad for e in b.errors], sum(b.n_pairs for b in bad))
    return opened


# --- What the pictures are ---
def find_sides(config: Config, train: PairedImages) -> Sides:
    """Return what inputs and targets are: as typed, known by name, or found in the training set.

    Raises:
        ValueError: The numbers or classes of the pictures have no usable range.
    """
    typed, known = (config.input_range, config.target_range), palettes_of(config)
    sides = enumerate(zip(typed, known, strict=True))
    return Sides(*(_side(config, train, place, *given) for place, given in sides))


def _side(
    config: Config,
    train: PairedImages,
    place: int,
    typed: tuple[float, float] | None,
    palette: Palette | None,
) -> Side:
    kind, role = train.store.kinds[place], ROLES[place]
    is_exact = False
    if palette is None and config.is_label(role):
        palette, is_exact = _classes(train, place)
    if config.ignore is not None and config.is_label(role) and not kind.index:
        raise ValueError(
            f"ignore is a number, and the {role}s are label pictures in colours; leave it out."
        )
    limits = typed or OWN_RANGES[kind.dtype]
    if limits is None:
        limits = quantiles(_spread(train, place), *RANGE_SHARES)
        if limits[0] == limits[1]:
            raise ValueError(
                f"Nearly all numbers of the {role}s are {limits[0]:g}; give their range as "
                f"{role}_range, or other pictures."
            )
    return Side(kind.channels, kind.dtype, *limits, palette, kind.index, is_exact)


def _classes(train: PairedImages, place: int) -> tuple[Palette, bool]:
    """Return the classes that label pictures show, and whether these are all their colours."""
    kind, role = train.store.kinds[place], ROLES[place]
    if (kind.channels, kind.dtype) != (3, "uint8"):
        raise ValueError(f"The {role}s are {kind}, and labels are colours or numbers in 8 bits.")
    try:
        pictures = (train.whole(index)[place] for index in train.store.looked_at)
        palette, is_exact = find_classes(pictures, shades=not kind.index)
    except ValueError as error:
        raise ValueError(
            f"The {role}s do not look like label pictures: {error}. Leave {role}s out of labels."
        ) from error
    return (by_numbers(palette) if kind.index else palette), is_exact


def _spread(train: PairedImages, place: int) -> list[np.ndarray]:
    """Return one half of some pairs, spread evenly over all."""
    step = -(-len(train.store.looked_at) // LOOKED_AT)
    return [train.whole(index)[place] for index in train.store.looked_at[::step]]


def _unlike_range(train: PairedImages, sides: Sides) -> Iterator[str]:
    """Yield a line for each side whose pictures use a small part of their range, or leave it."""
    for place, (role, side) in enumerate(zip(ROLES, sides, strict=True)):
        if side.palette:
            continue
        low, high = quantiles(_spread(train, place), 0, 1)
        width, typed = side.high - side.low, f"--{role}-range {low:g} {high:g}"
        if side.dtype in SCALABLE and high - low < NARROW_RANGE * width:
            labels = f", or --labels {role} if these are masks" * (side.channels in (1, 3))
            fill = f"{role}s fill {low:g} to {high:g} of {side.low:g} to {side.high:g}"
            yield f"{fill}; give {typed}{labels}"
        elif max(high - side.high, side.low - low) > width:
            yield (
                f"{role}s go from {low:g} to {high:g}, far beyond {side.low:g} to {side.high:g}, "
                f"where they are cut off; {typed} keeps all"
            )


def unknown_classes(pairs: PairedImages, sides: Sides) -> Iterator[str]:
    """Yield a line for each side whose label pictures hold classes that the training set has not.

    Args:
        pairs: Those to score.
        sides: What the pictures of the training were.
    """
    for place, (role, side) in enumerate(zip(ROLES, sides, strict=True)):
        if not side.is_exact:
            continue
        pictures = (pairs.whole(index)[place] for index in range(len(pairs)))
        if count := sum(share_unknown(picture, side.palette) > 0 for picture in pictures):
            yield (
                f"{count} of {len(pairs)} {role}s hold classes that the training pictures have "
                "not; these are taken for those of the nearest colour"
            )
