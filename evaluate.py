"""Score generators on pairs: ``python evaluate.py checkpoints/NAME/generator.pt``."""

import csv
import json
import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from config import plain_name
from dataset import PairedImages, to_image, validation_batches
from machine.devices import Machine, choose_machine
from machine.disk import make_folder, remove_drafts, whole_file, whole_folder
from machine.processes import check_alone
from machine.progress import progress
from machine.stopping import run_script
from pictures.layouts import Pair
from pictures.sheet import beside
from recipes import is_path
from run.sources import open_pairs, split_of, unknown_classes
from scoring.distances import FeatureDistances, Lpips
from scoring.photos import fetched, score_network
from scoring.scores import Classes, FixedMarks, Measure, Scores, measures_of, score_all
from utils import Translator, load_generator, testing
from web.results import Shown, write_results_page

SMALL = 160  # pixels, largest side of each of the three in a small strip


class Reader(Measure):
    """Reads outputs back with a generator of the opposite direction (the paper's FCN score).

    Where targets are photos no distance to them tells real from blurred; but a network that was
    trained to turn photos into labels recognises what looks real. What it reads from the real
    pictures is the ceiling.

    Args:
        path: Of the reader.
        scored: The generator whose outputs are read.
        machine: Where to compute.

    Raises:
        ValueError: It was not trained the other way round, or its labels have no known palette.
    """

    def __init__(self, path: Path, scored: Translator, machine: Machine) -> None:
        self.reader, self.machine = load_generator(path, machine.device), machine
        config, reads = scored.config, self.reader.config
        named = is_path(config.a) or is_path(reads.a)  # there, all directions are called AtoB
        is_multiple = config.crop_size % self.reader.multiple == 0
        wanted = {
            "trained the other way round": named or reads.direction != config.direction,
            f"that turns {scored.sides.target.kind} into {scored.sides.input.kind}": (
                self.reader.sides.kinds == scored.sides.kinds[::-1]
            ),
            f"that takes pictures of {config.crop_size} px": is_multiple,
        }
        if missing := [what for what, is_so in wanted.items() if not is_so]:
            raise ValueError(
                f"{path} cannot read these outputs; --reader needs a generator "
                f"{' and '.join(missing)}."
            )
        palette = self.reader.sides.target.palette
        if palette is None:
            raise ValueError(
                f"{path} was not trained to make label pictures, so there is nothing to compare "
                "what it reads with; train it with --labels target."
            )
        self.on_outputs, self.on_targets = Classes(palette), Classes(palette)

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Read the output and the target, and compare with what they were made from."""
        with self.machine.autocast:
            of_output, of_target = self.reader(fake), self.reader(y)
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
    cache_dir: str = "data/.cache",
    max_pixels: int | None = None,
) -> list[dict[str, Any]]:
    """Score trained generators on a data set, picture by picture.

    Writes for each ``evaluation/NAME/scores_val.json``, a row a picture in ``scores_val.csv``,
    the pictures in ``pictures_val``, and a page that shows it all, ``index.html``; other
    checkpoints and data sets are named in those names. Of several generators there is also a page
    that shows them side by side.

    Args:
        checkpoints: generator.pt or latest.pt of one run or more.
        dataset: Folder of pairs, shards, or a name in PRESETS; empty: that of the training.
        split: val or train; another data set without a split is scored whole.
        direction: AtoB or BtoA, where the checkpoint does not say it (the authors' files).
        reader: Checkpoint trained in the opposite direction, to read the outputs back.
        pictures: Pictures to save at most, spread evenly over the set.
        precision: auto, fp32, bf16 or fp16, where it is to be other than in the training.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.
        cache_dir: Folder for the pictures as decoded and resized once, as in the training.
        max_pixels: Pixels of the largest picture that is read; if not given, 179 million.

    Returns:
        What is in the files ``scores_val.json``.

    Raises:
        ValueError, OSError: A checkpoint, reader or data set that cannot be used.
    """
    if not checkpoints:
        raise ValueError("Name one checkpoint or more: checkpoints/NAME/generator.pt.")
    if pictures < 0:
        raise ValueError(f"pictures is {pictures}; give 0 (none) or more.")
    translators = [load_generator(path, device) for path in checkpoints]
    for translator in translators:
        here = {"cache_dir": cache_dir, "max_pixels": max_pixels}
        here["direction"] = direction or translator.config.direction
        translator.facts = replace(translator.facts, config=replace(translator.config, **here))
    scored = [
        _on(dataset, path, translator, split)
        for path, translator in zip(checkpoints, translators, strict=True)
    ]
    shown = [one.run for one in scored]
    if twice := next((one for one in scored if shown.count(one.run) > 1), None):
        raise ValueError(
            f"{twice.checkpoint} and another checkpoint are of a run named "
            f"{twice.translator.config.name}, so their scores would overwrite each other; copy one "
            "to a file of another name."
        )
    summaries = []
    for one in scored:
        machine = choose_machine(device, precision or one.translator.config.precision)
        measures = _measures(one.translator, reader, machine)
        summaries.append(_score(one, measures, machine, pictures))
        print(f"To see it all, open {write_results_page([one.run])}")
    if len(shown) > 1:
        print(f"To see them side by side, open {write_results_page(shown)}")
    return summaries


@dataclass(frozen=True)
class Scored:
    """A generator and the pairs it is scored on."""

    checkpoint: Path
    translator: Translator
    pairs: Sequence[Pair]
    part: str
    """Which pairs of the data set: train, val or all."""
    run: Shown
    """Where the scores go."""


def _on(dataset: str, path: Path, translator: Translator, split: str) -> Scored:
    """Return what there is to score on a data set; "" is that of the training."""
    config = translator.config
    typed, trained = (
        {Path(folder, name).resolve() for folder in ("", "data")}
        for name in (dataset, config.dataset)
    )
    other = ""
    if dataset and not typed & trained:
        named = {n: "" for n in ("a", "b") if is_path(getattr(config, n))}
        config = replace(config, dataset=dataset, train_dir="", val_dir="", **named)
        other = plain_name(Path(dataset).absolute().name)
    translator.facts = replace(translator.facts, config=config)
    found = split_of(config)
    if other and found.held_out:  # none of them was trained on
        pairs, split = (*found.train, *found.val), "all"
    else:
        pairs = getattr(found, split)
    which = "" if path.stem in ("generator", "latest") else path.stem
    label = "_".join(filter(None, (which, other, split)))
    return Scored(path, translator, pairs, split, Shown(Path("evaluation", config.name), label))


def _measures(translator: Translator, reader: Path | None, machine: Machine) -> list[Measure]:
    """Return all that can be measured here, and say what could be."""
    target = translator.sides.target
    measures: list[Measure] = [FixedMarks(), *measures_of(target)]
    if reader:
        measures.append(Reader(reader, translator, machine))
    if target.channels not in (1, 3):
        print("Without LPIPS and feature distances: those are of grey and colour pictures.")
        return measures
    if (weights := fetched(Lpips.url)).is_file():
        measures.append(Lpips(machine.device))
    else:
        print(f"Without LPIPS: save {Lpips.url} as {weights} to have it scored too.")
    if network := score_network(machine.device):
        measures.append(FeatureDistances(network))
    else:
        print("Without feature distances: pip install -r requirements.txt to have them too.")
    return measures


def _score(
    scored: Scored, measures: list[Measure], machine: Machine, n_saved: int
) -> dict[str, Any]:
    """Score a generator; write its scores, and some pictures as strips in a new folder.

    Raises:
        ValueError: Its outputs are not finite.
    """
    translator, run = scored.translator, scored.run
    config, sides = translator.config, translator.sides
    make_folder(run.folder)
    remove_drafts(run.folder)
    pairs = open_pairs(config, scored.pairs, augment=False, kinds=sides.kinds)
    notes = [*pairs.notes, *unknown_classes(pairs, sides)]
    print(f"{config.dataset}: {len(pairs)} pairs to score", *notes, sep="\n")
    batches = validation_batches(pairs, config.seed)
    batches = progress(batches, desc="scoring", unit="picture", total=len(pairs))
    n_saved = min(n_saved, len(pairs))
    with whole_folder(run.pictures) as draft, testing(translator, config.seed):
        strips = Strips(draft, {number * len(pairs) // n_saved for number in range(n_saved)})
        given = {"sides": sides, "machine": machine}
        rows, scores = score_all(translator, batches, [*measures, strips], **given)
        if not math.isfinite(scores["l1"]):
            raise ValueError(f"The outputs of {scored.checkpoint} are not finite; train it again.")
        if run.pictures.is_symlink() or run.pictures.is_file():
            run.pictures.unlink()
        elif run.pictures.exists():
            shutil.rmtree(run.pictures)  # those of the last time
    summary = {"checkpoint": str(scored.checkpoint), "dataset": config.dataset}
    summary |= {"split": scored.part, "pictures": len(rows)} | scores
    _write(f"{run.folder}/scores_{run.label}", pairs, rows, summary)
    return summary


def _write(stem: str, pairs: PairedImages, rows: list[Scores], summary: dict[str, Any]) -> None:
    table = Path(f"{stem}.csv")
    # A file's name may hold what is not valid Unicode.
    options = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with whole_file(table) as draft, open(draft, "w", **options) as file:
        writer = csv.writer(file)
        writer.writerow(["picture", *rows[0]])
        for pair, row in zip(pairs.store.pairs, rows, strict=True):
            writer.writerow([pair.name, *row.values()])
    # JSON knows no NaN, which the marks of a single picture are.
    finite = {
        n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in summary.items()
    }
    text = json.dumps(finite, indent=2)
    with whole_file(Path(f"{stem}.json")) as draft:
        draft.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    print(text)
    print(f"Scores of each picture: {table}")


def main() -> None:
    """Score the checkpoints named on the command line."""
    check_alone("evaluate.py")
    tyro.cli(score_checkpoints)


if __name__ == "__main__":
    run_script(main)
