"""How near outputs come to their targets: the scores that a training and ``evaluate.py`` share.

torchmetrics takes seconds to import, so only what uses it does.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import normalise
from labels import is_ignored, nearest_class
from machine.devices import Machine
from machine.processes import Processes
from pictures.palettes import Palette, merged_classes
from pictures.sides import Side, Sides
from scoring.tables import over_targets

Scores = dict[str, float]
GRID_PERIODS = (2, 4, 8)  # pixels


# --- One picture ---
def score_picture(fake: Tensor, y: Tensor) -> Scores:
    """Score one output ``fake`` against its target ``y``, both (1, C, H, W) in [-1, 1].

    Returns:
        ``l1`` on [-1, 1]; ``psnr`` in dB and ``ssim`` on [0, 1]; and of both the gradient energy
        as ``sharpness`` and the energy of a grid as ``grid_2``, ``grid_4`` and ``grid_8``, those
        of ``y`` with ``target_`` before the name.
    """
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    unit_fake, unit_y = (fake + 1) / 2, (y + 1) / 2
    scores = {
        "l1": (fake - y).abs().mean(),
        "psnr": peak_signal_noise_ratio(unit_fake, unit_y, data_range=1.0),
        "ssim": structural_similarity_index_measure(unit_fake, unit_y, data_range=1.0),
    }
    for picture, prefix in ((fake, ""), (y, "target_")):
        scores[f"{prefix}sharpness"] = gradient_energy(picture)
        for period in GRID_PERIODS:
            scores[f"{prefix}grid_{period}"] = grid_energy(picture, period)
    return {name: value.item() for name, value in scores.items()}


def score_labelled(fake: Tensor, y: Tensor) -> Scores:
    """Score an output by the pixels of its target that are of a class, as ``score_picture`` does.

    Both are (1, 3, H, W) in [-1, 1]. All scores are NaN where no pixel is of a class.
    """
    ignored = is_ignored(y)
    scores = score_picture(fake, y.where(~ignored, fake))
    share = 1 - ignored.double().mean().item()
    if share == 0:
        return dict.fromkeys(scores, math.nan)
    if share < 1:  # the others were without error
        scores["l1"] /= share
        scores["psnr"] += 10 * math.log10(share)
    return scores


def gradient_energy(picture: Tensor) -> Tensor:
    """Return the mean square of the differences between neighbouring pixels."""
    rows, columns = picture.diff(dim=-2), picture.diff(dim=-1)
    return rows.square().mean() + columns.square().mean()


def grid_energy(picture: Tensor, period: int) -> Tensor:
    """Return the mean spectral energy of what repeats every ``period`` pixels, both ways or one.

    A network that paints in steps of a power of two leaves such a grid. Pictures: (N, C, H, W).
    """
    height, width = picture.shape[-2:]
    # The window keeps the picture's borders, which are no grid, out of the spectrum.
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    still = picture - picture.mean(dim=(-2, -1), keepdim=True)
    energy = torch.fft.rfft2(still * window.to(picture.device)).abs().square()
    y = torch.fft.fftfreq(height, 1 / height).abs()[:, None]  # periods in the picture
    x = torch.fft.rfftfreq(width, 1 / width)
    # Content that changes slowly over the picture spreads each line to its neighbours.
    repeats_y, repeats_x = ((y - height / period).abs() <= 1, (x - width / period).abs() <= 1)
    grid = repeats_y & (repeats_x | (x <= 1)) | repeats_x & (y <= 1)
    return energy[..., grid.to(picture.device)].mean()


def count_classes(fake: Tensor, y: Tensor, palette: Palette) -> Tensor:
    """Return how many pixels of each true class (rows) were found to be each class (columns).

    Output and target are (1, 3, H, W) in [-1, 1]; a pixel is of the class of nearest colour. Those
    that the target ignores do not count.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    colours = torch.tensor(list(palette.values()), device=y.device) / 127.5 - 1
    counted = ~is_ignored(y)[:, 0]
    found, true = (nearest_class(picture, colours)[counted] for picture in (fake, y))
    return multiclass_confusion_matrix(found, true, num_classes=len(palette)).cpu()


def class_scores(counts: Tensor, palette: Palette) -> Scores:
    """Score the pixels that ``count_classes`` counted, in one picture or summed over many.

    Returns:
        ``accuracy``, the share of the pixels that agree; ``class_accuracy``, its mean over the
        true classes; ``miou``, the mean intersection over union of the classes that are either
        true or found; and ``merged_accuracy`` for palettes with two classes that are hardly
        apart, with those taken as one. Over many pictures these are the paper's (section 4.1,
        after FCN): classes weigh alike, however few pictures show them.
    """
    counts = counts.double()
    right, true, found = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    union = true + found - right
    scores = {
        "accuracy": right.sum() / counts.sum(),
        "class_accuracy": (right / true)[true > 0].mean(),
        "miou": (right / union)[union > 0].mean(),
    }
    if merged := merged_classes(palette):
        one, other = (list(palette).index(name) for name in merged)
        confused = counts[one, other] + counts[other, one]
        scores["merged_accuracy"] = (right.sum() + confused) / counts.sum()
    return {name: value.item() for name, value in scores.items()}


