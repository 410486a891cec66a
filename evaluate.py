"""Score generators on pairs: ``python evaluate.py checkpoints/NAME/generator.pt``."""

import csv
import json
import math
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from config import Config, plain_name
from dataset import PairedImages, to_image, validation_loader
from generator import Generator
from machine.devices import Machine, choose_machine
from machine.disk import make_folder, remove_drafts, whole_file, whole_folder
from machine.progress import progress
from machine.stopping import run_script
from pictures.sheet import beside
from pictures.sides import Sides
from run.sources import open_pairs, split_of, unknown_classes
from scoring.photos import FeatureDistances, Lpips, fetched, find_network
from scoring.scores import Classes, FixedMarks, Measure, Scores, measures_of, score_all
from utils import load_generator, testing
from web.results import Shown, write_page

SMALL = 160  # pixels, largest side of each of the three in a small strip


class Reader(Measure):
    """Reads outputs back with a generator of the opposite direction (the paper's FCN score).

    Where targets are photos no distance to them tells real from blurred; but a network that was
    trained to turn photos into labels recognises what looks real. What it reads from the real
    pictures is the ceiling. ``config`` and ``sides`` are those of the generator that is scored.

    Raises:
        ValueError: It was not trained the other way round, or its labels have no known palette.
    """

    def __init__(self, path: Path, config: Config, sides: Sides, machine: Machine) -> None:
        self.generator, self.machine = load_generator(path, machine.device), machine
        reads = self.generator.config
        named = config.input_dir or reads.input_dir  # there, all directions are called AtoB
        wanted = {
            "trained the other way round": named or reads.direction != config.direction,
            f"that turns {sides.target.kind} into {sides.input.kind}": (
                self.generator.sides.kinds == sides.kinds[::-1]
            ),
            f"that takes pictures of {config.crop_size} px": not config.crop_size % reads.crop_size,
        }
        if missing := [what for what, is_so in wanted.items() if not is_so]:
            raise ValueError(
                f"{path} cannot read these outputs; give as --reader one {' and '.join(missing)}."
            )
        palette = self.generator.sides.target.palette
        if palette is None:
            raise ValueError(
                f"{path} was not trained to make label pictures, so there is nothing to compare "
                "what it reads with; train it with --labels target."
            )
        self.on_outputs, self.on_targets = Classes(palette), Classes(palette)

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Read the output and the target, and compare with what they were made from."""
        with self.machine.autocast:
            of_output, of_target = self.generator(fake), self.generator(y)
        self.on_targets(y, of_target, x)
        return {"reader_accuracy": self.on_outputs(fake, of_output, x)["accuracy"]}

    def total(self) -> dict[str, Any]:
        """Return the scores of what was read."""
        return {
            "reader_on_outputs": self.on_outputs.total(),
            "reader_on_targets": self.on_targets.total(),
        }


class Strips(Measure):
    """Saves some of the pictures, by their numbers, as strips of input, output and target.

    Beside each lies a small one, for pages that show many.
    """

    def __init__(self, folder: Path, numbers: Collection[int]) -> None:
        self.folder, self.numbers, self.count = folder, numbers, 0

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Save one strip, if it is among those."""
        if self.count in self.numbers:
            strip = beside([to_image(part[0]) for part in (x, fake, y)])
            path = self.folder / f"{self.count + 1:05d}.png"
            with whole_file(path) as draft:
                # As small as at the usual level, in a third of the time.
                strip.save(draft, format="PNG", compress_level=1)
            strip.thumbnail((3 * SMALL, SMALL))
            strip.save(path.with_suffix(".webp"), quality=85)
        self.count += 1
        return {}


