from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY
from nbclient import NotebookClient

from config import Config
from train import train


def test_the_notebook_runs(towns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(Config(dataset=str(towns), name="small", **TINY))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "quickstart.ipynb", as_version=4)
    notebook.cells[1].source = 'checkpoint = "checkpoints/small/generator.pt"'
    options = {"timeout": 120, "kernel_name": "python3"}
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