# --- All pictures ---
class Measure:
    """Something that is measured on each picture, or on all of them."""

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Measure one picture: the input, the output and the target, (1, C, H, W) in [-1, 1]."""
        return {}

    def take_in(self, other: "Measure") -> None:
        """Add the pictures that the same measure of another process has seen."""
        raise NotImplementedError

    def total(self) -> dict[str, Any]:
        """Return what holds for all pictures, where that is not the mean of their scores."""
        return {}


class Classes(Measure):
    """The ``class_scores`` of label pictures in the colours of a palette."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        self.counts = torch.zeros(len(palette), len(palette), dtype=torch.long)

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Score the pixels of one picture."""
        counts = count_classes(fake, y, self.palette)
        self.counts += counts
        return class_scores(counts, self.palette)

    def take_in(self, other: "Classes") -> None:
        """Add the pixels that another has counted."""
        self.counts += other.counts

    def total(self) -> dict[str, Any]:
        """Score the pixels of all pictures, and the answer that is always the commonest class."""
        true = self.counts.sum(dim=1)
        answer = torch.zeros_like(self.counts)
        answer[:, true.argmax()] = true
        commonest = {"class": list(self.palette)[true.argmax()]}
        majority = commonest | class_scores(answer, self.palette)
        return class_scores(self.counts, self.palette) | {"majority": majority}


class Units(Measure):
    """Errors in the units of the targets, where those are more than shades: ``mae``, ``rmse``."""

    def __init__(self, side: Side) -> None:
        self.side, self.squares = side, []

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Measure one picture."""
        error = (fake - y).cpu().double() * self.side.half_range  # MPS has no doubles
        self.squares.append(error.square().mean().item())
        return {"mae": error.abs().mean().item(), "rmse": self.squares[-1] ** 0.5}

    def take_in(self, other: "Units") -> None:
        """Add the pictures that another has measured."""
        self.squares += other.squares

    def total(self) -> Scores:
        """Return the root mean square over the pixels of all pictures."""
        return {"rmse": (sum(self.squares) / len(self.squares)) ** 0.5}


def measures_of(side: Side) -> list[Measure]:
    """Return what there is to measure in targets of a kind beside ``score_picture``."""
    measures: list[Measure] = [] if side.is_plain else [Units(side)]
    return [*measures, Classes(side.palette)] if side.palette else measures


class FixedMarks(Measure):
    """The marks that stand at the same place in every picture.

    With h a picture less its local mean (17x17), e the mean energy of h over N pictures and m
    the energy of the mean h: (m - e/N) / (e (1 - 1/N)). 0 means that the pictures share nothing,
    as real ones do; 1 that they are all alike; NaN that there are fewer than two, or flat ones.
    """

    def __init__(self) -> None:
        self.count, self.energy, self.details = 0, torch.zeros(2), torch.zeros(())

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Add one output and its target."""
        both = torch.cat([fake, y])
        around = F.avg_pool2d(F.pad(both, (8, 8, 8, 8), mode="reflect"), 17, stride=1)
        details = (both - around).cpu().double()
        self.count += 1
        self.energy = self.energy + details.square().mean(dim=(1, 2, 3))
        self.details = self.details + details
        return {}

    def total(self) -> Scores:
        """Return the measure of the outputs, and of the targets."""
        n, e = self.count, self.energy / self.count
        m = (self.details / n).square().mean(dim=(1, 2, 3))
        marks = (m - e / n) / (e * (1 - 1 / n))
        return dict(zip(("fixed_marks", "fixed_marks_of_targets"), marks.tolist(), strict=True))


@torch.inference_mode()
def score_all(
    translator: nn.Module,
    batches: Iterable[Tensor],
    measures: Sequence[Measure],
    *,
    sides: Sides,
    machine: Machine,
) -> tuple[list[Scores], dict[str, Any]]:
    """Translate pairs and measure the outputs.

    Args:
        translator: Configured for test; takes (1, channels, H, W) in [-1, 1].
        batches: Pairs one at a time, (1, channels of both, H, W), not augmented; where processes
            share the work, this one's share of them.
        measures: What to measure beside the scores of ``score_picture``.
        sides: What the numbers of the pairs are.
        machine: Where the translator is, and its precision.

    Returns:
        The scores of each picture, and of all: the means, and what the measures say.
    """
    rows: list[Scores] = []
    with machine.processes.barrier():
        for batch in batches:
            x, y = normalise(batch.to(machine.device), sides)
            with machine.autocast:
                fake = translator(x)
            rows.append(score_labelled(fake, y) if sides.target.palette else score_picture(fake, y))
            for measure in measures:
                rows[-1] |= measure(x, fake, y)
    rows = _gathered(rows, measures, machine.processes)
    # A picture without a single labelled pixel has no scores of classes.
    means = {name: np.nanmean([row[name] for row in rows]).item() for name in rows[0]}
    scores: dict[str, Any] = {name: float(v) for name, v in over_targets(means).items()}
    for measure in measures:
        scores |= measure.total()
    return rows, scores


def _gathered(
    rows: list[Scores], measures: Sequence[Measure], processes: Processes
) -> list[Scores]:
    """Return the rows of all processes, and let the measures take in the others' pictures."""
    parts = processes.gather((rows, measures))
    for rank, (_, theirs) in enumerate(parts):
        for measure, other in zip(measures, theirs, strict=True):
            if rank != processes.rank:
                measure.take_in(other)
    return [row for part, _ in parts for row in part]
