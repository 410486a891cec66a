import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from machine.devices import Machine
from samples.towns import draw_towns

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

ROOT = Path(__file__).resolve().parent.parent
# Tests run side by side, one on each core: more threads, here or in what they start, would only
# wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
CPU = Machine(torch.device("cpu"), torch.float32)
PHOTOS = {"lambda_perceptual": 10.0, "lambda_projected": 1.0, "labels": "none"}
# A network small enough for a test: the smallest crop, a few channels.
TINY = {
    "crop_size": 32,
    "load_size": 36,
    "ngf": 4,
    "ndf": 4,
    "lambda_perceptual": 0.0,  # a network that is not small
    "lambda_projected": 0.0,
    "n_epochs": 2,
    "n_epochs_decay": 1,
    "num_workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "log_interval": 3,
}


@pytest.fixture(scope="session")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and two validation pairs of towns, 64 px."""
    folder = tmp_path_factory.mktemp("data") / "small"
    draw_towns(folder, 8, 2, size=64)
    return folder


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs write below the working folder: give each test one of its own."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def context() -> "Iterator[BrowserContext]":
    """The system's Chromium, with a camera that draws a clock; pages may not use it unasked.

    Without a Chromium the test is skipped. Each test starts one of its own, as Playwright keeps
    an event loop running in which no notebook could run.
    """
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no Chromium (on Debian: apt-get install chromium)")
    # Its sandbox refuses to work for root, who runs most containers.
    options = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser.new_context()
        browser.close()


@pytest.fixture
def page(context: "BrowserContext") -> "Iterator[Page]":
    """An empty page; errors of its scripts and requests fail the test."""
    faults: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: line.type == "error" and faults.append(line.text))
    page.on("request", lambda request: is_outside(request.url) and faults.append(request.url))
    yield page
    assert not faults


def is_outside(address: str) -> bool:
    """Say whether a page that asks for ``address`` leaves this machine."""
    return not address.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


def flags(**settings: object) -> list[str]:
    """Turn settings into flags for the command line, on top of TINY."""
    return [
        word
        for name, value in (TINY | settings).items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def script(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does, in the working folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
