"""Generators of the authors' PyTorch port, read from the files that it saves (latest_net_G.pth).

junyanz/pytorch-CycleGAN-and-pix2pix saves a state dict. Its U-Net nests each level in the next
outer one, so that a name says where its layer lies: model.model.0 is the outermost convolution,
model.model.1.model.3.model.1 that of the encoder's third level.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from generator import Generator
from recipes import resolve

EXPECTED = (
    "expected generator.pt or latest.pt of a run here, or the state dict of the authors' U-Net "
    "alone (latest_net_G.pth of a run with --netG unet_128 or unet_256)"
)


def import_generator(content: Any, name: str) -> tuple[Generator, Config]:
    """Build the generator that a file of the authors' code holds.

    Args:
        content: What torch read from the file.
        name: Name of the run, for its settings.

    Returns:
        The generator with the file's weights, its dropout where the authors have it; and its
        settings, those that a file cannot say as in the paper.

    Raises:
        ValueError: It holds something else, which the message names.
    """
    if (other := _other_than_unet(content)) is not None:
        raise ValueError(f"this is {other}; {EXPECTED}.")
    state = _without_wrapper(content)
    depth = max(key.split(".").count("model") for key in state) - 1
    weights = _rename(state, depth)
    config = _settings(weights, depth, name)
    generator = Generator(
        config.input_nc,
        config.output_nc,
        crop_size=config.crop_size,
        ngf=config.ngf,
        norm=config.norm,
        dropout="none",
    )
    _load(generator, weights, config.norm)
    # The authors have it in the blocks of full width after the innermost one; the paper and our
    # Generator in the first three.
    for block in list(generator.decoder)[1 : depth - 4]:
        block[3] = nn.Dropout(0.5)
    return generator, config


def _other_than_unet(content: Any) -> str | None:
    """Say what ``content`` is, or None if it looks like a state dict of the authors' U-Net."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if {"state", "param_groups"} <= content.keys():
        return "the state of an optimiser"
    names = textwrap.shorten(", ".join(map(str, content)), 60, placeholder=" ...") or "nothing"
    if content and all(isinstance(part, dict) for part in content.values()):
        return f"a file of several networks or other parts ({names})"
    if not content or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        return f"a dict of {names}"
    state = _without_wrapper(content)
    outermost = [state.get(f"model.model.{layer}.weight") for layer in (0, 3)]
    if all(tensor is not None and tensor.ndim == 4 for tensor in outermost):
        return None
    if any(".conv_block." in key for key in state):
        return "a ResNet generator"
    if "net.0.weight" in state:
        return "a discriminator of single pixels"
    if "model.0.weight" in state:
        return "a discriminator (PatchGAN)"
    return f"a state dict of another network ({names})"


def _without_wrapper(state: dict[Any, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that torch's DataParallel puts before every name."""
    return {str(key).removeprefix("module."): tensor for key, tensor in state.items()}


def _layers(depth: int) -> Iterator[tuple[str, str]]:
    """Yield the authors' and our name of each convolution and of the norm after it, if any."""
    block = "model.model"
    for level in range(depth):
        down = min(level, 1)  # no activation comes before the first convolution
        up = 5 if 0 < level < depth - 1 else 3  # the first and the last encoder have no norm
        for ours, place in ((f"encoder.{level}", down), (f"decoder.{depth - 1 - level}", up)):
            yield f"{block}.{place}", f"{ours}.1"
            yield f"{block}.{place + 1}", f"{ours}.2"
        block += ".3.model" if level else ".1.model"


def _rename(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Give the weights our names, refusing a network with layers of its own."""
    ours = dict(_layers(depth))
    weights = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        if layer not in ours:
            raise ValueError(f"this is not quite the authors' U-Net, as it has {key}; {EXPECTED}.")
        weights[f"{ours[layer]}.{kind}"] = tensor
    return weights


def _settings(weights: dict[str, Tensor], depth: int, name: str) -> Config:
    """Read the architecture from names and shapes."""
    if "decoder.0.2.weight" in weights:
        norm = "batch"
    else:
        # The authors' instance norm has no weights, but leaves its convolutions their biases.
        norm = "instance" if "decoder.0.1.bias" in weights else "none"
    ngf, input_nc = weights["encoder.0.1.weight"].shape[:2]
    try:
        config = Config(
            recipe="paper",
            dataset="unknown",  # the default, towns, would be a claim
            name=name,
            crop_size=2**depth,
            load_size=2**depth,
            input_nc=input_nc,
            output_nc=weights[f"decoder.{depth - 1}.1.weight"].shape[1],
            ngf=ngf,
            norm=norm,
        )
    except ValueError as error:
        raise ValueError(f"this is the authors' U-Net, but cannot be used here: {error}") from error
    return resolve(config)[0]


def _load(generator: Generator, weights: dict[str, Tensor], norm: str) -> None:
    """Load weights under our names, filling in what the authors' layers do without."""
    expected = generator.state_dict()
    if norm == "instance":
        # A norm cancels the bias before it. Running statistics, in old files, were never used.
        weights = {key: tensor for key, tensor in weights.items() if key in expected}
        weights = _neutral(expected, ".2.") | weights
    elif norm == "none":
        weights = _neutral(expected, ".1.bias") | weights
    elif "decoder.0.2.running_mean" not in weights:
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = None
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        detail = textwrap.shorten(str(error).partition("\n")[2], 200, placeholder=" ...")
        raise ValueError(
            f"this has the names of the authors' U-Net, but not its layers ({detail}); {EXPECTED}."
        ) from error


def _neutral(expected: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return scale 1, shift 0 or bias 0 for the entries with ``part`` in their names."""
    return {
        key: torch.full_like(tensor, key.endswith("weight"))
        for key, tensor in expected.items()
        if part in key
    }
