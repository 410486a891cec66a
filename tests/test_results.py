import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from config import Config
from evaluate import score_checkpoints
from train import train
from web.results import MEANINGS, Shown, meaning_of, write_results_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIDE = 16
COLOURS = {"input": (255, 0, 0), "a": (0, 255, 0), "b": (0, 0, 255), "target": (9, 9, 9)}


def scored(run: str, rows: list[dict[str, object]], label: str = "val") -> Shown:
    """Leave what evaluate.py does, with strips of plain colours."""
    shown = Shown(Path("evaluation", run), label)
    shown.pictures.mkdir(parents=True)
    strip = Image.new("RGB", (3 * SIDE, SIDE))
    for place, name in enumerate(("input", run, "target")):
        strip.paste(COLOURS[name], (SIDE * place, 0, SIDE * place + SIDE, SIDE))
    for number in range(len(rows)):
        strip.save(shown.pictures / f"{number + 1:05d}.png")
        strip.save(shown.pictures / f"{number + 1:05d}.webp")
    with open(shown.folder / f"scores_{label}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    facts = {"checkpoint": "c.pt", "dataset": "d", "split": "val", "pictures": len(rows)}
    scores = {"l1": 0.5, "fixed_marks": None, "majority": {"class": "sky", "accuracy": 0.25}}
    (shown.folder / f"scores_{label}.json").write_text(json.dumps(facts | scores))
    return shown


def rows(**columns: list[float]) -> list[dict[str, object]]:
    """Return rows of scores of pictures called one, two and so on."""
    names = ("one", "two", "three", "four")
    values = zip(names, *columns.values(), strict=False)
    return [dict(zip(("picture", *columns), row, strict=True)) for row in values]


def names_shown(page: "Page") -> list[str]:
    return page.locator("#grid button:visible b").all_text_contents()


def colour_at(page: "Page", x: float, y: float) -> tuple[int, ...]:
    page.screenshot(path="shot.png")
    return Image.open("shot.png").convert("RGB").getpixel((x, y))


def test_every_score_has_its_meaning():
    assert meaning_of("kid_low_efficientnet_lite2") == MEANINGS["kid_low"]
    assert meaning_of("grid_8") == MEANINGS["grid"]
    assert meaning_of("class_accuracy") == MEANINGS["class_accuracy"]
    assert meaning_of("load_size") == ("", "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", "\xff"),
        ("metrics.csv", "epoch,l1\n1,0,5\n2,x\n"),
        ("metrics.csv", "epoch,l1\n1;0,5\n"),
        ("scores_val.json", "3"),
        ("scores_val.json", '{"l1": 0.5}'),
        ("scores_val.csv", "picture,l1\none\n"),
    ],
)
def test_a_file_that_was_edited_is_named(file: str, content: str):
    run = scored("a", rows(l1=[0.5]))
    (run.folder / file).write_text(content, encoding="latin1")
    with pytest.raises(ValueError, match=rf"evaluation/a/{file} is not "):
        write_results_page([run])


def test_other_pictures_beside_those_of_the_run_do_no_harm():
    run = scored("a", rows(l1=[0.5, 0.1]))
    for path in (run.pictures / "00001 copy.png", run.pictures / "00009.png"):
        path.write_bytes((run.pictures / "00001.png").read_bytes())
    for name in ("output_001.png", "output_001 copy.png", "output_.png"):
        (run.folder / name).touch()
    text = write_results_page([run]).read_text()
    assert '"file": "00002"' in text
    assert "copy" not in text
    assert '"file": "00009"' not in text
    assert run.epochs == [1]


def test_scores_of_other_data_do_not_replace_the_page(page: "Page"):
    first = write_results_page([scored("a", rows(l1=[0.5]))])
    other = write_results_page([scored("a", rows(l1=[0.5]), label="100% #1_all")])
    assert (first.name, other.name) == ("index.html", "index_100% #1_all.html")
    page.goto(other.absolute().as_uri())
    page.wait_for_function("document.querySelector('#grid img').naturalWidth > 0")


def test_names_cannot_break_the_page(page: "Page"):
    name = "</script><script>throw Error('broken')</script>\udcff"
    table = [{"picture": name.encode("utf-8", "backslashreplace").decode(), "l1": 0.5}]
    page.goto(write_results_page([scored("a", table)]).absolute().as_uri())
    assert names_shown(page) == [table[0]["picture"]]


