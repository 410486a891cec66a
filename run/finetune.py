"""Start a run from networks that were trained before: ``--init-from FILE``."""

from pathlib import Path

from torch import Tensor, nn

from config import Config
from generator import Generator
from run.state import TrainingState
from utils import is_ours, load_generator, load_weights, read_file


def start_from(state: TrainingState, config: Config) -> str:
    """Give the networks of a new run the weights of a file, where they fit.

    Levels of the U-Net are counted from the outside, so that another crop_size only adds or drops
    levels at the bottleneck. The discriminator is taken too where the file holds one that fits.

    Args:
        state: Freshly initialised; its networks are changed in place.
        config: Resolved settings, whose init_from is any file that ``load_generator`` reads.

    Returns:
        One line that says what was taken and what is drawn anew.

    Raises:
        ValueError: The generator has layers of another width or norm.
        OSError: The file cannot be read.
    """
    path, trained = config.init_from, load_generator(config.init_from, device="cpu")
    before, now = ((c.ngf, c.norm.removesuffix("_running")) for c in (trained.config, config))
    if before != now:
        raise ValueError(
            f"The generator in {path} has ngf {before[0]} and norm {before[1]}, this run {now[0]} "
            f"and {now[1]}. Add --ngf {before[0]} --norm {before[1]}, or leave out --init-from."
        )
    fresh = _transfer(_from_outside(trained.generator), _from_outside(state.generator))
    if state.average is not None:
        state.average.load_state_dict(state.generator.state_dict())
    drawn = f"; drawn anew: {', '.join(fresh)}" if fresh else ""
    return f"Starting from {path}{drawn}; {_start_discriminator(state.discriminator, path)}."


def _start_discriminator(discriminator: nn.Module, path: str) -> str:
    content = read_file(Path(path))
    try:
        load_weights(discriminator, content.get("discriminator") if is_ours(content) else None)
    except ValueError:  # the file holds none, or one of another kind
        return "the discriminator is new"
    return "the discriminator is from there, too"


def _from_outside(generator: Generator) -> dict[str, Tensor]:
    """Return the weights by names that count the levels of the decoder from the outside."""
    depth = len(generator.decoder)
    weights = {}
    for name, tensor in generator.state_dict().items():
        side, level, *layer = name.split(".")
        if side != "refinement":
            outer = int(level) if side == "encoder" else depth - 1 - int(level)
            name = f"{side} level {outer + 1} {'.'.join(layer)}"
        weights[name] = tensor
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
