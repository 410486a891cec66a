import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Each room, a folder or a file of the root, may import from those that its row names.
ALLOWED = {
    "config": "",
    "generator": "",
    "discriminator": "generator",
    "labels": "pictures",
    "losses": "config labels",
    "recipes": "config pictures",
    "dataset": "config machine pictures",
    "authors": "config generator recipes",
    "utils": "authors config generator labels machine pictures recipes",
    "machine": "config",
    "pictures": "machine",
    "samples": "machine pictures",
    "scoring": "dataset labels machine pictures",
    "web": "machine pictures scoring",
    "run": "config dataset discriminator generator labels losses machine pictures recipes samples"
    " scoring utils web",
    "train": "config dataset losses machine pictures recipes run scoring",
    "evaluate": "config dataset machine pictures recipes run scoring utils web",
    "compare": "machine pictures scoring web",
    "translate": "dataset machine pictures utils",
    "export": "config dataset generator machine pictures run utils web",
    "benchmark": "config dataset machine recipes run samples train utils",
}
FOLDERS = ("machine", "pictures", "samples", "run", "scoring", "web")
FILES = [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).glob("[!_]*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[0]


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


def circle(arrows: dict[str, set[str]]) -> set[str]:
    """Return what is left once all is taken away that imports nothing of what is left."""
    left = dict(arrows)
    while free := [name for name, to in left.items() if not to & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def test_every_module_has_its_room():
    assert {room_of(module) for module in MODULES} == ALLOWED.keys()


@pytest.mark.parametrize("room", ALLOWED)
def test_each_room_imports_only_what_it_may(room: str):
    for module in (m for m in MODULES if room_of(m) == room):
        found = {room_of(name) for name in imported(module)}
        assert found <= {room, *ALLOWED[room].split()}, module


def test_no_circle_between_modules_nor_between_rooms():
    assert not circle({module: imported(module) for module in MODULES})
    rooms: dict[str, set[str]] = {}
    for module in MODULES:
        found = {room_of(name) for name in imported(module)} - {room_of(module)}
        rooms.setdefault(room_of(module), set()).update(found)
    assert not circle(rooms)


def test_the_root_shows_the_algorithm_and_its_tasks():
    assert len([module for module in MODULES if "." not in module]) <= 15


def test_files_and_pages_know_no_torch():
    for module in MODULES:
        if room_of(module) in ("pictures", "samples", "web", "config", "recipes"):
            assert "torch" not in packages(module), module


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
