"""A trained generator that teaches a narrower one (distillation): ``--teacher CHECKPOINT``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from generator import Generator
from labels import SCORE_SCALE
from losses import Losses, class_loss
from pictures.pairs import ROLES
from pictures.sides import Sides
from recipes import is_path
from utils import Facts, Translator, translator_from


class Teacher(nn.Module):
    """Shows another generator, its student, what to paint, and which inner maps lead to it.

    For the same input the student learns to give the teacher's output. Its decoder's maps learn to
    hold what the teacher's hold: a 1x1 convolution must be able to compute the teacher's maps from
    them (arXiv 2003.08936, section 3.1). These convolutions learn with the student and are not
    needed afterwards.

    Args:
        translator: The teacher.
        student: As deep as the teacher, for pictures of the same kind, and of any width.
        config: The student's resolved settings.
        sides: What the student's pictures are.

    Raises:
        ValueError: The two differ in more than their widths.
    """

    def __init__(
        self, translator: Translator, student: Generator, config: Config, sides: Sides
    ) -> None:
        super().__init__()
        _check_same_task(translator.facts, config, sides)
        self.facts, self.generator = translator.facts, translator.generator
        self.wanted, self.found = _watched(self.generator), _watched(student)
        self.adapters = nn.ModuleList(
            nn.Conv2d(ours[1].out_channels, theirs[1].out_channels, kernel_size=1)
            for ours, theirs in zip(student.decoder, self.generator.decoder[:-1], strict=False)
        )

    def forward(self, x: Tensor, output: Tensor) -> Losses:
        """Return how far the student is from its teacher, for what it has just translated.

        Args:
            x: Inputs as networks see them, (N, channels, H, W).
            output: What the student made of them: pictures, or scores of the classes.
        """
        with torch.no_grad():
            wanted = self.generator(x)
        if self.facts.config.is_label("target"):
            taught = class_loss(output, (SCORE_SCALE * wanted).softmax(dim=1))
        else:
            taught = F.l1_loss(output, wanted)
        maps = [
            F.mse_loss(adapt(self.found[level]).float(), self.wanted[level].float())
            for level, adapt in enumerate(self.adapters)
        ]
        return {"loss_taught": taught, "loss_maps": sum(maps) / len(maps)}

    def get_extra_state(self) -> dict[str, Any]:
        """Return what ``saved_teacher`` needs beside the weights."""
        return self.facts.as_saved()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take nothing over: what the teacher is does not change."""


def saved_teacher(saved: dict[str, Any]) -> Translator:
    """Return the teacher in a checkpoint of its student, whose own file may be gone by now."""
    weights = {
        name.removeprefix("generator."): tensor
        for name, tensor in saved.items()
        if name.startswith("generator.")
    }
    return translator_from(Facts.from_saved(saved["_extra_state"]), weights)


def _watched(generator: Generator) -> dict[int, Tensor]:
    """Return what will always hold the maps of the last translation, by level of the decoder."""
    maps: dict[int, Tensor] = {}

    def keep(level: int, found: Tensor) -> None:
        maps[level] = found

    for level, block in enumerate(generator.decoder[:-1]):
        block.register_forward_hook(lambda _, __, found, level=level: keep(level, found))
    return maps


def _check_same_task(teacher: Facts, config: Config, sides: Sides) -> None:
    theirs = teacher.config
    # Between folders of any names the direction is always called AtoB; authors' files have none.
    named = is_path(config.a) or is_path(theirs.a) or theirs.dataset == "unknown"
    same = {
        "depth (crop_size, bottleneck)": (
            config.crop_size // config.bottleneck == theirs.crop_size // theirs.bottleneck
        ),
        "direction": named or config.direction == theirs.direction,
        "labels": config.labels == theirs.labels,
    }
    for role, our, their in zip(ROLES, sides, teacher.sides, strict=True):
        same[f"kind of {role}s"] = our.kind == their.kind
        same[f"range of {role}s"] = (our.low, our.high) == (their.low, their.high)
        if config.is_label(role):
            same[f"classes of {role}s"] = our.palette == their.palette
    if differing := [what for what, is_same in same.items() if not is_same]:
        raise ValueError(
            f"{config.teacher} cannot teach this run: it has another {' and '.join(differing)}. "
            "Give the teacher's own settings, above all --direction and --dataset, and another "
            "--ngf."
        )
