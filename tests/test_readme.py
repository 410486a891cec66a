"""What the README and docs/using.md say of a checkpoint, run as it is written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, TINY
from PIL import Image

from config import Config
from train import train


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """Return language and text of each block of code below a heading of a page."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    return re.findall(r"```(\w+)\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)


def test_using_a_checkpoint(towns: Path):
    for path in [*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, ".")
    for wing in ("machine", "pictures", "run", "samples", "scoring", "web"):
        shutil.copytree(ROOT / wing, wing)
    train(Config(dataset=str(towns), name="towns", **TINY))
    Path("photos").mkdir()
    Image.new("RGB", (200, 150), "green").save("photos/1.jpg")
    ran: list[str] = []
    given = [*blocks("README.md", "Using a checkpoint"), *blocks("docs/using.md", "ONNX")]
    for language, text in dict.fromkeys(given):  # what both show is run once
        lines = text.splitlines() if language == "sh" else [text]
        for line in lines:
            words = line.split() if language == "sh" else ["python", "-c", line]
            module = ["-m"] if words[0] == "pip" else []
            command = [sys.executable, *module, *(words if module else words[1:])]
            subprocess.run(command, check=True, timeout=300)
            ran.append(words[1])
    assert {"translate.py", "export.py", "evaluate.py", "-c"} <= set(ran)
    assert Image.open("translated/1.png").size == Image.open("translated.png").size == (200, 150)
    assert Image.open("onnx.png").size == (128, 128)
