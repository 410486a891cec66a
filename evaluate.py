"""Scores of a generator on pairs it was not trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.functional.segmentation import mean_iou

from dataset import normalise

Palette = dict[str, tuple[int, int, int]]


def evaluate(
    generator: nn.Module,
    batches: Iterable[Tensor],
    *,
    input_nc: int,
    device: torch.device,
    autocast: torch.autocast,
    palette: Palette | None = None,
) -> dict[str, float]:
    """Score a generator that is already configured for test.

    Args:
        generator: Takes (1, input_nc, H, W) in [-1, 1].
        batches: Pairs one at a time, integers (1, input_nc + output_nc, H, W), not augmented.
        input_nc: Channels of the input.
        device: Where the generator is.
        autocast: The precision to compute in.
        palette: Colours of the classes, where the targets are label pictures.

    Returns:
        Means over the pictures: ``l1`` on [-1, 1]; ``psnr`` in dB and ``ssim`` on [0, 1];
        ``sharpness``, the gradient energy of the outputs over that of the targets (1 is as sharp
        as real, below is blurred); and with a palette ``accuracy``, the share of the pixels
        whose nearest colour is the target's, and ``miou``, the mean over the classes that stand
        in the output or the target.
    """
    scores: list[dict[str, float]] = []
    for batch in batches:
        x, y = normalise(batch.to(device), input_nc)
        with torch.inference_mode(), autocast:
            fake = generator(x)
        scores.append(score_picture(fake.float(), y, palette))
    means = {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]}
    means["sharpness"] = means.pop("energy") / means.pop("target_energy")
    return means


def score_picture(fake: Tensor, y: Tensor, palette: Palette | None) -> dict[str, float]:
    """Score one output ``fake`` against its target ``y``, both (1, C, H, W) in [-1, 1]."""
    unit_fake, unit_y = (fake + 1) / 2, (y + 1) / 2
    scores = {
        "l1": (fake - y).abs().mean(),
        "psnr": peak_signal_noise_ratio(unit_fake, unit_y, data_range=1.0),
        "ssim": structural_similarity_index_measure(unit_fake, unit_y, data_range=1.0),
        "energy": gradient_energy(fake),
        "target_energy": gradient_energy(y),
    }
    if palette is not None:
        found, true = nearest_class(fake, palette), nearest_class(y, palette)
        scores["accuracy"] = (found == true).float().mean()
        scores["miou"] = mean_iou(found, true, num_classes=len(palette), input_format="index")[0]
    return {name: float(value) for name, value in scores.items()}


def gradient_energy(picture: Tensor) -> Tensor:
    """Return the mean square of the differences between neighbouring pixels."""
    rows, columns = picture.diff(dim=-2), picture.diff(dim=-1)
    return rows.square().mean() + columns.square().mean()


def nearest_class(picture: Tensor, palette: Palette) -> Tensor:
    """Return for each pixel of (N, 3, H, W) in [-1, 1] the index of the nearest colour, (N, H, W).

    The distance is Euclidean in RGB.
    """
    colours = torch.tensor(list(palette.values()), device=picture.device) / 127.5 - 1
    return torch.cdist(picture.movedim(1, -1), colours).argmin(dim=-1)
