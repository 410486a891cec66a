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
from PIL import Image, ImageDraw, ImageFont

from disk import make_folder, whole_file
from scripts import run_script

RESAMPLES = 10_000
Table = dict[str, np.ndarray]  # a score of each picture, by the name of the score

PAGE = """<!doctype html><meta charset="utf-8"><title>Which is better?</title>
<style>body{font:16px sans-serif;text-align:center} img{width:30vw;image-rendering:pixelated}
td{padding:0 1em} button{font-size:1.2em;margin:.5em}</style>
<h2 id="head"></h2>
<p>Both were made from the left picture. Click the better one, or use the keys 1, 2 and 0.</p>
<p><img id="input"> <img id="one"> <img id="two"></p>
<p><button id="b1">1</button><button id="b0">no difference</button><button id="b2">2</button></p>
<div id="result"></div>
<script>
const rounds = ROUNDS;  // [input, [output, run], [output, run]]
const wins = {}; let turn = -1;
const shuffled = list =>
  list.map(v => [Math.random(), v]).sort((a, b) => a[0] - b[0]).map(([, v]) => v);
const order = shuffled(rounds).map(([x, ...two]) => [x, ...shuffled(two)]);
const by = id => document.getElementById(id);
function show() {
  if (++turn == order.length) return finish();
  by("head").textContent = `${turn + 1} of ${order.length}`;
  ["input", "one", "two"].forEach((id, k) =>
    by(id).src = "data:image/png;base64," + (k ? order[turn][k][0] : order[turn][0]));
}
function choose(k) {
  if (turn >= order.length) return;
  const runs = [order[turn][1][1], order[turn][2][1]];
  const key = runs.slice().sort().join(" or ");
  const count = wins[key] ??= {"no difference": 0};
  for (const run of runs) count[run] ??= 0;
  count[k ? runs[k - 1] : "no difference"]++;
  show();
}
function finish() {
  by("head").textContent = "Done";
  by("result").innerHTML = "<table align=center>" + Object.entries(wins).map(([key, count]) =>
    `<tr><th>${key}</th>` + Object.entries(count).map(([run, n]) =>
    `<td>${run}: ${n}</td>`).join("") + "</tr>").join("") + "</table>";
}
[0, 1, 2].forEach(k => by("b" + k).onclick = () => choose(k));
by("one").onclick = () => choose(1); by("two").onclick = () => choose(2);
onkeydown = event => { if ("012".includes(event.key)) choose(Number(event.key)); };
show();
</script>
"""


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
    for score in first.keys() & other.keys():
        if not score.startswith("target_"):
            one, two = means(first, score), means(other, score)
            low, high = np.percentile((two - one)[1:], (2.5, 97.5))
            found[score] = (one[0], two[0], low, high)
    return {score: found[score] for score in first if score in found}


def print_differences(first: Table, other: Table) -> None:
    """Print what ``differences`` finds."""
    for score, (one, two, low, high) in differences(first, other).items():
        sure = "*" if low > 0 or high < 0 else " "
        change = f"{two - one:+.4g}  [{low:+.4g}, {high:+.4g}]"
        print(f"  {score:32} {one:10.4g} -> {two:10.4g}  {sure} {change}")


Strips = list[Image.Image]  # input, output and target of each picture side by side


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
    return {
        run: [Image.open(at / name).convert("RGB") for name in sorted(names)]
        for run, at in folders.items()
    }


def third_of(strip: Image.Image, number: int) -> Image.Image:
    """Return a third of a strip: 0 the input, 1 the output, 2 the target."""
    width = strip.width // 3
    return strip.crop((number * width, 0, (number + 1) * width, strip.height))


def contact_sheet(strips: Mapping[str, Strips]) -> Image.Image:
    """Draw a row a picture: the input, the output of each run, and the target."""
    gap, head = 6, 24
    firsts = next(iter(strips.values()))
    width, height = firsts[0].width // 3, firsts[0].height
    columns = [("input", firsts, 0), *((run, s, 1) for run, s in strips.items())]
    columns += [("target", firsts, 2)]
    size = (len(columns) * (width + gap) + gap, head + len(firsts) * (height + gap))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures, third) in enumerate(columns):
        left = gap + column * (width + gap)
        draw.text((left, 4), title, "black", ImageFont.load_default(13))
        for row, strip in enumerate(pictures):
            picture = third_of(strip, third).resize((width, height))
            sheet.paste(picture, (left, head + row * (height + gap)))
    return sheet


def blind_page(strips: Mapping[str, Strips]) -> str:
    """Return a page that shows outputs of two runs without their names and counts the choices."""

    def data(strip: Image.Image, third: int) -> str:
        file = io.BytesIO()
        third_of(strip, third).save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()

    pairs = list(itertools.combinations(strips, 2))
    rounds = []
    for number, strip in enumerate(next(iter(strips.values()))):
        two = [[data(strips[run][number], 1), run] for run in pairs[number % len(pairs)]]
        rounds.append([data(strip, 0), *two])
    return PAGE.replace("ROUNDS", json.dumps(rounds).replace("<", "\\u003c"))


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
        contact_sheet(strips).save(draft, format="PNG")
    with whole_file(output / "blind.html") as draft:
        draft.write_text(blind_page(strips), encoding="utf-8")
    print(f"The same pictures side by side, and a page to choose blindly: {output}")


def main() -> None:
    """Compare the runs that the command line names."""
    tyro.cli(compare)


if __name__ == "__main__":
    run_script(main)
