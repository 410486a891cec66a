"""Every loss, as a pure function with its equation in the paper, or the paper it comes from.

To add a loss, compute it in ``target_losses`` or in train.py, and give it a weight in
``loss_weights``. It then appears in the bar, the table and the curves.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from labels import SCORE_SCALE

Losses = dict[str, Tensor]  # by name: scalars on the device


# --- The paper (section 3.1) ---
def adversarial_loss(logits: Tensor, is_real: bool, gan_mode: str) -> Tensor:
    """Return how far the discriminator's ``logits`` are from the verdict real, or fake.

    Args:
        logits: (N, 1, h, w).
        is_real: The verdict to compare with.
        gan_mode: "vanilla" is the cross-entropy of equation 1, "lsgan" the squared distance.
    """
    verdict = torch.full_like(logits, float(is_real))
    if gan_mode == "lsgan":
        return F.mse_loss(logits, verdict)
    return F.binary_cross_entropy_with_logits(logits, verdict)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, gan_mode: str) -> Tensor:
    """Return equation 1 as the discriminator minimises it, halved to slow it (section 3.3)."""
    real = adversarial_loss(real_logits, True, gan_mode)
    fake = adversarial_loss(fake_logits, False, gan_mode)
    return (real + fake) / 2


def probability_of_real(logits: Tensor, gan_mode: str) -> Tensor:
    """Return the mean probability of "real" that the discriminator's ``logits`` stand for.

    Those of lsgan aim at 1 for real and 0 for fake themselves.
    """
    return (logits if gan_mode == "lsgan" else logits.sigmoid()).mean()


def target_losses(output: Tensor, y: Tensor, config: Config) -> Losses:
    """Return what ties outputs to their targets: equation 3, or the cross-entropy of classes.

    Args:
        output: Of the generator: pictures, (N, C, H, W) in [-1, 1], or scores of the classes.
        y: Targets of the same shape: pictures, or the classes one-hot.
        config: Resolved settings.
    """
    if config.is_label("target"):
        return {"loss_classes": class_loss(output, y)}
    return {"l1": F.l1_loss(output, y)}


def loss_weights(config: Config) -> dict[str, float]:
    """Return the weights in what the generator minimises: equation 4, and what came later."""
    return {
        "loss_g_gan": 1.0,
        "l1": config.lambda_l1,
        "loss_features": config.lambda_features,
        "loss_classes": config.lambda_classes,
        "loss_perceptual": config.lambda_perceptual,
        "loss_g_projected": config.lambda_projected,
        # What a teacher gives is a second target, and weighs as the first.
        "loss_taught": config.lambda_classes if config.is_label("target") else config.lambda_l1,
        "loss_maps": 10.0,  # of the teacher's inner maps; chosen on towns
    }


# --- What came later ---
def feature_loss(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """Return how much the discriminator's inner maps of an output differ from those of the target.

    Feature matching as in pix2pixHD (arXiv 1711.11585, equation 3), with one discriminator. Inner
    maps tell textures and edges: an output that is shifted by a pixel still matches.

    Args:
        real_maps: From ``Discriminator.features`` of the target, but for the logits, which come
            last: (N, C, h, w) each, without gradients.
        fake_maps: Those of the output.
    """
    pairs = zip(real_maps, fake_maps, strict=True)
    return sum(F.l1_loss(fake.float(), real.float()) for real, fake in pairs)


def class_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the probabilities of the classes.

    It stands in the place of L1. Where either of two classes may be right, L1 asks for a colour
    between theirs, which is the colour of neither.

    Args:
        scores: Of the classes, (N, K, H, W), as a generator gives them.
        y: Probabilities to learn, likewise: one-hot for targets. A pixel whose
            K values are all 0 adds nothing.
    """
    return F.cross_entropy(SCORE_SCALE * scores, y)


def perceptual_loss(real_photo: Sequence[Tensor], fake_photo: Sequence[Tensor]) -> Tensor:
    """Return how much an output differs from its target as a network that knows photos sees them.

    The L1 distance of their maps over the mean size of the target's (after arXiv 1603.08155).

    Args:
        real_photo: The network's maps of the target, (N, C, h, w) each, without gradients.
        fake_photo: Those of the output.
    """
    distances = [
        F.l1_loss(fake.float(), real.float()) / real.float().abs().mean()
        for real, fake in zip(real_photo, fake_photo, strict=True)
    ]
    return sum(distances) / len(distances)


def projected_discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]
) -> Tensor:
    """Return the hinge loss that a projected discriminator minimises, the mean of its heads'.

    A logit above 1 for real, or below -1 for fake, gives no gradient.
    """
    losses = [
        F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        for real, fake in zip(real_logits, fake_logits, strict=True)
    ]
    return sum(losses) / len(losses)


def projected_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Return what the generator minimises against it: the more real an output seems, the lower."""
    return -sum(logits.mean() for logits in fake_logits) / len(fake_logits)
