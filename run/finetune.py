"""Start a run from networks that were trained before: ``--init-from FILE``."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from generator import Generator
from utils import CheckpointError, load_file, load_generator


def start_from(state: Any, path: str) -> str:
    """Give the networks of a new run the weights of a file, where they fit.

    Levels of the U-Net are counted from the outside, so that another crop_size only adds or drops
    levels at the bottleneck. The discriminator is taken too where the file holds one that fits.

    Args:
        state: With ``generator`` and ``discriminator``, freshly initialised; changed in place.
        path: Any file that ``load_generator`` reads.

    Returns:
        One line that says what was taken and what is drawn anew.

    Raises:
        ValueError: The generator has layers of another width or norm.
        OSError: The file cannot be read.
    """
    trained = load_generator(path, device="cpu")
    before, now = ((g.config.ngf, g.config.norm) for g in (trained, state.generator))
    if before != now:
        raise ValueError(
            f"The generator in {path} has ngf {before[0]} and norm {before[1]}, this run {now[0]} "
            f"and {now[1]}. Add --ngf {before[0]} --norm {before[1]}, or leave out --init-from."
        )
    fresh = _transfer(_from_outside(trained), _from_outside(state.generator))
    if state.average is not None:
        state.average.load_state_dict(state.generator.state_dict())
    drawn = f"; drawn anew: {', '.join(fresh)}" if fresh else ""
    return f"Starting from {path}{drawn}; {_start_discriminator(state.discriminator, path)}."


def _start_discriminator(discriminator: nn.Module, path: str) -> str:
    try:
        before = load_file(Path(path)).get("discriminator", {})
    except CheckpointError:  # the authors' file of a generator
        before = {}
    now = discriminator.state_dict()
    if {name: t.shape for name, t in before.items()} != {name: t.shape for name, t in now.items()}:
        return "the discriminator is new"
    discriminator.load_state_dict(before)
    return "the discriminator is from there, too"


def _from_outside(generator: Generator) -> dict[str, Tensor]:
    """Return the weights by names that count the levels of the decoder from the outside."""
    depth = len(generator.decoder)
    weights = {}
    for name, tensor in generator.state_dict().items():
        if name.endswith("palette"):  # the new pictures may have other colours
            continue
        side, level, layer = name.split(".", 2)
        outer = int(level) if side == "encoder" else depth - 1 - int(level)
        weights[f"{side} level {outer + 1} {layer}"] = tensor
    return weights


def _transfer(trained: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    """Copy what has the same name and shape; return the names in ``new`` that stay as they are."""
    fresh = []
    for name, tensor in new.items():
        if name in trained and trained[name].shape == tensor.shape:
            tensor.copy_(trained[name])
        else:
            fresh.append(name)
    return fresh
