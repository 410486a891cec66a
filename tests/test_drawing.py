import base64
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_export import checkpoint

from export import export
from pictures.download import DownloadError
from pictures.pairs import resize
from pictures.palettes import TOWNS
from samples.towns import draw_pair
from web import drawing
from web.drawing import ADDRESS, fetch_runtime

if TYPE_CHECKING:
    from playwright.sync_api import Page

PALETTE = np.array(list(TOWNS.values()))
BUILDING = list(TOWNS).index("building")


@pytest.fixture
def runtime() -> None:
    """Lay the runtime where an export expects it; it is fetched once, beside the code."""
    try:
        archive = fetch_runtime(ROOT / "data")
    except DownloadError as error:
        pytest.skip(str(error))
    Path("data").mkdir()
    Path("data", archive.name).symlink_to(archive)


@pytest.fixture
def exported(towns: Path, runtime: None) -> "Callable[..., Path]":
    """Return a function that exports a tiny generator as a page and as a graph, fp16 both."""

    def both(facts: dict[str, object] | None = None, **settings: object) -> None:
        Path("towns").symlink_to(towns)  # its classes are known by this name
        path = checkpoint(dataset="towns", **settings)
        torch.save(torch.load(path) | (facts or {}), path)
        export(path, Path("page"))
        export(path, Path("a.onnx"), "fp16")

    return both


def opened(page: "Page") -> None:
    """Open the page as a person does, and wait for its first output."""
    page.goto(Path("page/index.html").resolve().as_uri())
    page.wait_for_function("document.getElementById('time').textContent")
    settled(page)


def settled(page: "Page") -> None:
    page.wait_for_function("!document.body.classList.contains('busy')")


def seen(page: "Page", canvas: str) -> np.ndarray:
    """Return what a canvas shows, (H, W, 3) from 0 to 255."""
    address = page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int)


