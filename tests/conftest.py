import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from towns.draw import draw_towns

ROOT = Path(__file__).resolve().parent.parent
# A network small enough for a test: the smallest crop, a few channels.
TINY = {
    "crop_size": 32,
    "load_size": 36,
    "ngf": 4,
    "ndf": 4,
    "n_epochs": 2,
    "n_epochs_decay": 1,
    "num_workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "n_samples": 2,
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
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )
