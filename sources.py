"""From the settings to the pairs: where a data set lies, and its training and validation part."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from config import OFFICIAL, PRESETS, Config
from dataset import PairedImages
from pictures.download import ARCHIVES, fetch
from pictures.layouts import Pair, Split, check_folder, find_pairs
from pictures.palettes import target_palette
from pictures.decode import BadPictures
from towns.draw import N_TRAIN, N_VAL, draw_towns


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
        if folder.is_dir() and (folder == Path(dataset) or dataset in PRESETS):
            return folder
    if dataset == "towns":
        draw_towns(Path("data/towns"), N_TRAIN, N_VAL)
        return Path("data/towns")
    if dataset in ARCHIVES:
        return fetch(dataset, mirror=mirror)
    check_folder(Path(dataset), "the data set")
    return Path(dataset)


def palette_of(config: Config) -> dict[str, tuple[int, int, int]] | None:
    """Return the colours of the classes in the targets, where those are known label pictures."""
    if config.input_dir:  # what lies in a folder is known by the name of its data set alone
        return None
    folder = PurePath(os.path.abspath(config.dataset)).name
    return target_palette(folder, config.direction) if config.output_nc == 3 else None


def split_of(config: Config) -> Split:
    """Return the training and validation pairs that a resolved ``config`` names.

    Raises:
        ValueError, OSError: The folder does not hold pairs; the message says what was expected.
    """
    names = ("train_dir", "val_dir", "input_dir", "target_dir")
    named = {
        name: str(Path(folder).absolute()) for name in names if (folder := getattr(config, name))
    }
    root = Path(config.dataset) if named else find_dataset(config.dataset, config.mirror)
    return find_pairs(root, **named, val_fraction=config.val_fraction, seed=config.seed)


def open_pairs(config: Config, pairs: Sequence[Pair], *, augment: bool) -> PairedImages:
    """Check, decode and cache ``pairs``, to train on (augmented) or to validate on.

    Raises:
        BadPictures: Listing every picture that cannot be used.
        OSError: The cache cannot be written.
    """
    return PairedImages(
        pairs,
        load_size=config.load_size,
        crop_size=config.crop_size,
        flip=config.flip,
        augment=augment,
        direction=config.direction,
        input_nc=config.input_nc,
        output_nc=config.output_nc,
        seed=config.seed,
        keep_aspect=config.keep_aspect,
        nearest=config.nearest,
        square_halves=config.square_halves,
        on_bad_picture=config.on_bad_picture,
        cache_dir=Path(config.cache_dir),
        cache_limit_gb=config.cache_limit_gb,
    )


def open_split(config: Config, split: Split) -> tuple[PairedImages, PairedImages]:
    """Open the training and the validation pairs.

    Raises:
        BadPictures: Listing every picture of both that cannot be used.
        OSError: The cache cannot be written.
    """
    opened: list[PairedImages] = []
    bad: list[BadPictures] = []
    for pairs, augment in ((split.train, True), (split.val, False)):
        try:
            opened.append(open_pairs(config, pairs, augment=augment))
        except BadPictures as error:
            bad.append(error)
    if bad:
        raise BadPictures.joined(bad)
    return opened[0], opened[1]
