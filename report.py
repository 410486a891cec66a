"""What a run shows people: sample grids, the metric table, curves, TensorBoard."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dataset import denormalise
from pictures.decode import image_of

COLUMNS = (
    *("epoch", "step", "seconds", "pictures_per_second", "lr"),
    *("loss_d", "d_real", "d_fake", "loss_g_gan", "l1"),
    *("val_l1", "val_psnr", "val_ssim", "val_sharpness", "val_accuracy", "val_miou"),
)
Sample = tuple[Tensor, Tensor, Tensor]  # input, output, target: (C, H, W) in [-1, 1]


class Report:
    """The files in ``evaluation/NAME`` that a run adds to after each epoch.

    Args:
        folder: ``evaluation/NAME``, an existing folder.
        epochs_done: Rows of later epochs are dropped: the run goes on before them.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self.folder = folder
        self.table = folder / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        if self.table.exists():
            with open(self.table, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if rows and set(COLUMNS) - rows[0].keys():
                raise ValueError(
                    f"{self.table} is not the table that a run writes (did another program save "
                    "it?); move it elsewhere, and the same command starts a new one."
                )
            self.rows = [row for row in rows if int(row["epoch"]) <= epochs_done]
        self.board = SummaryWriter(folder / "tensorboard", purge_step=epochs_done + 1)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings of the run beside its pictures, as ``config.json``."""
        text = json.dumps(settings, indent=2) + "\n"
        (self.folder / "config.json").write_text(text, encoding="utf-8")

    def add_metrics(self, values: dict[str, float]) -> None:
        """Append one epoch's values to every record; a column that is not named stays empty."""
        shown = {name: f"{values[name]:.7g}" if name in values else "" for name in COLUMNS}
        self.rows.append(shown)
        temporary = self.table.with_suffix(".tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        try:
            os.replace(temporary, self.table)
        except PermissionError as error:
            raise PermissionError(
                f"{self.table} cannot be replaced ({error.strerror}); close it in other programs, "
                "and give the same command to go on."
            ) from error
        for name, value in values.items():
            self.board.add_scalar(name, value, int(values["epoch"]))
        self.board.flush()
        self._draw_curves()

    def add_samples(self, samples: list[Sample], epoch: int) -> None:
        """Draw the grid ``epoch_001.png``, and the pictures of the first sample singly."""
        sample_grid(samples, f"epoch {epoch}").save(self.folder / f"epoch_{epoch:03d}.png")
        names = ("input", f"output_{epoch:03d}", "target")
        for name, picture in zip(names, samples[0], strict=True):
            to_image(picture).save(self.folder / f"{name}.png")

    def _draw_curves(self) -> None:
        panels = (
            ("Losses", ("loss_d", "loss_g_gan")),
            ("Discriminator: mean probability of real", ("d_real", "d_fake")),
            ("L1, training and validation", ("l1", "val_l1")),
            ("Validation", ("val_ssim", "val_sharpness", "val_accuracy", "val_miou")),
        )
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for name in names:
                points = [(int(r["epoch"]), float(r[name])) for r in self.rows if r[name]]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name, marker=".")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        figure.savefig(self.folder / "curves.png", dpi=110)


def to_image(picture: Tensor) -> Image.Image:
    """Turn one picture, (1 or 3, H, W) in [-1, 1], into an 8-bit image."""
    return image_of(denormalise(picture, np.dtype(np.uint8)))


def sample_grid(samples: list[Sample], title: str) -> Image.Image:
    """Draw samples as rows of input, output and target; the output's heading holds ``title``."""
    gap, head = 6, 26
    height, width = samples[0][0].shape[1:]
    labels = ("input", f"output, {title}", "target")
    size = (len(labels) * (width + gap) + gap, head + len(samples) * (height + gap))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(13)
    for column, label in enumerate(labels):
        draw.text((gap + column * (width + gap), 5), label, "black", font)
    for row, pictures in enumerate(samples):
        for column, picture in enumerate(pictures):
            corner = (gap + column * (width + gap), head + row * (height + gap))
            grid.paste(to_image(picture).convert("RGB"), corner)
    return grid
