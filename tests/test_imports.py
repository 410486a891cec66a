import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

WINGS = ("pictures", "towns")
FILES = [*ROOT.glob("*.py"), *(p for wing in WINGS for p in (ROOT / wing).glob("[!_]*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
# Each module may import those of the lines above it, and nothing else of the project.
LAYERS = [
    {"pictures.palettes", "pictures.layouts", "pictures.decode"},
    {"pictures.pairs", "pictures.download", "pictures.jobs", "towns.plan"},
    {"pictures.cache", "towns.draw"},
    {"config", "generator"},
    {"dataset", "discriminator", "authors"},
    {"sources", "utils", "report"},
    {"evaluate", "translate", "export"},
    {"train"},
    {"trials"},
    {"benchmark"},
]


def imported(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names & MODULES


def test_every_module_has_its_layer():
    assert set().union(*LAYERS) == MODULES


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_nothing_imports_from_above(level: int):
    below = set().union(*LAYERS[:level]) if level else set()
    for module in LAYERS[level]:
        assert imported(module) <= below, module


def test_the_wings_and_the_networks_know_nothing_of_the_training():
    for module in MODULES:
        if module.startswith(WINGS):
            assert "torch" not in sys.stdlib_module_names | imported(module)
            assert "import torch" not in ROOT.joinpath(*module.split(".")).with_suffix(
                ".py"
            ).read_text(encoding="utf-8"), module
            assert "config" not in imported(module), module
    assert "torch" not in (ROOT / "config.py").read_text().split("class Config")[0]
    assert not imported("generator")
    assert imported("discriminator") == {"generator"}


def test_importing_does_nothing(tmp_path: Path):
    code = "import torch; before = torch.get_rng_state(); import train; "
    code += "assert torch.equal(before, torch.get_rng_state())"
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())
