import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY
from nbclient import NotebookClient

from config import Config
from train import train


def test_a_checkpoint_in_another_project(towns: Path, tmp_path: Path):
    train(Config(dataset=str(towns), name="small", **TINY | {"n_epochs": 1}))
    for name in ("utils", "config", "generator"):
        Path(f"{name}.py").write_text("raise RuntimeError('the other one')")
    # As docs/using.md says.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils import load_generator\n"
    code += "import torch; generator = load_generator('checkpoints/small/generator.pt')\n"
    code += "print(generator(torch.zeros(1, 3, 32, 32)).shape)"
    Path("mine.py").write_text(code)
    done = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True)
    assert done.stdout == "torch.Size([1, 3, 32, 32])\n", done.stderr


@pytest.mark.parametrize(
    ("working", "project", "n_cells"),
    [
        ("content", "content/pix2pix", 5),  # of which the last one loads the generator
        ("kaggle/working", "kaggle/input/pix2pix", None),
    ],
    ids=["colab", "kaggle"],
)
def test_the_notebook_runs_where_colab_and_kaggle_have_the_project(
    towns: Path,
    tmp_path: Path,
    working: str,
    project: str,
    n_cells: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    for folder in (Path(working), Path(project).parent):
        folder.mkdir(parents=True, exist_ok=True)
    Path(project).symlink_to(ROOT)
    monkeypatch.chdir(working)
    train(Config(dataset=str(towns), name="small", **TINY))
    notebook = nbformat.read(ROOT / "quickstart.ipynb", as_version=4)
    notebook.cells = notebook.cells[:n_cells]
    for cell in notebook.cells:
        cell.source = cell.source.replace('"/', f'"{tmp_path}/').replace("/towns/", "/small/")
    options = {"timeout": 120, "kernel_name": "python3"}
    NotebookClient(notebook, resources={"metadata": {"path": "."}}, **options).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    if n_cells is None:
        assert (kinds.count("image/png"), kinds.count("image/gif")) == (2, 1)
    else:
        printed = "".join(output.get("text", "") for output in outputs)
        assert "crop_size=32" in printed
