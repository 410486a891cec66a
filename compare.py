"""Compare runs that ``evaluate.py`` has scored: ``python compare.py RUN RUN ...``."""

import base64
import csv
import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from disk import make_folder, whole_file
from pictures.sheet import contact_sheet
from scripts import run_script

PAGE = Path(__file__).with_name("pages") / "blind.html"
RESAMPLES = 10_000
Table = dict[str, np.ndarray]  # a score of each picture, by the name of the score
Strips = list[list[Image.Image]]  # of each picture the input, the output and the target


def read_scores(path: Path) -> tuple[list[str], Table]:
    """Return the names of the pictures in a table of ``evaluate.py``, and their scores.

    Raises:
        FileNotFoundError: There is no such table.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; score each run first: python evaluate.py "
            "checkpoints/NAME/generator.pt"
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [row.pop("picture") for row in rows]
    return names, {score: np.array([float(row[score]) for row in rows]) for score in rows[0]}


def differences(first: Table, other: Table, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """Compare the scores that two tables of the same pictures share.

    Returns:
        For each score its mean in the first and in the other, and of the difference the 2.5 and
        the 97.5 percentile by bootstrap over the pictures, the same in both. Of a score that has
        a ``target_`` beside it, not the mean but the ratio to that counts, as in ``evaluate.py``.
    """
    n = len(next(iter(first.values())))
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    weights = np.vstack([np.ones(n), drawn]) / n

    def means(table: Table, score: str) -> np.ndarray:
        target = table.get(f"target_{score}")
        below = 1 if target is None else np.maximum(weights @ target, 1e-12)
        return weights @ table[score] / below

    found = {}
    for score in first:
        if score in other and not score.startswith("target_"):
            one, two = means(first, score), means(other, score)
            low, high = np.percentile((two - one)[1:], (2.5, 97.5))
            found[score] = (one[0], two[0], low, high)
    return found


def print_differences(first: Table, other: Table) -> None:
    """Print what ``differences`` finds."""
    for score, (one, two, low, high) in differences(first, other).items():
        sure = "*" if low > 0 or high < 0 else " "
        change = f"{two - one:+.4g}  [{low:+.4g}, {high:+.4g}]"
        print(f"  {score:32} {one:10.4g} -> {two:10.4g}  {sure} {change}")


def read_strips(folders: Mapping[str, Path]) -> dict[str, Strips]:
    """Return the pictures that ``evaluate.py`` saved in all of the folders, by run.

    Raises:
        FileNotFoundError: There are none.
    """
    names = set.intersection(*({p.name for p in at.glob("*.png")} for at in folders.values()))
    if not names:
        raise FileNotFoundError(
            f"{' and '.join(map(str, folders.values()))} hold no pictures of the same inputs; run "
            "evaluate.py with the same --pictures, such as 24, for each run."
        )
    return {run: [_thirds(at / name) for name in sorted(names)] for run, at in folders.items()}


def _thirds(path: Path) -> list[Image.Image]:
    strip = np.asarray(Image.open(path).convert("RGB"))
    return [Image.fromarray(third) for third in np.split(strip, 3, axis=1)]


def sheet_of(strips: Mapping[str, Strips]) -> Image.Image:
    """Draw a row a picture: the input, the output of each run, and the target."""
    inputs, _, targets = zip(*next(iter(strips.values())), strict=True)
    outputs = [(run, [output for _, output, _ in pictures]) for run, pictures in strips.items()]
    return contact_sheet([("input", inputs), *outputs, ("target", targets)])


def blind_page(strips: Mapping[str, Strips]) -> str:
    """Return a page that shows outputs of two runs without their names and counts the choices."""

    def address(picture: Image.Image) -> str:
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    pairs = itertools.cycle(itertools.combinations(strips, 2))
    rounds = []
    for number, (x, _, _) in enumerate(next(iter(strips.values()))):
        two = [[address(strips[run][number][1]), run] for run in next(pairs)]
        rounds.append([address(x), *two])
    data = json.dumps(rounds).replace("<", "\\u003c")  # a name must not end the script
    return PAGE.read_text(encoding="utf-8").replace("ROUNDS;", f"{data};")


def compare(
    runs: tyro.conf.Positional[tuple[str, ...]],
    scores: Annotated[str, tyro.conf.arg(metavar="NAME")] = "val",
) -> None:
    """Compare runs on the same pictures, the first with each of the others.

    Prints the mean of each score, and the difference with its 95 % interval by bootstrap over the
    pictures; and writes to evaluation/RUN_vs_RUN a contact sheet, and a page to choose blindly
    which outputs are better.

    Args:
        runs: Names of two or more runs that evaluate.py has scored, or their folders.
        scores: Which of their scores: val stands for scores_val.csv and pictures_val.

    Raises:
        ValueError, OSError: Scores that are missing, or of different pictures.
    """
    folders = {Path(run).name: Path("evaluation", Path(run).name) for run in runs}
    if len(folders) < 2:
        raise ValueError("Name two or more different runs, as in: python compare.py RUN RUN")
    tables = {run: read_scores(at / f"scores_{scores}.csv") for run, at in folders.items()}
    first, *others = tables
    for run in others:
        if tables[run][0] != tables[first][0]:
            raise ValueError(
                f"{run} and {first} were scored on different pictures; score both on the same data "
                "set and split (evaluate.py CHECKPOINT --dataset FOLDER)."
            )
        print(f"{run} against {first} on {len(tables[run][0])} pictures (*: beyond chance)")
        print_differences(tables[first][1], tables[run][1])
    strips = read_strips({run: at / f"pictures_{scores}" for run, at in folders.items()})
    output = make_folder(Path("evaluation", "_vs_".join(folders)))
    with whole_file(output / "contact_sheet.png") as draft:
        sheet_of(strips).save(draft, format="PNG")
    with whole_file(output / "blind.html") as draft:
        draft.write_text(blind_page(strips), encoding="utf-8")
    print(f"The same pictures side by side, and a page to choose blindly: {output}")


def main() -> None:
    """Compare the runs that the command line names."""
    tyro.cli(compare)


if __name__ == "__main__":
    run_script(main)
