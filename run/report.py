"""What a run shows people: the bar, the table, sample grids, curves, the page, TensorBoard."""

import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from config import Config
from dataset import derived_seed, normalise, to_image
from machine.devices import Machine
from machine.disk import whole_file
from machine.processes import by_first
from machine.progress import progress
from machine.stopping import StopRequest
from pictures.sheet import beside, contact_sheet
from run.checkpoints import finite
from run.sources import Data
from scoring.scores import measures_of, score_all
from utils import testing
from web.results import FIRST_COLUMNS, SCORES, Shown, panels_of, write_page

Sample = tuple[Tensor, Tensor, Tensor]  # input, output, target: (C, H, W) in [-1, 1]


class Report:
    """The progress bar, and the files in ``evaluation/NAME`` that a run adds to.

    A context, which closes the bar. Where processes share the run, all validate and the first
    alone shows and writes.

    Args:
        config: Resolved settings.
        data: The pairs; those for validation are scored and shown.
        machine: Where and how to compute.
        state: The run as it begins or goes on; rows of later epochs are dropped.

    Raises:
        ValueError: The table is not one that a run has written.
    """

    def __init__(self, config: Config, data: Data, machine: Machine, state: Any) -> None:
        self.config, self.data, self.machine = config, data, machine
        self.processes = machine.processes
        self.folder = Path("evaluation", config.name)
        self.n_epochs = config.n_epochs + config.n_epochs_decay
        self.table = self.folder / "metrics.csv"
        self.rows = [row for row in _read_table(self.table) if int(row["epoch"]) <= state.epoch]
        self._begin(state)
        self.bar = progress(
            initial=(state.epoch * data.steps_per_epoch + state.step) * config.batch_size,
            total=self.n_epochs * data.steps_per_epoch * config.batch_size,
            unit="picture",
            disable=not self.processes.is_first,
        )
        self.started_at = time.monotonic() - state.seconds
        self.first_step, self.began = state.step, time.monotonic()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self._end()

    @by_first
    def _begin(self, state: Any) -> None:
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=state.epoch + 1)
        text = json.dumps(asdict(self.config), indent=2) + "\n"
        (self.folder / "config.json").write_text(text, encoding="utf-8")

    @by_first
    def _end(self) -> None:
        self.board.close()

    # --- While an epoch lasts ---
    def add_step(self, state: Any, losses: dict[str, Tensor]) -> None:
        """Move the bar; at the log interval, read the losses, which waits for the device.

        Raises:
            DivergedError: A loss is not finite.
        """
        state.seconds = time.monotonic() - self.started_at
        self.bar.set_description(f"epoch {state.epoch + 1}/{self.n_epochs}", refresh=False)
        self.bar.update(self.config.batch_size)
        if state.step % self.config.log_interval == 0:
            self.bar.set_postfix(finite(losses, self.config, state.epoch), refresh=False)

    # --- After an epoch ---
    def add_epoch(self, state: Any, stop: StopRequest) -> None:
        """Validate, log and draw what is due after the epoch whose steps are all done.

        Raises:
            DivergedError: A mean of the losses, or a score, is not finite.
            OSError: The table cannot be written.
            Interrupted: A stop was requested.
        """
        epoch, n_steps = state.epoch + 1, self.data.steps_per_epoch
        pictures = (state.step - self.first_step) * self.config.batch_size
        speed = pictures / (time.monotonic() - self.began) if pictures else math.nan
        lr = state.optimizer_g.param_groups[0]["lr"]
        first = (epoch, epoch * n_steps, state.seconds, speed, lr)
        values = dict(zip(FIRST_COLUMNS, first, strict=True))
        means = {name: total / n_steps for name, total in state.totals.items()}
        values |= finite(means, self.config, state.epoch)
        if self._is_due(self.config.val_interval, epoch):
            values |= self._validate(state, stop)
            finite({"val_l1": values["val_l1"]}, self.config, state.epoch)
        self._write(state, values)
        self.first_step, self.began = 0, time.monotonic()

    @by_first
    def _write(self, state: Any, values: dict[str, float]) -> None:
        epoch = state.epoch + 1
        self._add_row(values)
        if self._is_due(self.config.picture_interval, epoch):
            self.add_samples(self._samples(state), epoch)
        write_page([Shown(self.folder)])
        shown = [f"{n} {v:.4g}" for n, v in values.items() if n == "l1" or n.startswith("val_")]
        tqdm.write(f"epoch {epoch}/{self.n_epochs}: {', '.join(shown)}")

    def _is_due(self, interval: int, epoch: int) -> bool:
        return epoch % interval == 0 or epoch in (1, self.n_epochs)

    def _validate(self, state: Any, stop: StopRequest) -> dict[str, float]:
        """Return the scores on all validation pairs."""
        measures = measures_of(self.data.sides.target)
        options = {"sides": self.data.sides, "machine": self.machine}
        with testing(state.shown, self.config.seed):
            _, scores = score_all(state.shown, self._val_batches(stop), measures, **options)
        return {f"val_{name}": scores[name] for name in SCORES if name in scores}

    def _val_batches(self, stop: StopRequest) -> Iterator[Tensor]:
        """Yield this process's share of the validation pairs."""
        for index in self.processes.share_of(range(len(self.data.val))):
            stop.check()
            # The noise of a picture (dropout at test) is its own, whoever translates it.
            torch.manual_seed(derived_seed(self.config.seed, index))
            yield self.data.val[0, index][None]

    def _samples(self, state: Any) -> list[Sample]:
        """Translate a few validation pairs, the same ones every time."""
        n_samples = min(self.config.n_samples, len(self.data.val))
        samples: list[Sample] = []
        with testing(state.shown, self.config.seed), self.machine.autocast:
            for place in range(n_samples):
                index = place * len(self.data.val) // n_samples
                batch = self.data.val[0, index][None].to(self.machine.device)
                x, y = normalise(batch, self.data.sides)
                samples.append((x[0], state.shown(x)[0], y[0]))
        return samples

    def _add_row(self, values: dict[str, float]) -> None:
        """Append one epoch's values to every record; a column that is not named stays empty."""
        self.rows.append({name: f"{value:.7g}" for name, value in values.items()})
        columns = dict.fromkeys(name for row in self.rows for name in row)
        columns = sorted(columns, key=lambda name: name.startswith("val_"))
        try:
            with whole_file(self.table) as draft, open(draft, "w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(self.rows)
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
        """Draw the grid ``epoch_001.png``; and inputs, outputs and targets each in a row."""
        sample_grid(samples, f"epoch {epoch}").save(self.folder / f"epoch_{epoch:03d}.png")
        names = ("input", f"output_{epoch:03d}", "target")
        for name, pictures in zip(names, zip(*samples, strict=True), strict=True):
            row = beside([to_image(picture) for picture in pictures])
            row.save(self.folder / f"{name}.png")

    def _draw_curves(self) -> None:
        panels = panels_of(name for row in self.rows for name in row)
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            for name in names:
                points = [(int(r["epoch"]), float(r[name])) for r in self.rows if r.get(name)]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name, marker=".")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        figure.savefig(self.folder / "curves.png", dpi=110)


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of an earlier part of the run, if there was one."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(not (row.get("epoch") or "").isdigit() for row in rows):
        raise ValueError(
            f"{path} is not the table that a run writes (did another program save it?); move it "
            "elsewhere, and the same command starts a new one."
        )
    return rows


def sample_grid(samples: list[Sample], title: str) -> Image.Image:
    """Draw samples as rows of input, output and target; the output's heading holds ``title``."""
    titles = (
        name + _shown(len(picture))
        for name, picture in zip(("input", f"output, {title}", "target"), samples[0], strict=True)
    )
    columns = ([to_image(picture) for picture in column] for column in zip(*samples, strict=True))
    return contact_sheet(list(zip(titles, columns, strict=True)))


def _shown(channels: int) -> str:
    """Say which channels of a picture are seen, where that is not all."""
    if channels in (1, 3):
        return ""
    return f" (channel{'s 1 to 3' if channels > 3 else ' 1'} of {channels})"