def expected(given: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession("a.onnx", providers=["CPUExecutionProvider"])
    x = given.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    (y,) = session.run(None, {"input": x})
    return ((y[0].transpose(1, 2, 0) + 1) * 127.5).round()


def drag(page: "Page", tool: str, colour: int, start: float, end: float) -> None:
    """Choose a tool and a class, and draw along the diagonal of the paper."""
    page.click(f"[data-tool={tool}]")
    page.click(f"[data-colour='{colour}']")
    box = page.locator("#paper").bounding_box()
    places = [(box["x"] + f * box["width"], box["y"] + f * box["height"]) for f in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=5)
    page.mouse.up()
    settled(page)


def test_a_stroke_is_translated_as_onnxruntime_does(exported: "Callable[..., Path]", page: "Page"):
    exported(direction="BtoA")
    opened(page)
    before = seen(page, "output")
    assert abs(before - expected(seen(page, "given"))).max() <= 2
    drag(page, "brush", BUILDING, 0.2, 0.8)
    after = seen(page, "output")
    assert (after != before).any()
    assert abs(after - expected(seen(page, "given"))).max() <= 2


def test_the_tools_draw_in_the_pure_colours_of_the_classes(
    exported: "Callable[..., Path]", page: "Page"
):
    exported(direction="BtoA")
    opened(page)
    start = seen(page, "paper")
    assert (start[:, :, None] == PALETTE).all(-1).any(-1).all()
    assert start.shape == (64, 64, 3), "twice as fine as what is translated"

    page.click("[data-colour='5']")
    page.click("#clear")
    drag(page, "rectangle", BUILDING, 0.25, 0.5)
    wanted = np.broadcast_to(PALETTE[5], (64, 64, 3)).copy()
    wanted[16:32, 16:32] = PALETTE[BUILDING]
    assert (seen(page, "paper") == wanted).all()
    drag(page, "line", 0, 0.7, 0.9)
    page.keyboard.press("Control+z")
    settled(page)
    assert (seen(page, "paper") == wanted).all()
    drag(page, "fill", 2, 0.3, 0.3)
    wanted[16:32, 16:32] = PALETTE[2]
    assert (seen(page, "paper") == wanted).all()
    drag(page, "line", 0, 0.7, 0.9)
    line = (seen(page, "paper") == PALETTE[0]).all(-1)
    assert line[51, 51] and not line[32, 32] and not line[51, 40]


def test_photos_are_opened_instead_of_drawn(exported: "Callable[..., Path]", page: "Page"):
    exported(direction="AtoB")
    opened(page)
    assert page.locator("#tools").is_hidden()
    assert page.locator("#starts img").count() == 2
    assert abs(seen(page, "output") - expected(seen(page, "given"))).max() <= 2


def given_to(page: "Page", pixels: np.ndarray) -> np.ndarray:
    """Open a picture on the page, and return what the generator is given."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    given = {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#file", given)
    page.wait_for_function("!document.getElementById('undo').disabled")
    settled(page)
    return seen(page, "given")


@pytest.mark.parametrize("is_cropped", [False, True])
def test_a_picture_that_is_opened_is_treated_as_in_the_training(
    exported: "Callable[..., Path]", page: "Page", is_cropped: bool
):
    facts = {"picture_size": (40, 40), "side_by_side": True}
    exported(facts, direction="AtoB", keep_aspect=is_cropped)
    opened(page)
    photo = draw_pair(0, "val", 0, 96)[0]
    wide = photo[8:72]  # 96x64: no pair
    pair = np.concatenate([photo, 255 - photo], axis=1)
    expect = wide[:, 16:80] if is_cropped else wide
    for pixels, seen_in_training in ((wide, expect), (pair, photo), (pair[:, :190], photo[:, :95])):
        difference = given_to(page, pixels) - resize(seen_in_training, (32, 32), nearest=False)
        assert abs(difference).mean() < 6  # browsers resize nearly as OpenCV does


def test_the_half_of_a_pair_is_that_of_the_direction(exported: "Callable[..., Path]", page: "Page"):
    exported({"picture_size": (64, 128), "side_by_side": True}, direction="BtoA")
    opened(page)
    pair = np.concatenate([np.full((32, 64, 3), colour) for colour in PALETTE[[0, 3]]], axis=1)
    assert (given_to(page, pair.astype(np.uint8)) == PALETTE[3]).all()


def test_other_files_beside_the_page_do_no_harm(
    exported: "Callable[..., Path]", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = Path(shutil.copytree(drawing.PAGE, tmp_path / "draw"))
    (folder / ".DS_Store").write_bytes(b"\0\xff\xfe")
    monkeypatch.setattr(drawing, "PAGE", folder)
    exported(direction="AtoB")
    assert sorted(path.name for path in Path("page").iterdir()) == [
        *("draw.css", "draw.js", "index.html", "model.js", "runtime.js")
    ]


def test_labels_from_elsewhere_take_the_nearest_colours(
    exported: "Callable[..., Path]", page: "Page"
):
    exported(direction="BtoA")
    opened(page)
    noise = np.random.default_rng(0).integers(-9, 10, (64, 64, 3))
    file = io.BytesIO()
    Image.fromarray((PALETTE[3] + noise).clip(0, 255).astype(np.uint8)).save(file, format="PNG")
    page.evaluate(
        """text => {
            const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "a.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )
    page.wait_for_function("!document.getElementById('undo').disabled")
    assert (seen(page, "paper") == PALETTE[3]).all()


def test_without_the_pairs_there_is_a_page_without_starts(
    runtime: None, capsys: pytest.CaptureFixture[str]
):
    export(checkpoint(dataset="elsewhere/pairs"), Path("page"))
    assert "elsewhere/pairs is not here, so" in capsys.readouterr().out
    assert '"starts": []' in Path("page/model.js").read_text()


def test_the_runtime_is_fetched_once_and_checked(monkeypatch: pytest.MonkeyPatch):
    source = Path("mirror", ADDRESS.rpartition("/")[2])
    source.parent.mkdir()
    source.write_bytes(b"runtime")
    monkeypatch.setattr(drawing, "ADDRESS", str(source))
    digest = base64.b64encode(hashlib.sha512(b"runtime").digest()).decode()
    monkeypatch.setattr(drawing, "SHA512", digest)
    archive = fetch_runtime()
    source.unlink()
    assert fetch_runtime().read_bytes() == b"runtime"
    archive.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not the file that npm publishes .* remove it"):
        fetch_runtime()
    archive.unlink()
    with pytest.raises(DownloadError, match=r"could not be fetched .* save that file as data.onnx"):
        fetch_runtime()
    assert not list(Path("data").iterdir())
