"""What a run shows people: the bar, the table, sample grids, curves, the page, TensorBoard.

The libraries that draw take a second to import, so only what uses them does.
"""

import csv
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from config import Config
from dataset import normalise, to_image, validation_batches
from machine.devices import Machine
from machine.disk import reason_of, whole_file
from machine.processes import rank_zero_only
from machine.progress import progress
from machine.stopping import StopRequest
from pictures.sheet import beside, contact_sheet
from run.checkpoints import finite
from run.sources import Data
from run.state import TrainingState
from scoring.scores import measures_of, score_all
from utils import Translator, testing
from web.results import FIRST_COLUMNS, SCORES, Shown, panels_of, write_results_page

N_SAMPLES = 6  # validation pairs in a grid of samples
Sample = tuple[Tensor, Tensor, Tensor]  # input, output, target: (C, H, W) in [-1, 1]


class Report:
    """The progress bar, and the files in ``evaluation/NAME`` that a run adds to.

    A context, which closes the bar. Where processes share the run, all validate and the first
    alone shows and writes. What cannot be written is a warning: it does not end the run.

    Args:
        config: Resolved settings.
        data: The pairs; those for validation are scored and shown.
        machine: Where and how to compute.
        state: The run as it begins or goes on; rows of later epochs are dropped.
        stop: Asked before each validation picture.

    Raises:
        ValueError: The table is not one that a run has written.
    """

    def __init__(
        self, config: Config, data: Data, machine: Machine, state: TrainingState, stop: StopRequest
    ) -> None:
        self.config, self.data, self.machine, self.stop = config, data, machine, stop
        self.processes = machine.processes
        self.folder = Path("evaluation", config.name)
        self.n_epochs = config.n_epochs + config.n_epochs_decay
        self.table = self.folder / "metrics.csv"
        self.rows = [row for row in _read_table(self.table) if int(row["epoch"]) <= state.epoch]
        self.facts = data.facts(config)
        self.board = None  # of TensorBoard, for the first process
        self._write_settings(state)
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
        if self.board is not None:
            with _warning(self.folder):
                self.board.close()

    @rank_zero_only
    def _write_settings(self, state: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with _warning(self.folder):
            self.board = SummaryWriter(self.folder / "tensorboard", purge_step=state.epoch + 1)
            text = json.dumps(asdict(self.config), indent=2) + "\n"
            (self.folder / "config.json").write_text(text, encoding="utf-8")

    # --- While an epoch lasts ---
    def add_step(self, state: TrainingState, losses: dict[str, Tensor]) -> None:
        """Add up the losses and move the bar; at the log interval read them, which waits.

        Raises:
            DivergedError: A loss is not finite.
        """
        self.processes.average(losses.values())
        for name, loss in losses.items():
            state.totals[name] = state.totals.get(name, 0) + loss
        state.seconds = time.monotonic() - self.started_at
        self.bar.set_description(f"epoch {state.epoch + 1}/{self.n_epochs}", refresh=False)
        self.bar.update(self.config.batch_size)
        if state.step % self.config.log_interval == 0:
            self.bar.set_postfix(finite(losses, self.config, state.epoch), refresh=False)

    # --- After an epoch ---
    def add_epoch(self, state: TrainingState) -> None:
        """Validate, log and draw what is due after the epoch whose steps are all done.

        Raises:
            DivergedError: A mean of the losses, or a score, is not finite.
            Interrupted: A stop was requested.
        """
        epoch, n_steps = state.epoch + 1, self.data.steps_per_epoch
        is_due = epoch % self.config.val_interval == 0 or epoch in (1, self.n_epochs)
        pictures = (state.step - self.first_step) * self.config.batch_size
        speed = pictures / (time.monotonic() - self.began) if pictures else math.nan
        lr = state.optimizer_g.param_groups[0]["lr"]
        first = (epoch, epoch * n_steps, state.seconds, speed, lr)
        values = dict(zip(FIRST_COLUMNS, first, strict=True))
        means = {name: total / n_steps for name, total in state.totals.items()}
        values |= finite(means, self.config, state.epoch)
        translator = Translator(state.best_generator, state.labels, self.facts)
        if is_due:
            values |= self._validate(translator)
            finite({"val_l1": values["val_l1"]}, self.config, state.epoch)
        self.rows.append({name: f"{value:.7g}" for name, value in values.items()})
        self._write(values, translator if is_due else None)
        self.first_step, self.began = 0, time.monotonic()

    def _validate(self, translator: Translator) -> dict[str, float]:
        """Return the scores on all validation pairs."""
        measures = measures_of(self.data.sides.target)
        own = self.processes.share_of(range(len(self.data.val)))
        with testing(translator, self.config.seed):
            batches = self.stop.watch(validation_batches(self.data.val, self.config.seed, own))
            given = {"sides": self.data.sides, "machine": self.machine}
            _, scores = score_all(translator, batches, measures, **given)
        return {f"val_{name}": scores[name] for name in SCORES if name in scores}

    @rank_zero_only
    def _write(self, values: dict[str, float], translator: Translator | None) -> None:
        """Write the table, the curves, the page and, where a translator is given, samples."""
        epoch = int(values["epoch"])
        with _warning(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_table()
            if self.board is not None:
                for name, value in values.items():
                    self.board.add_scalar(name, value, epoch)
                self.board.flush()
            draw_curves(self.rows, self.folder / "curves.png")
            if translator is not None:
                self.add_samples(self._samples(translator), epoch)
            write_results_page([Shown(self.folder)])
        shown = [f"{n} {v:.4g}" for n, v in values.items() if n == "l1" or n.startswith("val_")]
        with suppress(OSError):  # a log on a full disk is not worth a run
            tqdm.write(f"epoch {epoch}/{self.n_epochs}: {', '.join(shown)}")

    def _write_table(self) -> None:
        columns = dict.fromkeys(name for row in self.rows for name in row)
        columns = sorted(columns, key=lambda name: name.startswith("val_"))
        with whole_file(self.table) as draft, open(draft, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def _samples(self, translator: Translator) -> list[Sample]:
        """Translate a few validation pairs, the same ones every time."""
        n_samples = min(N_SAMPLES, len(self.data.val))
        chosen = [place * len(self.data.val) // n_samples for place in range(n_samples)]
        samples: list[Sample] = []
        with testing(translator, self.config.seed), self.machine.autocast:
            for batch in validation_batches(self.data.val, self.config.seed, chosen):
                x, y = normalise(batch.to(self.machine.device), self.data.sides)
                samples.append((x[0], translator(x)[0], y[0]))
        return samples

    def add_samples(self, samples: list[Sample], epoch: int) -> None:
        """Draw the grid ``epoch_001.png``; and inputs, outputs and targets each in a row."""
        sample_grid(samples, f"epoch {epoch}").save(self.folder / f"epoch_{epoch:03d}.png")
        names = ("input", f"output_{epoch:03d}", "target")
        for name, pictures in zip(names, zip(*samples, strict=True), strict=True):
            row = beside([to_image(picture) for picture in pictures])
            row.save(self.folder / f"{name}.png")


@contextmanager
def _warning(folder: Path) -> Iterator[None]:
    """Turn what keeps files in ``folder`` from being written into a warning."""
    try:
        yield
    except OSError as error:
        tqdm.write(
            f"Warning: {error.filename or folder} could not be written ({reason_of(error)}); "
            "the training goes on, and the next epoch tries again."
        )


def draw_curves(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Draw the columns of a table over its epochs, in panels of what belongs together."""
    from matplotlib.figure import Figure

    panels = panels_of(name for row in rows for name in row)
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            points = [(int(r["epoch"]), float(r[name])) for r in rows if r.get(name)]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of an earlier part of the run, if there was one.

    Raises:
        ValueError: It is not a table that a run has written.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        epochs = [int(row["epoch"]) for row in rows]
        if epochs != sorted({*epochs}) or (epochs and epochs[0] < 1):
            raise ValueError("its epochs do not follow each other")
        for row in rows:
            for value in row.values():
                float(value or "nan")
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the table that a run writes ({error}; did another program save it?); "
            "move it elsewhere, and the same command starts a new one."
        ) from error
    return rows


def sample_grid(samples: list[Sample], title: str) -> Image.Image:
    """Draw samples as rows of input, output and target; the output's heading holds ``title``."""
    titles = (
        name + _channels_shown(len(picture))
        for name, picture in zip(("input", f"output, {title}", "target"), samples[0], strict=True)
    )
    columns = ([to_image(picture) for picture in column] for column in zip(*samples, strict=True))
    return contact_sheet(list(zip(titles, columns, strict=True)))


def _channels_shown(channels: int) -> str:
    """Say which channels of a picture are seen, where that is not all."""
    if channels in (1, 3):
        return ""
    return f" (channel{'s 1 to 3' if channels > 3 else ' 1'} of {channels})"
