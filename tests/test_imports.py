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
    {"disk", "progress", "scripts", "generator", "losses", "pictures.folders"},
    {"pictures.tars"},
    {"pictures.palettes", "pictures.layouts", "pictures.formats", "pictures.sheet"},
    {"pictures.sides", "towns.plan", "config", "discriminator", "page"},
    {"pictures.decode", "towns.draw", "processes"},
    {"pictures.encode", "pictures.pairs", "pictures.download", "workers", "devices"},
    {"pictures.jobs"},
    {"pictures.cache", "pictures.halves", "pictures.shards", "towns.heights"},
    {"recipes"},
    {"dataset", "authors"},
    {"sources", "utils"},
    {"scores", "finetune", "teacher", "drawing_page"},
    {"features"},
    {"saving", "evaluate", "translate", "export", "compare"},
    {"report"},
    {"train"},
    {"benchmark"},
]


def all_imports(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(module: str) -> set[str]:
    return all_imports(module) & MODULES


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in all_imports(module)}


def test_every_module_has_its_layer():
    assert set().union(*LAYERS) == MODULES


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_nothing_imports_from_above(level: int):
    below = set().union(*LAYERS[:level]) if level else set()
    for module in LAYERS[level]:
        assert imported(module) <= below, module


def test_the_wings_and_the_networks_know_nothing_of_the_training():
    wings = {module for module in MODULES if module.startswith(WINGS)}
    for module in wings:
        assert imported(module) <= wings | {"disk", "progress"}, module
        assert "torch" not in packages(module), module
    for module in ("disk", "scripts", "config"):
        assert "torch" not in packages(module), module
    assert not imported("generator")
    assert imported("discriminator") == {"generator"}


def test_importing_does_nothing(tmp_path: Path):
    code = """
import socket, torch, urllib.request
def refuse(*a, **k): raise SystemExit("asked a server")
urllib.request.urlopen = socket.socket.connect = socket.getaddrinfo = refuse
before = torch.get_rng_state()
import train
assert torch.equal(before, torch.get_rng_state())
"""
    environment = {"PYTHONPATH": str(ROOT)}  # without what keeps albumentations silent
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())
