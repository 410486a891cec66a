"""Losses from after the paper, which the recipe "modern" adds to those in train.py."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


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
