"""Score a generator on pairs: ``python evaluate.py checkpoints/NAME/generator.pt``."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights
from tqdm.auto import tqdm

from config import Config
from dataset import PairedImages, normalise, validation_loader
from pictures.palettes import merged_classes
from sources import open_pairs, palette_of, split_of
from scripts import run_script
from disk import make_folder
from utils import load_generator, pick_autocast, set_tf32, testing

Palette = dict[str, tuple[int, int, int]]
Scores = dict[str, float]
LAST = ("generator", "latest")  # checkpoints of the end of a run


# --- One picture ---
def score_picture(fake: Tensor, y: Tensor) -> Scores:
    """Score one output ``fake`` against its target ``y``, both (1, C, H, W) in [-1, 1].

    Returns:
        ``l1`` on [-1, 1]; ``psnr`` in dB and ``ssim`` on [0, 1]; the gradient ``energy`` of both.
    """
    unit_fake, unit_y = (fake + 1) / 2, (y + 1) / 2
    scores = {
        "l1": (fake - y).abs().mean(),
        "psnr": peak_signal_noise_ratio(unit_fake, unit_y, data_range=1.0),
        "ssim": structural_similarity_index_measure(unit_fake, unit_y, data_range=1.0),
        "energy": gradient_energy(fake),
        "target_energy": gradient_energy(y),
    }
    return {name: float(value) for name, value in scores.items()}


def count_classes(fake: Tensor, y: Tensor, palette: Palette) -> Tensor:
    """Count the pixels of each true class (rows) that were found to be each class (columns).

    Args:
        fake: Output, (1, 3, H, W) in [-1, 1].
        y: Target, likewise.
        palette: Colours of the classes.

    Returns:
        The confusion matrix, (classes, classes).
    """
    found, true = nearest_class(fake, palette), nearest_class(y, palette)
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


def gradient_energy(picture: Tensor) -> Tensor:
    """Return the mean square of the differences between neighbouring pixels."""
    rows, columns = picture.diff(dim=-2), picture.diff(dim=-1)
    return rows.square().mean() + columns.square().mean()


def nearest_class(picture: Tensor, palette: Palette) -> Tensor:
    """Return for each pixel of (N, 3, H, W) in [-1, 1] the index of the nearest colour, (N, H, W).

    The distance is Euclidean in RGB.
    """
    colours = torch.tensor(list(palette.values()), device=picture.device) / 127.5 - 1
    return torch.cdist(
        picture.movedim(1, -1), colours, compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(dim=-1)


# --- All pictures ---
class FixedMarks:
    """Measures the marks that stand at the same place in every picture.

    With h a picture less its local mean (17x17), e the mean energy of h over N pictures and m
    the energy of the mean h: (m - e/N) / (e (1 - 1/N)). 0 means that the pictures share nothing,
    as real ones do; 1 that they are all alike.
    """

    def __init__(self) -> None:
        self.count, self.energy, self.total = 0, 0.0, torch.zeros(())

    def add(self, picture: Tensor) -> None:
        """Add one picture, (1, C, H, W) in [-1, 1]."""
        detail = picture - F.avg_pool2d(F.pad(picture, (8, 8, 8, 8), mode="reflect"), 17, stride=1)
        detail = detail.double().cpu()
        self.count += 1
        self.energy += detail.square().mean().item()
        self.total = self.total + detail

    def value(self) -> float:
        """Return the measure; NaN for fewer than two pictures or flat ones."""
        if self.count < 2 or self.energy == 0:
            return float("nan")
        e, n = self.energy / self.count, self.count
        m = (self.total / n).square().mean().item()
        return (m - e / n) / (e * (1 - 1 / n))


def translate_all(
    generator: nn.Module,
    batches: Iterable[Tensor],
    *,
    input_nc: int,
    device: torch.device,
    autocast: torch.autocast,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield input, output and target of each pair, (1, C, H, W) in [-1, 1], float32.

    Args:
        generator: Configured for test; takes (1, input_nc, H, W) in [-1, 1].
        batches: Pairs one at a time, integers (1, input_nc + output_nc, H, W), not augmented.
        input_nc: Channels of the input.
        device: Where the generator is.
        autocast: The precision to compute in.
    """
    for batch in batches:
        x, y = normalise(batch.to(device), input_nc)
        with torch.inference_mode(), autocast:
            fake = generator(x)
        yield x, fake.float(), y


def evaluate(
    generator: nn.Module,
    batches: Iterable[Tensor],
    *,
    palette: Palette | None = None,
    **options: Any,
) -> Scores:
    """Score a generator that is already configured for test.

    Args:
        generator: See ``translate_all``, which takes the other options too.
        batches: See ``translate_all``.
        palette: Colours of the classes, where the targets are label pictures.
        **options: ``input_nc``, ``device`` and ``autocast`` of ``translate_all``.

    Returns:
        ``mean_scores`` over the pictures and, with a palette, ``class_scores`` over their pixels.
    """
    rows, counts = [], []
    for _, fake, y in translate_all(generator, batches, **options):
        rows.append(score_picture(fake, y))
        if palette is not None:
            counts.append(count_classes(fake, y, palette))
    return mean_scores(rows) | (class_scores(sum(counts), palette) if palette else {})


