import base64
import hashlib
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
    from playwright.sync_api import BrowserContext, Page

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


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what was exported so far: to export takes longer than most tests."""
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def exported(towns: Path, runtime: None, kept: Path) -> Callable[..., None]:
    """Return a function that exports a tiny generator as a page and as a graph, fp16 both."""

    def both(facts: dict[str, object] | None = None, **settings: object) -> None:
        Path("towns").symlink_to(towns)  # its classes are known by this name
        before = kept / hashlib.md5(repr((facts, settings)).encode()).hexdigest()
        if not before.exists():
            path = checkpoint(dataset="towns", **settings)
            torch.save(torch.load(path) | (facts or {}), path)
            export(path, before / "page")
            export(path, before / "a.onnx", "fp16")
        shutil.copytree(before, ".", dirs_exist_ok=True)

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


def test_a_stroke_is_translated_as_onnxruntime_does(exported: Callable[..., None], page: "Page"):
    exported(direction="BtoA")
    opened(page)
    before = seen(page, "output")
    assert abs(before - expected(seen(page, "given"))).max() <= 2
    drag(page, "brush", BUILDING, 0.2, 0.8)
    after = seen(page, "output")
    assert (after != before).any()
    assert abs(after - expected(seen(page, "given"))).max() <= 2


def test_the_tools_draw_in_the_pure_colours_of_the_classes(
    exported: Callable[..., None], page: "Page"
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


def test_photos_are_opened_instead_of_drawn(exported: Callable[..., None], page: "Page"):
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
    page.evaluate("tell('')")
    page.set_input_files("#file", given)
    page.wait_for_function("document.getElementById('note').textContent")
    settled(page)
    return seen(page, "given")


@pytest.mark.parametrize("is_cropped", [False, True])
def test_a_picture_that_is_opened_is_treated_as_in_the_training(
    exported: Callable[..., None], page: "Page", is_cropped: bool
):
    facts = {"picture_size": (40, 40), "side_by_side": True}
    exported(facts, direction="AtoB", keep_aspect=is_cropped)
    opened(page)
    photo = draw_pair(0, "val", 0, 96)[0]
    wide = photo[8:72]  # 96x64: no pair
    pair = np.concatenate([photo, 255 - photo], axis=1)
    expect = wide[:, 16:80] if is_cropped else wide
    middle = "the middle of " if is_cropped else ""
    for pixels, seen_in_training, taken in (
        (wide, expect, f"{middle}it, {'64' if is_cropped else '96'} x 64, is scaled to 32 x 32."),
        (pair, photo, f"{middle}its left half, 96 x 96, is scaled"),
        (pair[:, :190], photo[:, :95], f"{middle}its left half, 95 x "),
    ):
        difference = given_to(page, pixels) - resize(seen_in_training, (32, 32), nearest=False)
        assert abs(difference).mean() < 6  # browsers resize nearly as OpenCV does
        told = f"has {pixels.shape[1]} x {pixels.shape[0]}. As in the training, {taken}"
        assert page.inner_text("#note").startswith(f"photo.png {told}")


def test_the_half_of_a_pair_is_that_of_the_direction(exported: Callable[..., None], page: "Page"):
    exported({"picture_size": (64, 128), "side_by_side": True}, direction="BtoA")
    opened(page)
    pair = np.concatenate([np.full((32, 64, 3), colour) for colour in PALETTE[[0, 3]]], axis=1)
    assert (given_to(page, pair.astype(np.uint8)) == PALETTE[3]).all()


def test_other_files_beside_the_page_do_no_harm(
    towns: Path, runtime: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = Path(shutil.copytree(drawing.PAGE, tmp_path / "draw"))
    (folder / ".DS_Store").write_bytes(b"\0\xff\xfe")
    monkeypatch.setattr(drawing, "PAGE", folder)
    stale, own = Path("page/parts/graph-1.js"), Path("page/parts/notes.txt")
    own.parent.mkdir(parents=True)
    stale.touch()
    own.touch()
    Path("towns").symlink_to(towns)
    export(checkpoint(dataset="towns", direction="AtoB"), Path("page"))
    assert {path.name for path in Path("page").iterdir()} == {*drawing.FILES, "model.js", "parts"}
    assert own.exists() and not stale.exists(), "of an earlier, larger page"


def test_labels_from_elsewhere_take_the_nearest_colours(
    exported: Callable[..., None], page: "Page"
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


def test_the_saved_output_is_seen_while_the_page_loads(exported: Callable[..., None], page: "Page"):
    exported(direction="BtoA")
    page.add_init_script(
        """window.Worker = class { postMessage() {} };  // a generator that never starts
        window.said = [];
        new MutationObserver(() => {
            const text = document.getElementById("status")?.textContent;
            if (text && text !== said.at(-1)) said.push(text);
        }).observe(document, {subtree: true, childList: true});"""
    )
    page.goto(Path("page/index.html").resolve().as_uri())
    page.wait_for_function("said.at(-1).startsWith('Starting')")
    *loading, _ = page.evaluate("said")
    size = page.evaluate("(MODEL.size / 1e6).toFixed(1)")
    assert loading[0] == f"Loading: 0.0 of {size} MB"
    assert loading[-1] == f"Loading: {size} of {size} MB" and len(loading) > 5
    start = Image.fromarray(seen(page, "paper").astype(np.uint8)).resize((32, 32), Image.BOX)
    file = io.BytesIO()
    Image.fromarray(expected(np.asarray(start)).astype(np.uint8)).save(file, "WEBP", quality=90)
    assert abs(seen(page, "output") - np.asarray(Image.open(file))).mean() < 2


def slow_down(page: "Page", ms: int) -> None:
    """Let each output take a while, and count how many are asked for, and at once."""
    page.evaluate(
        """ms => {
            const quick = ask;
            window.asked = window.together = window.most = 0;
            ask = async (...message) => {
                asked++;
                most = Math.max(most, ++together);
                await new Promise(resolve => setTimeout(resolve, ms));
                const found = await quick(...message);
                together--;
                return found;
            };
        }""",
        ms,
    )


def test_one_draws_on_while_it_thinks(exported: Callable[..., None], page: "Page"):
    exported(direction="BtoA")
    opened(page)
    slow_down(page, 2000)
    before = seen(page, "output")
    box = page.locator("#paper").bounding_box()
    page.click(f"[data-colour='{BUILDING}']")
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    papers = []
    for step in (50, 100, 150):
        page.mouse.move(box["x"] + step, box["y"] + step, steps=5)
        papers.append((seen(page, "paper") == PALETTE[BUILDING]).all(-1).sum())
    assert papers[0] < papers[1] < papers[2]
    page.wait_for_function("getComputedStyle(document.getElementById('thinking')).opacity === '1'")
    assert (seen(page, "output") == before).all()
    page.mouse.up()
    settled(page)
    assert page.evaluate("[asked, most]") == [2, 1], "the first point, and all that followed"
    assert abs(seen(page, "output") - expected(seen(page, "given"))).max() <= 2
    assert float(page.evaluate("getComputedStyle(document.getElementById('thinking')).opacity")) < 1


def test_the_camera_is_translated_frame_by_frame_without_a_queue(
    exported: Callable[..., None], page: "Page"
):
    page.context.grant_permissions(["camera"])
    exported(direction="AtoB")
    opened(page)
    slow_down(page, 150)
    page.click("#camera")
    page.wait_for_function("asked > 8")
    assert page.evaluate("most") == 1
    assert page.evaluate("film.getVideoPlaybackQuality().totalVideoFrames") > 12, "more than asked"
    assert "a second" in page.inner_text("#times")
    page.click("#pause")
    settled(page)
    frozen = seen(page, "given")
    assert abs(seen(page, "output") - expected(frozen)).max() <= 2

    page.click("#mirror")
    settled(page)
    assert abs(seen(page, "given") - frozen[:, ::-1]).mean() < 2
    page.click("#mirror")
    box = page.locator("#stage").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + box["width"] / 8, middle[1], steps=4)  # to the edge of 4:3
    page.mouse.up()
    settled(page)
    pixels = 32 / 6  # an eighth of the camera's 640, of which 480 become 32
    moved = np.roll(frozen, -round(pixels), axis=1)
    assert abs(seen(page, "given") - moved)[:, :26].mean() < abs(frozen - moved)[:, :26].mean() / 2

    page.evaluate("() => { window.track = film.srcObject.getVideoTracks()[0]; }")
    page.click("#stop")
    settled(page)
    asked = page.evaluate("asked")
    assert page.evaluate("[live, track.readyState]") == [False, "ended"]
    page.wait_for_timeout(300)
    assert page.evaluate("asked") == asked


def test_what_is_recorded_can_be_opened_as_a_film(exported: Callable[..., None], page: "Page"):
    page.context.grant_permissions(["camera"])
    exported(direction="AtoB")
    opened(page)
    page.click("#camera")
    page.wait_for_function("live")
    page.click("#record")
    page.wait_for_timeout(700)
    with page.expect_download() as download:
        page.click("#record")
    film = Path("film.webm")
    download.value.save_as(film)
    page.set_input_files("#file", film)
    page.wait_for_function("live && film.src && film.currentTime > 0 && shown")
    assert page.evaluate("[film.videoWidth, film.videoHeight]") == [32, 32]
    assert page.inner_text("#note").startswith("film.webm gives 32 x 32.")
    page.click("#starts button")  # ends it
    page.wait_for_function("!live")
    settled(page)
    assert abs(seen(page, "output") - expected(seen(page, "given"))).max() <= 2

    page.click("#wipe")
    given, out = seen(page, "given"), expected(seen(page, "given"))
    wiped = np.concatenate([given[:, :16], out[:, 16:]], axis=1)
    assert abs(seen(page, "output") - wiped).max() <= 2
    box = page.locator("#output").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 50)
    wiped = np.concatenate([given[:, :8], out[:, 8:]], axis=1)
    assert abs(seen(page, "output") - wiped).max() <= 2


def test_a_camera_or_file_that_cannot_be_used_is_told_of(
    exported: Callable[..., None], page: "Page"
):
    exported(direction="AtoB")
    opened(page)

    def told(text: str) -> None:
        page.locator("#note.failed", has_text=text).wait_for()
        assert page.locator("#paper").is_visible()

    page.click("#camera")  # without leave
    told("The browser may not use the camera here. Allow it")
    fake = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s'); }"
    for name, text in (("NotFoundError", "no camera"), ("NotReadableError", "Another program")):
        page.evaluate(f"() => {{ {fake % name} }}")
        page.click("#camera")
        told(text)
    page.evaluate("() => Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    page.click("#camera")
    told("https:// only")
    for name, kind in (("a.txt", "text/plain"), ("b.png", "image/png"), ("c.mp4", "video/mp4")):
        page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": b"no picture"})
        told(f"{name} cannot be opened")


@pytest.fixture
def server() -> "Iterator[tuple[str, dict[str, str], dict[str, str]]]":
    """A server of the page: its address, the headers that it adds, and its types by ending."""
    headers = {"Cache-Control": "no-store"}
    types = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = types

        def end_headers(self):
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory="page")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", headers, types
        server.shutdown()


def test_a_server_that_keeps_parts_out_is_named_as_the_cause(
    exported: Callable[..., None],
    context: "BrowserContext",
    server: "tuple[str, dict[str, str], dict[str, str]]",
):
    exported(direction="AtoB")
    address, headers, types = server
    headers["X-Content-Type-Options"] = "nosniff"
    page = context.new_page()

    def told(policy: str, text: str) -> None:
        headers["Content-Security-Policy"] = policy
        page.goto(address)
        page.locator("#note", has_text=text).wait_for()
        assert not page.locator("#status", has_text="...").count()

    part = Path("page/parts/wasm-1.js").rename("kept.js")
    told("", "A file of the page is missing")
    assert page.inner_text("#note").endswith(f": {address}parts/wasm-1.js")
    part.rename("page/parts/wasm-1.js")
    told("script-src 'none'", "scripts of this page have not run.")
    told("worker-src 'self'", "its worker-src forbids blob.")
    page.click("#starts button")
    page.click("#camera")
    page.wait_for_timeout(300)
    assert "its worker-src forbids blob." in page.inner_text("#note"), "whatever is done then"
    told("script-src 'self' blob:", "its script-src forbids wasm-eval.")
    told("default-src 'self'", "its img-src forbids data.")
    headers["Content-Security-Policy"] = page.evaluate("POLICY")  # what the messages advise
    page.goto(address)
    page.locator("#time:not(:empty)").wait_for()
    assert not page.inner_text("#note")
    types[".js"] = "text/plain"
    told("", "must send .js files as text/javascript")


def test_without_the_pairs_there_is_a_page_without_starts(
    runtime: None, capsys: pytest.CaptureFixture[str]
):
    export(checkpoint(dataset="elsewhere/pairs"), Path("page"))
    assert "elsewhere/pairs was not found;" in capsys.readouterr().out
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
