import csv
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, script
from PIL import Image
from torchvision.models import alexnet

from config import Config
from evaluate import main, score_checkpoints
from machine.stopping import run_script
from scoring.distances import Lpips
from train import train


def score_checkpoint(checkpoint: Path, **options: object) -> dict:
    return score_checkpoints((checkpoint,), **options)[0]


@pytest.fixture(autouse=True)
def without_feature_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second a test; the script, in a process of its own, has it."""
    monkeypatch.setattr("evaluate.score_network", lambda device: None)


def test_lpips_only_where_its_weights_lie(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    train(Config(dataset=str(towns), name="a", output_nc=1, **TINY))
    monkeypatch.setenv("TORCH_HOME", "cache")
    weights = Path("cache/hub/checkpoints/alexnet-owt-7be5be79.pth")
    checkpoint = Path("checkpoints/a/generator.pt")
    assert "lpips" not in score_checkpoint(checkpoint)
    assert f"as {weights} to have it" in capsys.readouterr().out

    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), weights)
    assert 0 < score_checkpoint(checkpoint)["lpips"] < 1
    picture = torch.rand(1, 1, 64, 64)
    assert Lpips(torch.device("cpu"))(picture, picture, picture) == {"lpips": 0}

    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79\.pth is damaged"):
        score_checkpoint(checkpoint)


def test_the_script_gives_the_numbers_of_the_training(towns: Path, tmp_path: Path):
    folder = tmp_path / "towns"
    shutil.copytree(towns, folder)
    train(Config(dataset=str(folder), **TINY))
    train(Config(dataset=str(folder), name="back", direction="BtoA", **TINY))
    with open("evaluation/towns/metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    result = script("evaluate.py", "checkpoints/towns/generator.pt")
    assert result.returncode == 0, result.stderr
    summary = json.loads(Path("evaluation/towns/scores_val.json").read_text())
    for name in ("l1", "psnr", "ssim", "sharpness", "accuracy", "miou"):
        assert f"{summary[name]:.7g}" == last[f"val_{name}"], name
    with open("evaluation/towns/scores_val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["0001", "0002"]
    assert summary["l1"] == pytest.approx(sum(float(row["l1"]) for row in rows) / 2)
    if find_spec("efficientnet_lite_pytorch"):
        assert 0 < summary["distance_efficientnet_lite2"] < 2
    strips = sorted(Path("evaluation/towns/pictures_val").glob("*.png"))
    assert [path.name for path in strips] == ["00001.png", "00002.png"]
    pair = np.asarray(Image.open(folder / "val" / "0001.png").resize((64, 32), Image.BOX))
    strip = np.asarray(Image.open(strips[0]))
    assert strip.shape == (32, 96, 3)
    assert np.abs(strip[:, :32].astype(int) - pair[:, :32]).mean() < 2
    assert np.abs(strip[:, 64:].astype(int) - pair[:, 32:]).mean() < 2
    difference = np.abs(strip[:, 32:64].astype(float) - strip[:, 64:]).mean() / 127.5
    assert difference == pytest.approx(float(rows[0]["l1"]), abs=0.01)

    back = score_checkpoint(
        Path("checkpoints/back/generator.pt"), reader=Path("checkpoints/towns/latest.pt")
    )
    assert "accuracy" not in back
    # What the reader reads from the real pictures is what it scores as a generator.
    assert back["reader_on_targets"]["accuracy"] == pytest.approx(summary["accuracy"])
    assert 0 <= back["reader_on_outputs"]["miou"] <= 1
    assert back["reader_accuracy"] == pytest.approx(back["reader_on_outputs"]["accuracy"])
    with pytest.raises(ValueError, match="trained the other way round"):
        score_checkpoint(
            Path("checkpoints/back/generator.pt"), reader=Path("checkpoints/back/latest.pt")
        )


def test_another_data_set_is_scored_whole_under_its_own_name(towns: Path, tmp_path: Path):
    train(Config(dataset=str(towns), name="a", **TINY))
    flat = tmp_path / "set.v1"
    shutil.copytree(towns / "train", flat)
    summary = score_checkpoint(Path("checkpoints/a/generator.pt"), dataset=f"{flat}/")
    assert summary["pictures"] == 8
    back = score_checkpoint(
        Path("checkpoints/a/generator.pt"), dataset=f"{flat}/", direction="BtoA"
    )
    assert back["l1"] != summary["l1"]
    with tarfile.open("s-0.tar", "w") as shard:
        shard.add(flat, "")
    packed = score_checkpoint(Path("checkpoints/a/generator.pt"), dataset="s-*.tar")
    assert packed["l1"] == pytest.approx(summary["l1"])
    names = {path.name for path in Path("evaluation/a").glob("scores*.json")}
    assert names == {"scores_set.v1_all.json", "scores_s-_.tar_all.json"}


def test_what_was_trained_on_is_not_scored_as_validation(towns: Path, tmp_path: Path):
    shutil.copytree(towns / "train", tmp_path / "flat")
    if sys.platform == "linux":  # other systems have no such names
        os.rename("flat/0001.png", b"flat/\xff.png")
    train(Config(dataset="flat", val_fraction=0.5, keep_generators=1, **TINY))
    two = [Path("checkpoints/flat", f"{name}.pt") for name in ("generator", "generator_001")]
    score_checkpoint(two[0])
    summaries = score_checkpoints(two, dataset=f"{tmp_path}/flat")
    assert [summary["pictures"] for summary in summaries] == [4, 4]
    assert summaries[0]["l1"] != summaries[1]["l1"]
    assert Path("evaluation/flat_vs_flat_generator_001_val/index.html").is_file()
    names = {path.name for path in Path("evaluation/flat").glob("scores*.csv")}
    assert names == {"scores_val.csv", "scores_generator_001_val.csv"}
    with pytest.raises(ValueError, match="another checkpoint are of a run named flat"):
        score_checkpoints((two[0], two[0].with_name("latest.pt")))
    other = score_checkpoint(two[0], split="train")
    listed = [Path(f"evaluation/flat/scores_{s}.csv").read_text() for s in ("train", "val")]
    assert other["pictures"] == 4
    assert sys.platform != "linux" or r"\udcff" in "".join(listed)


def test_two_folders_that_were_named_are_not_taken_for_labels(towns: Path, tmp_path: Path):
    for half, side in (("A", 0), ("B", 64)):
        (tmp_path / "towns" / half).mkdir(parents=True)
        for path in (towns / "train").iterdir():
            picture = Image.open(path).crop((side, 0, side + 64, 64))
            picture.save(tmp_path / "towns" / half / path.name)
    folders = {"a": "towns/B", "b": "towns/A"}
    train(Config(**folders, **TINY))
    photo = Path("checkpoints/towns/generator.pt")
    assert "accuracy" not in score_checkpoint(photo)
    with pytest.raises(ValueError, match="was not trained to make label pictures"):
        score_checkpoint(photo, reader=photo)


@pytest.mark.parametrize(("precision", "same"), [(None, True), ("bf16", True), ("fp32", False)])
def test_precision_is_that_of_the_training_or_as_typed(
    towns: Path, precision: str | None, same: bool
):
    train(Config(dataset=str(towns), name="a", **TINY | {"precision": "bf16", "n_epochs": 1}))
    summary = score_checkpoint(Path("checkpoints/a/generator.pt"), precision=precision)
    with open("evaluation/a/metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (f"{summary['l1']:.7g}" == last["val_l1"]) == same


def test_what_cannot_be_is_refused_before_the_work(towns: Path, monkeypatch: pytest.MonkeyPatch):
    train(Config(dataset=str(towns), name="a", **TINY))
    checkpoint = Path("checkpoints/a/generator.pt")
    score_checkpoint(checkpoint, pictures=300_000_000)
    assert len(list(Path("evaluation/a/pictures_val").glob("*.png"))) == 2
    with pytest.raises(ValueError, match="pictures is -1"):
        score_checkpoint(checkpoint, pictures=-1)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": 1, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="works in one process; start it without torchrun"):
        main()


def test_folders_that_cannot_be_written_to_are_named(
    towns: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    train(Config(dataset=str(towns), name="a", **TINY))
    checkpoint = Path("checkpoints/a/generator.pt")
    for pictures, name in ((0, r"evaluation/a/scores_val\.csv"), (1, r"evaluation/a/.*00001\.png")):
        with (
            file_size_limit(10),
            pytest.raises(OSError, match=f"(no space left|too large).*{name}"),
        ):
            score_checkpoint(checkpoint, pictures=pictures)
    assert not list(Path("evaluation/a").glob("*scores*"))
    shutil.rmtree("evaluation/a")
    Path("evaluation/a").symlink_to("nowhere")
    monkeypatch.setattr("evaluate.score_all", None)  # found before the work
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(checkpoint)])
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "evaluation/a is a link to nowhere, which does not exist" in message
    assert "Traceback" not in message
    with pytest.raises(OSError, match=r"none/generator\.pt does not exist"):
        score_checkpoint(Path("checkpoints/none/generator.pt"))


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Let writing more than that to any file fail, much as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
