"""The page that shows what runs have learned: scores, curves and pictures, of one or of several.

It is made of what lies in ``evaluation/NAME`` alone, and holds all of it but the pictures, so that
it opens from a folder, without a server.
"""

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from machine.disk import whole_file
from scoring.tables import Table, over_targets, read_scores

FIRST_COLUMNS = ("epoch", "step", "seconds", "pictures_per_second", "lr")
# Scores in the table of a training; evaluate.py gives more.
SCORES = ("l1", "psnr", "ssim", "sharpness", "accuracy", "miou", "mae", "rmse")
# Which values of a score are better, and what it says; a longer name follows its beginning.
MEANINGS = {
    "l1": ("less", "mean difference from the target, on a scale of 2 (-1 to 1); prefers blur"),
    "psnr": ("more", "peak signal to noise ratio in dB; prefers blur as well"),
    "ssim": ("more", "likeness of local structure, 1 at most; prefers blur as well"),
    "sharpness": ("one", "gradient energy over that of the targets: 1 is as sharp as real"),
    "grid": ("one", "energy of what repeats every so many pixels over that of the targets"),
    "accuracy": ("more", "share of the pixels whose nearest colour is that of the right class"),
    "class_accuracy": ("more", "accuracy, in the mean over the classes"),
    "merged_accuracy": ("more", "accuracy, with two classes of nearly one colour taken as one"),
    "miou": ("more", "intersection over union, in the mean over the classes"),
    "mae": ("less", "mean error in the units of the targets"),
    "rmse": ("less", "root of the mean square error in the units of the targets"),
    "majority": ("", "what the answer that is always the commonest class would get"),
    "lpips": ("less", "distance from the target in the features of AlexNet, near to the eye's"),
    "distance": ("less", "distance from the target in the features of a network of photos"),
    "kid_floor": ("", "kernel distance of one half of the targets to the other"),
    "kid_low": ("", "lower end of the 95 % interval of kid"),
    "kid_high": ("", "upper end of the 95 % interval of kid"),
    "kid": ("less", "kernel distance of all outputs to all targets, in those features"),
    "frechet": ("less", "Fréchet distance of all outputs to all targets, in those features"),
    "fixed_marks_of_targets": ("", "fixed_marks of the targets"),
    "fixed_marks": ("less", "marks at the same place in every output; 0 for real pictures"),
    "reader_on_targets": ("", "what it reads from the targets: the ceiling"),
    "reader": ("more", "what a generator of the other direction reads from the outputs"),
}


def meaning_of(score: str) -> tuple[str, str]:
    """Return which values of a score are better (more, less, one, or empty), and what it says."""
    names = (name for name in MEANINGS if f"{score}_".startswith(f"{name}_"))
    return MEANINGS.get(next(names, ""), ("", ""))


def panels_of(columns: Iterable[str]) -> dict[str, list[str]]:
    """Return which columns of a training's table to draw together, by the title of the panel."""
    scores = [f"val_{n}" for n in SCORES if n not in ("l1", "psnr", "mae", "rmse")]
    panels = {
        "Discriminator: probability of real": ["d_real", "d_fake"],
        "L1, training and validation": ["l1", "val_l1"],
        "Validation": scores,
    }
    elsewhere = {*FIRST_COLUMNS, *itertools.chain(*panels.values())}
    losses = [n for n in dict.fromkeys(columns) if n not in elsewhere and not n.startswith("val_")]
    return {"Losses": losses} | panels


