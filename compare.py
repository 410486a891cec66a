"""Compare runs that ``evaluate.py`` has scored: ``python compare.py RUN RUN ...``."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from machine.disk import whole_file
from machine.stopping import run_script
from pictures.sheet import contact_sheet, data_address
from scoring.tables import Table, drawn_again, over_targets, read_scores
from web.results import Shown, render, write_results_page

RESAMPLES = 10_000
FEWEST = 5  # pictures, of which chance could be told apart
Strips = list[list[Image.Image]]  # of each picture the input, the output and the target


def differences(first: Table, other: Table) -> dict[str, tuple[float, ...]]:
    """Compare the scores that two tables of the same pictures share.

    Returns:
        For each score its mean in the first and in the other, and of the difference the 2.5 and
        the 97.5 percentile by bootstrap over the pictures, the same in both. Of a score that has
        a ``target_`` beside it, not the mean but the ratio to that counts, as in ``evaluate.py``.
    """
    weights = drawn_again(len(next(iter(first.values()))), RESAMPLES)
    weights = weights / weights.sum(axis=1, keepdims=True)
    one, two = (
        over_targets({score: _means(values, weights) for score, values in table.items()})
        for table in (first, other)
    )
    found = {}
    for score in one.keys() & two.keys():
        low, high = np.percentile((two[score] - one[score])[1:], (2.5, 97.5))
        found[score] = (one[score][0], two[score][0], low, high)
    return {score: found[score] for score in one if score in found}


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean for each row of weights, over the pictures that have a value."""
    return weights @ np.nan_to_num(values) / (weights @ ~np.isnan(values))


def print_differences(first: Table, other: Table) -> None:
    """Print what ``differences`` finds; of FEWEST pictures or more also what is beyond chance."""
    enough = len(next(iter(first.values()))) >= FEWEST
    for score, (one, two, low, high) in differences(first, other).items():
        sure = "*" if enough and (low > 0 or high < 0) else " "
        change = f"{two - one:+.4g}  [{low:+.4g}, {high:+.4g}]"
        print(f"  {score:32} {one:10.4g} -> {two:10.4g}  {sure} {change}")


def read_strips(folders: Mapping[str, Path], most: int) -> dict[str, Strips]:
    """Return some of the pictures that ``evaluate.py`` saved in all of the folders, by run.

    Raises:
        FileNotFoundError: There are none.
    """
    shared = set.intersection(*({p.name for p in at.glob("*.png")} for at in folders.values()))
    if not shared:
        raise FileNotFoundError(
            f"{' and '.join(map(str, folders.values()))} hold no pictures of the same inputs; run "
            "evaluate.py with the same --pictures for each run."
        )
    names = sorted(shared)[:: -(-len(shared) // most)]
    return {run: [_thirds(at / name) for name in names] for run, at in folders.items()}


def _thirds(path: Path) -> list[Image.Image]:
    try:
        strip = np.asarray(Image.open(path).convert("RGB"))
        return [Image.fromarray(third) for third in np.split(strip, 3, axis=1)]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a strip of evaluate.py ({error}); score the run again."
        ) from error


def sheet_of(strips: Mapping[str, Strips]) -> Image.Image:
    """Draw a row a picture: the input, the output of each run, and the target."""
    inputs, _, targets = zip(*next(iter(strips.values())), strict=True)
    outputs = [(run, [output for _, output, _ in pictures]) for run, pictures in strips.items()]
    return contact_sheet([("input", inputs), *outputs, ("target", targets)])


def blind_page(strips: Mapping[str, Strips]) -> str:
    """Return a page that shows outputs of two runs without their names and counts the choices."""
    pairs = itertools.cycle(itertools.combinations(strips, 2))
    rounds = []
    for number, (x, _, _) in enumerate(next(iter(strips.values()))):
        two = [[data_address(strips[run][number][1]), run] for run in next(pairs)]
        rounds.append([data_address(x), *two])
    return render("blind.html", rounds=rounds)


def folder_of(run: str) -> Path:
    """Return the folder of a run that is given by it or by its name."""
    given = Path(run)
    return given.resolve() if given.is_dir() else Path("evaluation", run)


def compare(
    runs: tyro.conf.Positional[tuple[str, ...]],
    scores: Annotated[str, tyro.conf.arg(metavar="NAME")] = "val",
    pictures: int = 24,
) -> None:
    """Compare runs on the same pictures, the first with each of the others.

    Prints the mean of each score, and the difference with its 95 % interval by bootstrap over the
    pictures; and writes to evaluation/RUN_vs_RUN a page that shows all side by side, a contact
    sheet of some, and a page to choose blindly which outputs of those are better.

    Args:
        runs: Names of two or more runs that evaluate.py has scored, or their folders.
        scores: Which of their scores: val stands for scores_val.csv and pictures_val.
        pictures: Pictures on the sheet and to choose from, spread evenly over all.

    Raises:
        ValueError, OSError: Scores that are missing, or of different pictures.
    """
    if pictures < 1:
        raise ValueError(f"pictures is {pictures}; give 1 or more.")
    folders = list({folder.resolve(): folder for folder in map(folder_of, runs)}.values())
    shown = [Shown(folder, scores) for folder in folders]
    if len(shown) < 2:
        raise ValueError("Name two or more different runs, as in: python compare.py RUN RUN")
    if len({run.name for run in shown}) < len(shown):
        raise ValueError(
            f"Two of these runs are called {shown[0].name}; give a copy of one another name."
        )
    page = write_results_page(shown)
    (_, first), *others = (read_scores(folder / f"scores_{scores}.csv") for folder in folders)
    for run, (names, table) in zip(shown[1:], others, strict=True):
        star = "*: beyond chance" if len(names) >= FEWEST else "too few to tell chance apart"
        print(f"{run.name} against {shown[0].name} on {len(names)} pictures ({star})")
        print_differences(first, table)
    strips = read_strips({run.name: run.pictures for run in shown}, pictures)
    with whole_file(page.with_name("contact_sheet.png")) as draft:
        sheet_of(strips).save(draft, format="PNG")
    with whole_file(page.with_name("blind.html")) as draft:
        draft.write_text(blind_page(strips), encoding="utf-8")
    print(
        f"All pictures side by side: {page}. Beside it, blind.html asks which of two outputs is "
        "better."
    )


def main() -> None:
    """Compare the runs that the command line names."""
    tyro.cli(compare)


if __name__ == "__main__":
    run_script(main)
