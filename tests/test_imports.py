import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = {path.stem for path in ROOT.glob("*.py")}
# Each module may import those of the lines above it, and nothing else of the project.
LAYERS = [
    {"config", "palettes", "layouts", "pictures", "generator"},
    {"townplan", "pairs", "discriminator", "download", "files", "authors"},
    {"towns", "cache"},
    {"dataset"},
    {"sources", "utils", "report"},
    {"evaluate", "translate", "export"},
    {"train"},
    {"trials"},
    {"benchmark"},
]


def imported(module: str) -> set[str]:
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names & MODULES


def test_every_module_has_its_layer():
    assert set().union(*LAYERS) == MODULES


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_nothing_imports_from_above(level: int):
    below = set().union(*LAYERS[:level]) if level else set()
    for module in LAYERS[level]:
        assert imported(module) <= below, module


def test_the_core_does_not_know_what_it_need_not():
    assert "torch" not in (ROOT / "config.py").read_text().split("class Config")[0]
    assert not imported("generator")
    assert imported("discriminator") == {"generator"}
    assert "config" not in imported("dataset") | imported("layouts")


def test_importing_does_nothing(tmp_path: Path):
    code = "import torch; before = torch.get_rng_state(); import train; "
    code += "assert torch.equal(before, torch.get_rng_state())"
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())
