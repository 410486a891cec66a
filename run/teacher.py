"""A trained generator that teaches a narrower one (distillation): ``--teacher CHECKPOINT``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator import Generator
from losses import class_loss
from utils import load_generator


class Teacher(nn.Module):
    """Shows another generator, its student, what to paint and what to see on the way to it.

    For the same input the student is to give the teacher's output, and the maps in its decoder
    are to hold what the teacher's hold: a 1x1 convolution, which learns with the student and is
    needed no more afterwards, must find the teacher's maps in them (arXiv 2003.08936, section 3.1).

    Args:
        path: Any file that ``load_generator`` reads.
        student: As deep as the teacher, for pictures of the same kind, and of any width.

    Raises:
        ValueError: The two differ in more than their widths.
        OSError: The file cannot be read.
    """

    def __init__(self, path: str, student: Generator) -> None:
        super().__init__()
        self.generator = load_generator(path, device="cpu")
        _check_same_task(path, self.generator, student)
        # It tells classes by their probabilities, as while it learned; its layers are as at test.
        self.generator.training = True
        self.wanted, self.found = _watched(self.generator), _watched(student)
        self.translators = nn.ModuleList(
            nn.Conv2d(ours[1].out_channels, theirs[1].out_channels, kernel_size=1)
            for ours, theirs in zip(student.decoder, self.generator.decoder[:-1], strict=False)
        )

    def forward(self, x: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Return how far the student is from its teacher, for what it has just translated.

        Args:
            x: Inputs, (N, input_nc, H, W) in [-1, 1].
            fake: What the student made of them, as it gives it while it learns.
        """
        with torch.no_grad():
            output = self.generator(x)
        distance = F.l1_loss if self.generator.palette is None else class_loss
        maps = [
            F.mse_loss(translate(self.found[level]).float(), self.wanted[level].float())
            for level, translate in enumerate(self.translators)
        ]
        return {"loss_taught": distance(fake, output), "loss_maps": sum(maps) / len(maps)}


def _watched(generator: Generator) -> dict[int, Tensor]:
    """Return what will always hold the maps of the last translation, by level of the decoder."""
    maps: dict[int, Tensor] = {}

    def keep(level: int, found: Tensor) -> None:
        maps[level] = found

    for level, block in enumerate(generator.decoder[:-1]):
        block.register_forward_hook(lambda _, __, found, level=level: keep(level, found))
    return maps


def _check_same_task(path: str, teacher: Generator, student: Generator) -> None:
    def task(generator: Generator) -> tuple[object, ...]:
        palette = generator.palette
        outer = (generator.encoder[0][1].in_channels, generator.decoder[-1][1].out_channels)
        return len(generator.encoder), outer, palette is not None and palette.tolist()

    if task(teacher) != task(student):
        raise ValueError(
            f"{path} cannot teach this run: it must have the same depth (crop_size, bottleneck), "
            "channels and classes. Give the teacher's own settings, above all --direction and "
            "--dataset, and another --ngf."
        )
