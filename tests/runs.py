"""What a run left behind, to be compared."""

import csv
from pathlib import Path

import torch

CLOCK = {"seconds", "pictures_per_second"}


def results(name: str) -> tuple[dict, list[dict], dict[str, bytes]]:
    """Return weights, metrics without the clock, and pictures of a run in the working folder."""
    state = torch.load(f"checkpoints/{name}/latest.pt", weights_only=True)
    table = Path(f"evaluation/{name}/metrics.csv")
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [{k: v for k, v in r.items() if k not in CLOCK} for r in csv.DictReader(lines)]
    pictures = {
        path.name: path.read_bytes()
        for path in Path("evaluation", name).glob("*.png")
        if path.name != "curves.png"
    }
    return state, rows, pictures


def assert_same(first: object, second: object) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds", "config"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second