def score_checkpoints(
    checkpoints: tyro.conf.Positional[tuple[Path, ...]],
    dataset: str = "",
    split: Literal["val", "train"] = "val",
    direction: Literal["AtoB", "BtoA"] | None = None,
    reader: Path | None = None,
    pictures: int = 2000,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Score trained generators on a data set, picture by picture.

    Writes for each ``evaluation/NAME/scores_val.json``, a row a picture in ``scores_val.csv``,
    the pictures in ``pictures_val``, and a page that shows it all, ``index.html``; other
    checkpoints and data sets are named in those names. Of several generators there is also a page
    that shows them side by side.

    Args:
        checkpoints: generator.pt or latest.pt of one run or more.
        dataset: Folder of pairs, shards, or a name in PRESETS; empty: that of the training.
        split: val or train; of another data set without a split of its own, all are taken.
        direction: AtoB or BtoA, where the checkpoint does not say it (the authors' files).
        reader: Checkpoint trained in the opposite direction, to read the outputs back.
        pictures: Pictures to save at most, spread evenly over the set.
        precision: auto, fp32, bf16 or fp16, where it is to be other than in the training.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.

    Returns:
        What is in the files ``scores_val.json``.

    Raises:
        ValueError, OSError: A checkpoint, reader or data set that cannot be used.
    """
    generators = [load_generator(path, device) for path in checkpoints]
    shown: list[Shown] = []
    summaries: list[dict[str, Any]] = []
    for checkpoint, generator in zip(checkpoints, generators, strict=True):
        config = replace(generator.config, direction=direction or generator.config.direction)
        config, other = _on(dataset, config)
        folder = make_folder(Path("evaluation", config.name))
        remove_drafts(folder)
        machine = choose_machine(device, precision or config.precision)
        measures = _measures(config, generator.sides, reader, machine)
        pairs, part = _open_part(config, generator.sides, split, is_other=bool(other))
        which = "" if checkpoint.stem in ("generator", "latest") else checkpoint.stem
        label = "_".join(filter(None, (which, other, part)))
        run = Shown(folder, label)
        if run in shown:
            raise ValueError(
                f"{checkpoint} and an earlier one are both of a run called {config.name}, so that "
                "their scores would be written to the same files; give a copy of it another name."
            )
        saved = folder / f"pictures_{label}"
        rows, scores = _score(generator, pairs, measures, machine, saved, pictures)
        summary = {"checkpoint": str(checkpoint), "dataset": config.dataset, "split": part}
        summary |= {"pictures": len(rows)} | scores
        _write(f"{folder}/scores_{label}", pairs, rows, summary)
        print(f"To see it all, open {write_page([run])}")
        shown.append(run)
        summaries.append(summary)
    if len(shown) > 1:
        print(f"To see them side by side, open {write_page(shown)}")
    return summaries


def _on(dataset: str, config: Config) -> tuple[Config, str]:
    """Return the settings to use on a data set, and its name if it is not that of the training."""
    typed, trained = (
        {Path(folder, name).resolve() for folder in ("", "data")}
        for name in (dataset, config.dataset)
    )
    if not dataset or typed & trained:
        return config, ""
    folders = dict.fromkeys(("train_dir", "val_dir", "input_dir", "target_dir"), "")
    return replace(config, dataset=dataset, **folders), plain_name(Path(dataset).absolute().name)


def _measures(config: Config, sides: Sides, reader: Path | None, machine: Machine) -> list[Measure]:
    """Return all that can be measured here, and say what could be."""
    measures: list[Measure] = [FixedMarks(), *measures_of(sides.target)]
    if reader:
        measures.append(Reader(reader, config, sides, machine))
    if sides.target.channels not in (1, 3):
        print("Without LPIPS and feature distances: those are of grey and colour pictures.")
        return measures
    if (weights := fetched(Lpips.url)).is_file():
        measures.append(Lpips(machine.device))
    else:
        print(f"Without LPIPS: save {Lpips.url} as {weights} to have it scored too.")
    if network := find_network(machine.device):
        measures.append(FeatureDistances(network))
    else:
        print("Without feature distances: pip install -r requirements-eval.txt to have them too.")
    return measures


def _open_part(
    config: Config, sides: Sides, split: str, *, is_other: bool
) -> tuple[PairedImages, str]:
    """Open the pairs of a split, or all those of another set that has none; say which."""
    found = split_of(config)
    if is_other and found.held_out:  # none of them was trained on
        chosen, split = (*found.train, *found.val), "all"
    else:
        chosen = getattr(found, split)
    pairs = open_pairs(config, chosen, augment=False, kinds=sides.kinds)
    notes = [*pairs.notes, *unknown_classes(pairs, sides)]
    print(f"{config.dataset}: {len(pairs)} pairs to score", *notes, sep="\n")
    return pairs, split


def _score(
    generator: Generator,
    pairs: PairedImages,
    measures: list[Measure],
    machine: Machine,
    saved: Path,
    n_saved: int,
) -> tuple[list[Scores], dict[str, Any]]:
    """Return the scores of each picture and of all, and save some as strips in a new folder."""
    config = generator.config
    batches = progress(validation_loader(pairs), desc="scoring", unit="picture")
    with whole_folder(saved) as draft, testing(generator, config.seed):
        strips = Strips(draft, {number * len(pairs) // n_saved for number in range(n_saved)})
        measures = [*measures, strips]
        scored = score_all(generator, batches, measures, sides=generator.sides, machine=machine)
        shutil.rmtree(saved, ignore_errors=True)  # those of the last time
    return scored


def _write(stem: str, pairs: PairedImages, rows: list[Scores], summary: dict[str, Any]) -> None:
    table = Path(f"{stem}.csv")
    # A file's name may hold what is not valid Unicode.
    options = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with whole_file(table) as draft, open(draft, "w", **options) as file:
        writer = csv.writer(file)
        writer.writerow(["picture", *rows[0]])
        for pair, row in zip(pairs.pairs, rows, strict=True):
            writer.writerow([pair.name, *row.values()])
    # JSON knows no NaN, which the marks of a single picture are.
    finite = {
        n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in summary.items()
    }
    text = json.dumps(finite, indent=2)
    with whole_file(Path(f"{stem}.json")) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"Scores of each picture: {table}")


def main() -> None:
    """Score the checkpoints named on the command line."""
    tyro.cli(score_checkpoints)


if __name__ == "__main__":
    run_script(main)