@dataclass(frozen=True)
class Shown:
    """A run as it is shown.

    Attributes:
        folder: ``evaluation/NAME``.
        label: Of the scores and pictures, as in ``scores_val.csv``; empty: the training alone.
    """

    folder: Path
    label: str = ""

    @property
    def name(self) -> str:
        """The run's name, with the label where that is not the usual one."""
        usual = self.label in ("", "val")
        return self.folder.name if usual else f"{self.folder.name}_{self.label}"

    @property
    def pictures(self) -> Path:
        """The folder of strips: NUMBER.png, and small as NUMBER.webp, counted from 1."""
        return self.folder / f"pictures_{self.label}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the training, where it left them."""
        path = self.folder / "config.json"
        return _facts_in(path) if path.is_file() else {}

    @cached_property
    def curves(self) -> list[dict[str, float]]:
        """The values of each epoch of the training, where it left them."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return []
        with _explained(path), open(path, newline="", encoding="utf-8") as file:
            return [{n: float(v) for n, v in row.items() if v} for row in csv.DictReader(file)]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What there is to say of all pictures: facts, and scores by name."""
        if self.label:
            shown = ("pictures", "dataset", "split", "checkpoint")
            return _facts_in(self.folder / f"scores_{self.label}.json", *shown)
        last = self.curves[-1]
        return {n.removeprefix("val_"): v for n, v in last.items() if n.startswith("val_")}

    @cached_property
    def table(self) -> tuple[list[str], Table]:
        """The names of the pictures and their scores, as ratios where targets are scored too."""
        if not self.label:
            return [], {}
        names, table = read_scores(self.folder / f"scores_{self.label}.csv")
        return names, over_targets(table)

    @property
    def epochs(self) -> list[int]:
        """The epochs of which there are samples."""
        return sorted(_numbered(self.folder, "output_"))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of a file into one message that names it."""
    try:
        yield
    except (csv.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not as a run writes it ({error}); did another program save it? Bring the "
            "old one back, or move it away."
        ) from error


def _facts_in(path: Path, *needed: str) -> dict[str, Any]:
    with _explained(path):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(facts, dict) and facts.keys() >= {*needed}):
            raise ValueError(f"it holds {facts!r:.40}, expected {', '.join(needed) or 'settings'}")
        return facts


def _numbered(folder: Path, beginning: str = "") -> dict[int, str]:
    """Return the stems, by their numbers, of the pictures in a folder that have such a name."""
    names = (re.fullmatch(rf"({beginning}(\d+))\.png", path.name) for path in folder.glob("*.png"))
    return {int(name[2]): name[1] for name in names if name}


def write_results_page(runs: Sequence[Shown]) -> Path:
    """Write the page of one run in its folder, or that of several, which lie side by side.

    Returns:
        The page: ``evaluation/NAME/index.html``, ``index_LABEL.html`` for an unusual label, or
        ``evaluation/NAME_vs_NAME/index.html``.

    Raises:
        ValueError: The runs were scored on different pictures.
        OSError: Scores are missing, or the page cannot be written.
    """
    first, *others = runs
    for run in others:
        if run.table[0] != first.table[0]:
            raise ValueError(
                f"{run.name} and {first.name} were scored on different pictures; score both on the "
                "same data set and split (evaluate.py CHECKPOINT --dataset FOLDER)."
            )
    names = [run.name for run in runs]
    folder = first.folder.with_name("_vs_".join(names)) if others else first.folder
    is_usual = others or first.name == first.folder.name
    path = folder / ("index.html" if is_usual else f"index_{first.label}.html")
    scores = _side_by_side([_flat(run.summary) for run in runs])
    settings = _side_by_side([run.settings for run in runs])
    text = render(
        "results.html",
        title=" and ".join(names),
        runs=runs,
        n_epochs=sum(first.settings.get(name, 0) for name in ("n_epochs", "n_epochs_decay")),
        scores=scores,
        references=[row for row in scores.items() if not meaning_of(row[0])[0]],
        settings=[
            row for row in settings.items() if not others or row[1].count(row[1][0]) < len(runs)
        ],
        meaning_of=meaning_of,
        data=_data(runs, folder),
    )
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def render(template: str, **values: object) -> str:
    """Return a page made from one of the templates beside it."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = lambda v: f"{v:.3g}" if isinstance(v, float) else str(v)
    return environment.get_template(template).render(values)


def _side_by_side(columns: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(itertools.chain(*columns))
    return {name: [column.get(name) for column in columns] for name in names}


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a summary without its facts, those of its parts beside the others."""
    flat = {}
    for name, value in summary.items():
        parts = value if isinstance(value, dict) else {}
        flat |= {f"{name}_{part}": score for part, score in parts.items()}
        if value is None or isinstance(value, float):
            flat[name] = value
    return flat


def _data(runs: Sequence[Shown], page_folder: Path) -> dict[str, Any]:
    """Return what the page's script works with; addresses of pictures are relative to the page."""

    def address(folder: Path) -> str:
        return quote(os.fsencode(Path(os.path.relpath(folder, page_folder)).as_posix()))

    scores = [name for name in runs[0].table[1] if all(name in run.table[1] for run in runs)]
    names, stems = runs[0].table[0], _numbered(runs[0].pictures)
    shown = {*range(1, len(names) + 1)}.intersection(*(_numbered(run.pictures) for run in runs))
    columns = itertools.chain(*(row for run in runs for row in run.curves))
    return {
        "runs": [
            {
                "name": run.name,
                "folder": address(run.folder),
                "pictures": address(run.pictures),
                "curves": run.curves,
                "epochs": run.epochs,
            }
            for run in runs
        ],
        "panels": list(panels_of(columns).items()),
        "scores": [[name, meaning_of(name)[0]] for name in scores],
        "pictures": [
            {
                "name": names[number - 1],
                "file": stems[number],
                "scores": [[float(run.table[1][s][number - 1]) for s in scores] for run in runs],
            }
            for number in sorted(shown)
        ],
    }