def test_pictures_are_sorted_searched_and_opened(page: "Page"):
    table = rows(l1=[0.3, 0.1, "nan", 0.2], sharpness=[4, 2, 1, 3], target_sharpness=[4, 8, 2, 2])
    page.goto(write_results_page([scored("a", table)]).absolute().as_uri())
    assert names_shown(page) == ["one", "two", "three", "four"]
    page.select_option("#sort", label="by l1")
    assert names_shown(page) == ["one", "four", "two", "three"]
    page.click("#turn")
    assert names_shown(page) == ["two", "four", "one", "three"]
    page.select_option("#sort", label="by sharpness")
    page.click("#turn")
    # As ratios 1, 0.25, 0.5 and 1.5: the worst is farthest from 1 by factor.
    assert names_shown(page) == ["two", "three", "four", "one"]
    page.fill("#search", "T")
    assert names_shown(page) == ["two", "three"]
    assert page.inner_text("#count") == "2 of 4"

    page.click("#grid button:has-text('three')")
    assert page.inner_text("#head") == "three 2 of 2"
    assert "sharpness" in page.inner_text("#numbers") and "0.5" in page.inner_text("#numbers")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#head") == "two 1 of 2"
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")


def test_two_runs_lie_side_by_side_with_sliders(page: "Page"):
    a = scored("a", rows(l1=[0.5, 0.2], other=[1, 1]))
    b = scored("b", rows(l1=[0.4, 0.9]))
    path = write_results_page([a, b])
    assert path == Path("evaluation/a_vs_b/index.html")
    page.goto(path.absolute().as_uri())
    assert page.locator("#sort option").all_inner_texts() == ["in order", "by l1"]
    page.select_option("#sort", label="by l1")
    assert names_shown(page) == ["one", "two"]
    page.select_option("#of", label="b behind a")
    assert names_shown(page) == ["two", "one"]

    page.keyboard.press("Escape")
    page.locator("#grid button").first.click()
    page.wait_for_function("[...document.querySelectorAll('#figures img')].every(i => i.complete)")
    boxes = [box.bounding_box() for box in page.locator(".slider").all()]
    for percent in (25, 75):
        page.mouse.move(boxes[0]["x"] + boxes[0]["width"] * percent / 100, boxes[0]["y"] + 50)
        for run, box in zip("ab", boxes, strict=True):
            seen = [
                colour_at(page, box["x"] + box["width"] * (percent + step) / 100, box["y"] + 20)
                for step in (-10, 10)
            ]
            assert seen == [COLOURS[run], COLOURS["target"]]


def test_runs_on_different_pictures_are_refused():
    runs = [scored("a", rows(l1=[0.5])), scored("b", rows(l1=[0.5, 0.5]))]
    with pytest.raises(ValueError, match="b and a were scored on different pictures"):
        write_results_page(runs)


def test_of_a_thousand_pictures_only_those_in_sight_are_read(page: "Page"):
    table = [{"picture": f"{number:04d}", "l1": number} for number in range(1000)]
    page.goto(write_results_page([scored("a", table)]).absolute().as_uri())
    page.locator("#grid img").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#grid img').naturalWidth > 0")
    read = "[...document.querySelectorAll('#grid img')].filter(i => i.naturalWidth > 0).length"
    assert 0 < page.evaluate(read) < 500
    assert page.locator("#grid button").count() == 1000


def test_a_page_follows_the_training_and_then_the_scores(
    towns: Path, page: "Page", monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evaluate.score_network", lambda device: None)
    train(Config(dataset=str(towns), name="a", **TINY))
    address = Path("evaluation/a/index.html").absolute().as_uri()
    page.goto(address)
    assert "epoch 3 of 3" in page.inner_text("header")
    assert not page.is_visible("#pictures")
    sample = page.locator(".samples img").nth(1)
    assert sample.get_attribute("src") == "./output_003.png"
    page.locator(".scrub input").fill("0")
    assert sample.get_attribute("src") == "./output_001.png"
    assert page.inner_text(".scrub output") == "epoch 1"
    page.wait_for_function("[...document.querySelectorAll('.samples img')].every(i => i.complete)")
    assert page.evaluate("document.querySelector('.samples img').naturalWidth") == 2 * 32

    score_checkpoints((Path("checkpoints/a/generator.pt"),))
    page.goto(address)
    assert names_shown(page) == ["0001", "0002"]
    l1 = json.loads(Path("evaluation/a/scores_val.json").read_text())["l1"]
    assert f"{l1:.3g}" in page.inner_text(".tiles")
    strip = np.asarray(Image.open("evaluation/a/pictures_val/00001.png")).astype(int)
    small = np.asarray(Image.open("evaluation/a/pictures_val/00001.webp")).astype(int)
    assert np.abs(strip - small).mean() < 10