def mean_scores(rows: list[Scores]) -> Scores:
    """Return the means over pictures.

    The gradient energies become ``sharpness``, the energy of the outputs over that of the
    targets: 1 is as sharp as real, below is blurred.
    """
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    means["sharpness"] = means.pop("energy") / max(means.pop("target_energy"), 1e-12)
    return means


def majority_scores(counts: Tensor, palette: Palette) -> dict[str, Any]:
    """Score the answer that names the commonest class everywhere.

    Args:
        counts: What ``count_classes`` counted; only how often each class is true matters.
        palette: Colours of the classes.
    """
    true = counts.sum(dim=1)
    commonest = int(true.argmax())
    answer = torch.zeros_like(counts)
    answer[:, commonest] = true
    return {"class": list(palette)[commonest], **class_scores(answer, palette)}


# --- The script ---
class Reader:
    """Reads outputs back with a generator of the opposite direction (the paper's FCN score).

    Where targets are photos no distance to them tells real from blurred; but a network that was
    trained to turn photos into labels recognises what looks real. What it reads from the real
    pictures is the ceiling.

    Args:
        path: Checkpoint of the generator that reads.
        config: Settings of the generator that is scored.
        device: Where to read.

    Raises:
        ValueError: It was not trained the other way round, or its labels have no known palette.
    """

    def __init__(self, path: Path, config: Config, device: torch.device) -> None:
        self.generator = load_generator(path, device)
        reads = self.generator.config
        named = config.input_dir or reads.input_dir  # there, all directions are called AtoB
        if reads.direction == config.direction and not named:
            raise ValueError(
                f"{path} was trained in the direction {reads.direction}, like the checkpoint it is "
                "to read; give as --reader one that was trained the other way round."
            )
        if (reads.input_nc, reads.output_nc) != (config.output_nc, config.input_nc):
            raise ValueError(
                f"{path} turns {reads.input_nc} channels into {reads.output_nc}; a reader of this "
                f"checkpoint turns {config.output_nc} into {config.input_nc}."
            )
        if config.crop_size % reads.crop_size:
            raise ValueError(
                f"{path} takes pictures whose sides are multiples of {reads.crop_size} px, and the "
                f"outputs are {config.crop_size} px; give a reader trained at that crop_size."
            )
        self.palette = None if named else palette_of(replace(reads, dataset=config.dataset))
        if self.palette is None:
            raise ValueError(
                f"The inputs of {config.dataset} are not label pictures with a palette in "
                "palettes.py, which knows data sets in one folder called towns, maps or facades; "
                "so there is nothing to compare what the reader reads with."
            )

    def read(self, picture: Tensor, x: Tensor, autocast: torch.autocast) -> Tensor:
        """Count the classes it reads in ``picture``, true ones in ``x``, both (1, C, H, W)."""
        with torch.inference_mode(), autocast:
            found = self.generator(picture)
        return count_classes(found.float(), x, self.palette)


class Lpips:
    """LPIPS: the distance of two pictures in the features of AlexNet, nearer to the eye than L1.

    Args:
        device: Where the pictures are.

    Raises:
        ValueError: The file of weights is damaged.
    """

    url = AlexNet_Weights.IMAGENET1K_V1.url

    def __init__(self, device: torch.device) -> None:
        try:
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
        except Exception as error:  # damage makes torch raise nearly anything
            raise ValueError(
                f"{self.weights()} is damaged ({error}); fetch {self.url} again, or remove it to "
                "score without LPIPS."
            ) from error
        self.metric = metric.to(device)

    @classmethod
    def weights(cls) -> Path:
        """Return where torch keeps the weights of AlexNet, once they were fetched."""
        return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(cls.url).name)

    def __call__(self, fake: Tensor, y: Tensor) -> float:
        """Return the distance of two pictures, (1, 1 or 3, H, W) in [-1, 1]; 0 is the same."""
        colour = (1, 3, *y.shape[2:])
        return self.metric(fake.expand(colour), y.expand(colour)).item()


