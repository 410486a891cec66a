"""From the settings to the pairs: where a data set lies, and its training and validation part."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from config import OFFICIAL, PRESETS, Config
from dataset import PairedImages
from pictures.decode import BadPictures
from pictures.download import ARCHIVES, fetch
from pictures.halves import check_halves
from pictures.layouts import Pair, Split, check_folder, find_pairs, shortened
from pictures.pairs import Recipe
from pictures.palettes import Palette
from recipes import palette_of
from towns.draw import N_TRAIN, N_VAL, draw_towns
from towns.heights import draw_heights

DRAWN = {"towns": draw_towns, "heights": draw_heights}
MOST = 8  # names in a message
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
        is_code = (folder / "__init__.py").exists()  # as the towns of this project are
        known = folder == Path(dataset) or dataset in PRESETS
        if folder.is_dir() and known and not is_code:
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
    folders = {"train_dir": config.train_dir, "val_dir": config.val_dir}
    folders |= {"a": config.input_dir, "b": config.target_dir}
    named = {name: getattr(config, name) for name in ("a", "b", "suffix_a", "suffix_b")}
    named |= {name: str(Path(folder).absolute()) for name, folder in folders.items() if folder}
    is_named = config.train_dir or config.input_dir
    root = Path(config.dataset) if is_named else find_dataset(config.dataset, config.mirror)
    return find_pairs(root, **named, val_fraction=config.val_fraction, seed=config.seed)


def recipe_of(config: Config, *, augment: bool) -> Recipe:
    """Return how the pairs of a resolved ``config`` become samples."""
    names = [field.name for field in fields(Recipe) if field.name != "augment"]
    return Recipe(**{name: getattr(config, name) for name in names}, augment=augment)


def open_pairs(config: Config, pairs: Sequence[Pair], *, augment: bool) -> PairedImages:
    """Check, decode and cache ``pairs``, to train on (augmented) or to validate on.

    Raises:
        BadPictures: Listing every picture that cannot be used.
        OSError: The cache cannot be written.
    """
    return PairedImages(pairs, recipe_of(config, augment=augment))


@dataclass(frozen=True)
class Data:
    """What a run learns from, opened and checked."""

    train: PairedImages
    val: PairedImages
    palette: Palette | None
    """The colours of the classes in the targets, where those are known label pictures."""
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of training pairs."""
        return len(self.train) // self.batch_size

    @property
    def picture_size(self) -> tuple[int, int]:
        """Typical (height, width) of the original inputs, in pixels."""
        heights, widths = zip(*self.train.sizes, strict=True)
        return statistics.median_high(heights), statistics.median_high(widths)

    def identity(self) -> Identity:
        """Return what the pairs are, wherever they lie."""
        return {
            part: {
                pair.key: content
                for pair, content in zip(images.pairs, images.contents, strict=True)
            }
            for part, images in (("train", self.train), ("val", self.val))
        }


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
            f"{', '.join(shortened(taught, MOST))}. Scores on them would be worth nothing: bring "
            "the old split back, or start over with another --name or --fresh."
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
                lines.append(f"  {what} in {part}: {', '.join(shortened(names, MOST))}")
    return "\n".join(
        [
            "The pairs are not those that were trained on:",
            *lines,
            "Bring the old ones back, or start a new run on these, from what was learned: another "
            "--name, and --init-from the old run's generator.pt.",
        ]
    )


def open_data(config: Config) -> Data:
    """Find, check and open the pairs that a resolved ``config`` names, and say what they are.

    Raises:
        BadPictures: Listing every picture of training and validation that cannot be used.
        ValueError, OSError: There are no pairs, or too few; or the cache cannot be written.
    """
    split = split_of(config)
    notes = [split.left_out]
    if config.check_halves and split.train[0].b is None:
        notes += check_halves(split.train, recipe_of(config, augment=True))
    opened: list[PairedImages] = []
    bad: list[BadPictures] = []
    for pairs, augment in ((split.train, True), (split.val, False)):
        try:
            opened.append(open_pairs(config, pairs, augment=augment))
        except BadPictures as error:
            bad.append(error)
    if bad:
        raise BadPictures([e for b in bad for e in b.errors], sum(b.n_pairs for b in bad))
    train, val = opened
    if config.batch_size > len(train):
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the data set of {len(train)} training "
            f"pairs, so no batch is full. Set batch_size to {len(train)} or less."
        )
    notes = [split.describe(config.name, train.sizes), *notes, *train.notes, *val.notes]
    print(*filter(None, notes), sep="\n")
    return Data(train, val, palette_of(config), config.batch_size)
