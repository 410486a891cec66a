"""From the settings to the pairs: where a data set lies, and its training and validation part."""

from pathlib import Path

from config import OFFICIAL, PRESETS, Config
from dataset import PairedImages
from download import ARCHIVES, fetch
from layouts import Split, find_pairs
from towns import draw_towns

TOWNS_TRAIN, TOWNS_VAL = 400, 40


def find_dataset(dataset: str, mirror: str = OFFICIAL) -> Path:
    """Return the folder of a data set; one in PRESETS is drawn or fetched if it is not there yet.

    Args:
        dataset: A folder, or a name in PRESETS, whose folder is then ``data/NAME``.
        mirror: Where the archives of the paper's data sets are: an address, or a local folder.

    Raises:
        FileNotFoundError: There is no such folder.
        DownloadError: The data set could not be fetched.
    """
    for folder in (Path(dataset), Path("data") / dataset):
        if folder.is_dir() and (folder == Path(dataset) or dataset in PRESETS):
            return folder
    if dataset == "towns":
        draw_towns(Path("data/towns"), TOWNS_TRAIN, TOWNS_VAL)
        return Path("data/towns")
    if dataset in ARCHIVES:
        return fetch(dataset, mirror=mirror)
    raise FileNotFoundError(
        f"dataset is {dataset!r}, and there is no such folder; give a folder of side-by-side "
        f"pairs, or one of {', '.join(PRESETS)}."
    )


def split_of(config: Config) -> Split:
    """Return the training and validation pairs that a resolved ``config`` names.

    Raises:
        ValueError, OSError: The folder does not hold pairs; the message says what was expected.
    """
    if config.train_dir:
        folder = Path(config.train_dir).parent
    else:
        folder = find_dataset(config.dataset, config.mirror)
    return find_pairs(
        folder,
        train_dir=config.train_dir and str(Path(config.train_dir).absolute()),
        val_dir=config.val_dir and str(Path(config.val_dir).absolute()),
        val_fraction=config.val_fraction,
        seed=config.seed,
    )


def open_pairs(config: Config, split: Split, *, training: bool) -> PairedImages:
    """Check, decode and cache the training or the validation pairs of ``split``.

    Raises:
        BadPictures: Listing every picture that cannot be used.
        OSError: The cache cannot be written.
    """
    return PairedImages(
        split.train if training else split.val,
        load_size=config.load_size,
        crop_size=config.crop_size,
        flip=config.flip,
        augment=training,
        direction=config.direction,
        input_nc=config.input_nc,
        output_nc=config.output_nc,
        seed=config.seed,
        cache_limit_gb=config.cache_limit_gb,
    )