def score_checkpoint(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    dataset: str = "",
    split: Literal["val", "train"] = "val",
    direction: Literal["AtoB", "BtoA"] | None = None,
    reader: Path | None = None,
    on_bad_picture: Literal["stop", "skip"] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a trained generator on a data set, picture by picture.

    Args:
        checkpoint: generator.pt or latest.pt of a run.
        dataset: Folder of pairs, or a name in PRESETS; empty: the one it was trained on.
        split: The validation or the training pairs, neither of them augmented; of another data
            set without a split of its own, all.
        direction: AtoB or BtoA, where the checkpoint does not say it (the authors' files).
        reader: Checkpoint trained in the opposite direction, to read the outputs back.
        on_bad_picture: stop or skip, where it is to be other than in the training.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.

    Returns:
        What it writes to ``evaluation/NAME/scores_val.json``; the scores of each picture stand
        in ``scores_val.csv``. Other checkpoints and data sets are named in that of the files.

    Raises:
        ValueError, OSError: A checkpoint, folder or picture that cannot be used.
    """
    generator = load_generator(checkpoint, device)
    config = generator.config
    is_other = bool(dataset) and not _places(dataset) & _places(config.dataset)
    if is_other:
        config = replace(
            config, dataset=dataset, train_dir="", val_dir="", input_dir="", target_dir=""
        )
    config = replace(
        config,
        direction=direction or config.direction,
        on_bad_picture=on_bad_picture or config.on_bad_picture,
    )
    place = next(generator.parameters()).device
    reading = Reader(reader, config, place) if reader else None
    lpips = Lpips(place) if Lpips.weights().is_file() else None
    pairs, part = _open_part(config, split, is_other=is_other)
    set_tf32(config.precision)
    with testing(generator, config, place):
        rows, scores = _score_all(generator, config, pairs, reading, lpips)
    summary = {
        "checkpoint": str(checkpoint),
        "dataset": config.dataset,
        "split": part,
        "pictures": len(rows),
        **scores,
    }
    which = "" if checkpoint.stem in LAST else f"{checkpoint.stem}_"
    other = f"{Path(dataset).absolute().name}_" if is_other else ""
    stem = Path("evaluation") / config.name / f"scores_{which}{other}{part}"
    _write(stem, pairs, rows, summary)
    if lpips is None:
        print(f"LPIPS was left out: save {Lpips.url} as {Lpips.weights()} to have it scored too.")
    return summary


def _places(dataset: str) -> set[Path]:
    """Return where the data set of that name or path may lie."""
    return {Path(folder, dataset).resolve() for folder in ("", "data")}


def _open_part(config: Config, split: str, *, is_other: bool) -> tuple[PairedImages, str]:
    """Open the pairs of a split, or all those of another set that has none; say which."""
    found = split_of(config)
    if is_other and found.held_out:  # none of them was trained on
        chosen, split = (*found.train, *found.val), "all"
    else:
        chosen = getattr(found, split)
    pairs = open_pairs(config, chosen, augment=False)
    print(f"{config.dataset}: {len(pairs)} pairs to score", *pairs.notes, sep="\n")
    return pairs, split


def _score_all(
    generator: nn.Module,
    config: Config,
    pairs: PairedImages,
    reading: Reader | None,
    lpips: Lpips | None,
) -> tuple[list[Scores], dict[str, Any]]:
    """Return the scores of each picture, and what they come to."""
    device = next(generator.parameters()).device
    autocast = pick_autocast(config.precision, device)
    palette = palette_of(config)
    rows, counts, read, read_real = [], [], [], []
    marks, real_marks = FixedMarks(), FixedMarks()
    batches = tqdm(validation_loader(pairs), desc="scoring", unit="picture")
    options = {"input_nc": config.input_nc, "device": device, "autocast": autocast}
    for x, fake, y in translate_all(generator, batches, **options):
        rows.append(score_picture(fake, y))
        if lpips is not None:
            rows[-1]["lpips"] = lpips(fake, y)
        marks.add(fake)
        real_marks.add(y)
        if palette is not None:
            counts.append(count_classes(fake, y, palette))
        if reading is not None:
            read.append(reading.read(fake, x, autocast))
            read_real.append(reading.read(y, x, autocast))
    scores: dict[str, Any] = mean_scores(rows)
    scores |= {"fixed_marks": marks.value(), "fixed_marks_of_targets": real_marks.value()}
    if palette is not None:
        scores |= class_scores(sum(counts), palette)
        scores["majority"] = majority_scores(sum(counts), palette)
        rows = [row | class_scores(n, palette) for row, n in zip(rows, counts, strict=True)]
    if reading is not None:
        scores["reader_on_outputs"] = class_scores(sum(read), reading.palette)
        scores["reader_on_targets"] = class_scores(sum(read_real), reading.palette)
    return rows, scores


def _write(stem: Path, pairs: PairedImages, rows: list[Scores], summary: dict[str, Any]) -> None:
    make_folder(stem.parent)
    # Not with_suffix: the name of a data set may hold a dot.
    table, text_file = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".json"))
    # A file's name may hold what is not valid Unicode.
    with open(table, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["picture", *rows[0]])
        writer.writeheader()
        for pair, row in zip(pairs.pairs, rows, strict=True):
            writer.writerow({"picture": pair.name, **row})
    # JSON knows no NaN, which the marks of a single picture are.
    finite = {
        n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in summary.items()
    }
    text = json.dumps(finite, indent=2)
    text_file.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"Scores of each picture: {table}")


def main() -> None:
    """Score the checkpoint named on the command line."""
    tyro.cli(score_checkpoint)


if __name__ == "__main__":
    run_script(main)
