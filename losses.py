"""Losses from after the paper, which the recipe "better" adds to those in train.py."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scores import nearest_class


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


def class_loss(scores: Tensor, y: Tensor, palette: Tensor) -> Tensor:
    """Return the cross-entropy of the classes' scores to the classes that a label picture shows.

    In place of L1, which asks for a colour between two where either may be right, and so for a
    class that is neither.

    Args:
        scores: (N, K, H, W), before the softmax.
        y: Label pictures, (N, 3, H, W) in [-1, 1]; each pixel is of the class of nearest colour.
        palette: (K, 3) in [-1, 1].
    """
    return F.cross_entropy(scores.float(), nearest_class(y, palette))
