"""Files of generators: read with care, whoever wrote them, and turned into networks."""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from authors import import_generator
from config import Config, plain_name
from generator import Generator
from machine.devices import pick_device
from pictures.sides import Side, Sides
from recipes import palettes_of, resolve


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint of this project."""


def _read(path: Path) -> Any:
    """Return what torch saved in a file, tensors on the CPU; code hidden in the file is not run."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a checkpoint, such as checkpoints/NAME/generator.pt."
        )
    with open(path, "rb") as file:
        try:
            # torch itself does not compare the checksums that it writes; before 1.6 it wrote none.
            if file.read(4) == b"PK\x03\x04" and (damaged := zipfile.ZipFile(file).testzip()):
                raise ValueError(f"the checksum of {damaged} does not match")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damage makes the readers raise nearly anything
            raise CheckpointError(f"{path} {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """Say in one sentence what is wrong with a file; torch's own advice is to run its code."""
    if code := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return (
            f"holds code ({code[1]}), as a whole pickled network does, and it is not run; expected "
            "weights alone: save the network's state_dict() instead."
        )
    reason = str(error).partition(". ")[0]
    return f"is damaged or no checkpoint ({type(error).__name__}: {reason})."


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and {"generator", "config"} <= content.keys()


def load_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; code hidden in the file is not run.

    Raises:
        CheckpointError: The file is damaged, or no checkpoint of this project.
        OSError: It does not exist or cannot be read.
    """
    content = _read(path)
    if not _is_ours(content):
        raise CheckpointError(
            f"{path} is no checkpoint of this project: it does not hold a generator and its config."
        )
    return content


def build_generator(config: Config, sides: Sides) -> Generator:
    """Return the generator that a resolved ``config`` describes, freshly initialised.

    Args:
        config: Its settings.
        sides: What its inputs and outputs are as files.
    """
    generator = Generator(
        sides.input.channels,
        sides.target.channels,
        crop_size=config.crop_size,
        bottleneck=config.bottleneck,
        ngf=config.ngf,
        norm=config.norm,
        dropout=config.dropout,
        even_start=config.even_start,
        palette=sides.target.colours if config.is_label("target") else None,
        soft_edges=not sides.target.is_exact,
        input_palette=sides.input.colours if config.is_label("input") else None,
        dropout_at_test=config.dropout_at_test,
        batch_norm_at_test=config.batch_norm_at_test,
    )
    generator.config, generator.sides = config, sides
    return generator


def config_from(content: dict[str, Any], path: Path) -> Config:
    """Return the Config that a checkpoint was trained with; what it lacks takes its default.

    Raises:
        CheckpointError: It holds settings that this version does not have.
    """
    unknown = content["config"].keys() - {field.name for field in fields(Config)}
    if unknown:
        raise CheckpointError(
            f"{path} was made by another version of this project: it has the settings "
            f"{', '.join(sorted(unknown))}, which this version does not know."
        )
    # Files from before there were recipes are the paper's.
    return resolve(Config(**{"recipe": "paper"} | content["config"]))[0]


def load_generator(path: str | Path, device: str | torch.device = "auto") -> Generator:
    """Return a trained generator, ready to translate.

    Args:
        path: ``generator.pt`` or ``latest.pt`` of a run, or ``latest_net_G.pth`` of the authors'
            PyTorch port.
        device: Where to put it; "auto" is CUDA, else Apple's MPS, else the CPU.

    Returns:
        The module, configured for test, its settings as ``generator.config``, what its inputs and
        outputs are as files as ``generator.sides``, and as ``generator.picture_size`` the height
        and width of its training pictures (None where the file does not say). It takes
        (N, channels, H, W) in [-1, 1], H and W divisible by crop_size.

    Raises:
        CheckpointError: The file is damaged or holds no such generator.
        OSError: It does not exist or cannot be read.
        ValueError: This machine has no such device.
    """
    path = Path(path)
    content = _read(path)
    if _is_ours(content):
        config = config_from(content, path)
        weights = content.get("average") or content["generator"]
        generator = build_generator(config, _sides_from(content, config))
        generator.load_state_dict(weights)
        for fact in ("picture_size", "side_by_side", "mixed_sizes"):
            setattr(generator, fact, content.get(fact, getattr(generator, fact)))
    else:
        generator, config = _import(content, path)
    generator.config = config
    return generator.eval().requires_grad_(False).to(pick_device(str(device)))


def _sides_from(content: dict[str, Any], config: Config) -> Sides:
    """Return what inputs and outputs are; older files do not say it."""
    return Sides.from_saved(content["sides"]) if "sides" in content else known_sides(config)


def known_sides(config: Config) -> Sides:
    """Return what the pictures of a data set are as far as its name tells: of 8 bits."""
    channels = (config.input_nc or 3, config.output_nc or 3)
    palettes = palettes_of(config)
    return Sides(*(Side(n, palette=p) for n, p in zip(channels, palettes, strict=True)))


def _import(content: Any, path: Path) -> tuple[Generator, Config]:
    """Build a generator that the authors' code saved, with its settings."""
    try:
        # The authors' files all have the same name, in the folder of their run.
        return import_generator(content, name=plain_name(path.absolute().parent.name))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextmanager
def testing(generator: Generator, seed: int) -> Iterator[None]:
    """Lend ``generator`` for test-time use, then hand it back as it was.

    Nothing inside touches the random state outside, and dropout at test, where it is on, draws
    the same noise every time.
    """
    was_training, device = generator.training, next(generator.parameters()).device
    accelerators = {} if device.type == "cpu" else {"device_type": device.type}
    devices = [device] if accelerators else []
    with torch.inference_mode(), torch.random.fork_rng(devices, **accelerators):
        torch.manual_seed(seed)
        generator.eval()
        try:
            yield
        finally:
            generator.train(was_training)
