import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare import compare, differences, main
from machine.stopping import run_script

COLOURS = {"input": (255, 0, 0), "a": (0, 255, 0), "b": (0, 0, 255), "target": (9, 9, 9)}


def scored(run: str, l1: np.ndarray, sharpness: float = 1.0, n_strips: int = 3) -> None:
    """Leave what evaluate.py does: the scores, and strips of plain colours."""
    folder = Path("evaluation", run)
    (folder / "pictures_val").mkdir(parents=True)
    with open(folder / "scores_val.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "l1", "sharpness", "target_sharpness"])
        for number, value in enumerate(l1):
            writer.writerow([f"{number:04d}", value, sharpness * number, number])
    summary = {"checkpoint": f"{run}.pt", "dataset": "d", "split": "val", "pictures": len(l1)}
    (folder / "scores_val.json").write_text(json.dumps(summary | {"l1": float(l1.mean())}))
    strip = Image.new("RGB", (24, 8))
    for place, name in enumerate(("input", run, "target")):
        strip.paste(COLOURS[name], (8 * place, 0, 8 * place + 8, 8))
    for number in range(n_strips):
        strip.save(folder / "pictures_val" / f"{number + 1:05d}.png")


def test_the_interval_is_that_of_paired_differences():
    rng = np.random.default_rng(0)
    hard = rng.normal(1, 1, 200)  # pictures differ much more than runs do
    first = {"l1": hard, "grid_2": hard**2, "target_grid_2": hard**2}
    other = {"l1": hard - rng.normal(0.05, 0.1, 200), "grid_2": 3 * hard**2, "psnr": hard}
    other["target_grid_2"] = hard**2
    found = differences(first, other)
    assert list(found) == ["l1", "grid_2"]
    one, two, low, high = found["l1"]
    difference = other["l1"] - first["l1"]
    error = difference.std() / np.sqrt(200)
    assert two - one == pytest.approx(difference.mean())
    assert (low, high) == pytest.approx(
        difference.mean() + np.array([-1.96, 1.96]) * error, abs=error / 5
    )
    assert found["grid_2"] == pytest.approx((1, 3, 2, 2))


def test_runs_may_be_given_by_their_folders(capsys: pytest.CaptureFixture[str]):
    scored("a", np.linspace(0.2, 0.4, 50))
    scored("b", np.linspace(0.2, 0.4, 50) - 0.1)
    Path("evaluation/b").rename("b")  # not where runs are looked for by their names
    compare(("a", "b"))
    assert "0.3 ->        0.2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="pictures is 0; give 1 or more"):
        compare(("a", "b"), pictures=0)


def test_two_runs(capsys: pytest.CaptureFixture[str]):
    scored("a", np.linspace(0.2, 0.4, 50))
    scored("b", np.linspace(0.2, 0.4, 50) - 0.1, sharpness=0.5, n_strips=4)
    compare(("a", "evaluation/b/"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("b against a on 50 pictures")
    assert lines[1].split() == ["l1", "0.3", "->", "0.2", "*", "-0.1", "[-0.1,", "-0.1]"]
    assert lines[2].split()[:6] == ["sharpness", "1", "->", "0.5", "*", "-0.5"]

    sheet = Image.open("evaluation/a_vs_b/contact_sheet.png")
    assert sheet.size == (4 * 14 + 6, 26 + 3 * 14)
    for row in range(3):
        seen = [sheet.getpixel((10 + 14 * column, 30 + 14 * row)) for column in range(4)]
        assert seen == [COLOURS[name] for name in ("input", "a", "b", "target")]

    page = Path("evaluation/a_vs_b/blind.html").read_text()
    assert "http" not in page, "it needs no other file"
    assert Path("evaluation/a_vs_b/index.html").is_file()
    rounds = json.loads(re.search(r"const rounds = (.*);  //", page)[1])
    assert len(rounds) == 3
    for x, *outputs in rounds:
        assert [run for _, run in outputs] == ["a", "b"]
        for data, name in ((x, "input"), *outputs):
            picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
            assert (picture.size, picture.getpixel((4, 4))) == ((8, 8), COLOURS[name])


def test_of_many_pictures_some_are_chosen_evenly():
    for run in ("a", "b"):
        scored(run, np.ones(9), n_strips=9)
    compare(("a", "b"), pictures=3)
    assert Image.open("evaluation/a_vs_b/contact_sheet.png").height == 26 + 3 * 14


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["a", "a/"], "Name two or more different runs"),
        (["a", "none"], "evaluation/none/scores_val.csv does not exist; score each run first"),
        (["a", "b"], "b and a were scored on different pictures"),
        (["a", "input"], "hold no pictures of the same inputs"),
    ],
)
def test_what_cannot_be_compared(
    runs: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    scored("a", np.ones(5))
    scored("b", np.ones(6))
    scored("input", np.ones(5), n_strips=0)
    monkeypatch.setattr("sys.argv", ["compare.py", *runs])
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_one_picture_proves_nothing(capsys: pytest.CaptureFixture[str]):
    scored("a", np.array([0.4]))
    scored("b", np.array([0.1]))
    compare(("a", "b"))
    said = capsys.readouterr().out
    assert "on 1 pictures (too few to tell chance apart)" in said and "*" not in said
