import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, script
from PIL import Image
from torch import nn
from torchvision.models import alexnet

from config import Config
from evaluate import (
    FixedMarks,
    Lpips,
    class_scores,
    count_classes,
    evaluate,
    gradient_energy,
    majority_scores,
    nearest_class,
    score_checkpoint,
    score_picture,
)
from pictures.palettes import MAPS, TOWNS
from train import train

COLOURS = np.array(list(TOWNS.values()))


def label_bytes(classes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(COLOURS[classes], -1, 0)).byte()[None]


def label_picture(classes: np.ndarray) -> torch.Tensor:
    return label_bytes(classes).float() / 127.5 - 1


def test_a_perfect_output():
    y = label_picture(np.random.default_rng(0).integers(0, 6, (32, 32)))
    scores = score_picture(y.clone(), y)
    assert scores["l1"] == 0
    assert scores["ssim"] == pytest.approx(1, abs=1e-5)
    classes = class_scores(count_classes(y.clone(), y, TOWNS), TOWNS)
    assert classes == {"accuracy": 1, "class_accuracy": 1, "miou": 1}


def test_scores_by_their_formulas():
    true = np.zeros((32, 32), dtype=int)
    true[:, 16:] = 1
    found = true.copy()
    found[:, 16:20] = 2
    y, fake = label_picture(true), label_picture(found)
    classes = class_scores(count_classes(fake, y, TOWNS), TOWNS)
    assert classes["accuracy"] == pytest.approx(1 - 4 / 32)
    assert classes["class_accuracy"] == pytest.approx((1 + 12 / 16) / 2)
    assert classes["miou"] == pytest.approx((1 + 12 / 16 + 0) / 3)
    assert "merged_accuracy" not in classes
    scores = score_picture(fake, y)
    difference = (fake - y).double().numpy()
    assert scores["l1"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    expected = -10 * math.log10(np.square(difference / 2).mean())
    assert scores["psnr"] == pytest.approx(expected, rel=1e-4)


def test_nearest_class():
    picture = label_picture(np.array([[0, 1, 2], [3, 4, 5]])) + 0.05
    assert nearest_class(picture, TOWNS).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_sharpness_falls_with_blur_and_is_one_for_the_target():
    batch = torch.randint(0, 255, (1, 6, 32, 32), dtype=torch.uint8)
    batch[:, :3] = batch[:, 3:]
    options = {"input_nc": 3, "device": torch.device("cpu")}
    options["autocast"] = torch.autocast("cpu", enabled=False)
    same = evaluate(nn.Identity(), [batch], **options)
    blurred = evaluate(nn.AvgPool2d(3, 1, 1), [batch, batch], **options)
    assert same["sharpness"] == pytest.approx(1)
    assert blurred["sharpness"] < 0.3
    assert "accuracy" not in same


def test_gradient_energy_of_a_ramp():
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]
    assert gradient_energy(ramp) == 1


def test_classes_are_scored_over_the_pixels_of_all_pictures():
    block, river = np.zeros((16, 16), dtype=int), np.zeros((16, 16), dtype=int)
    river[:, 8:] = 5
    batches = [
        torch.cat([label_bytes(found), label_bytes(true)], dim=1)
        for found, true in [(block, block), (block, river)]
    ]
    options = {"input_nc": 3, "device": torch.device("cpu")}
    options["autocast"] = torch.autocast("cpu", enabled=False)
    scores = evaluate(nn.Identity(), batches, palette=TOWNS, **options)
    assert scores["accuracy"] == pytest.approx(3 / 4)
    # Over the pictures it would be (1 + (1/2 + 0) / 2) / 2.
    assert scores["miou"] == pytest.approx((3 / 4 + 0) / 2)


def test_land_and_built_up_are_one_class_in_the_merged_accuracy():
    counts = torch.zeros(7, 7, dtype=torch.long)
    for true, found in zip([0, 0, 1, 2], [1, 0, 0, 0], strict=True):
        counts[true, found] += 1
    scores = class_scores(counts, MAPS)
    assert scores["accuracy"] == pytest.approx(1 / 4)
    assert scores["merged_accuracy"] == pytest.approx(3 / 4)


def test_the_majority_class():
    counts = torch.zeros(6, 6, dtype=torch.long)
    counts[0, 0] = 2
    counts[2, 1] = 6
    scores = majority_scores(counts, TOWNS)
    assert scores["class"] == list(TOWNS)[2]
    assert scores["accuracy"] == pytest.approx(0.75)
    assert scores["miou"] == pytest.approx((0.75 + 0) / 2)


def test_fixed_marks():
    torch.manual_seed(0)
    mark = torch.randn(1, 3, 64, 64)
    different, same, half = FixedMarks(), FixedMarks(), FixedMarks()
    for _ in range(40):
        noise = torch.randn(1, 3, 64, 64)
        different.add(noise)
        same.add(mark)
        half.add((mark + noise) / math.sqrt(2))
    assert different.value() == pytest.approx(0, abs=0.01)
    assert same.value() == pytest.approx(1)
    assert half.value() == pytest.approx(0.5, abs=0.02)
    assert math.isnan(FixedMarks().value())


def test_lpips_only_where_its_weights_lie(
    towns: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    train(Config(dataset=str(towns), name="a", output_nc=1, **TINY))
    monkeypatch.setenv("TORCH_HOME", "cache")
    weights = Path("cache/hub/checkpoints/alexnet-owt-7be5be79.pth")
    checkpoint = Path("checkpoints/a/generator.pt")
    assert "lpips" not in score_checkpoint(checkpoint)
    assert f"as {weights}" in capsys.readouterr().out

    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), weights)
    assert 0 < score_checkpoint(checkpoint)["lpips"] < 1
    picture = torch.rand(1, 1, 64, 64)
    assert Lpips(torch.device("cpu"))(picture, picture) == 0

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

    back = score_checkpoint(
        Path("checkpoints/back/generator.pt"), reader=Path("checkpoints/towns/latest.pt")
    )
    assert "accuracy" not in back
    # What the reader reads from the real pictures is what it scores as a generator.
    assert back["reader_on_targets"]["accuracy"] == pytest.approx(summary["accuracy"])
    assert 0 <= back["reader_on_outputs"]["miou"] <= 1
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
    names = {path.name for path in Path("evaluation/a").glob("scores*")}
    assert names == {"scores_set.v1_all.csv", "scores_set.v1_all.json"}


def test_what_was_trained_on_is_not_scored_as_validation(towns: Path, tmp_path: Path):
    shutil.copytree(towns / "train", tmp_path / "flat")
    if sys.platform == "linux":  # other systems have no such names
        os.rename("flat/0001.png", b"flat/\xff.png")
    train(Config(dataset="flat", val_fraction=0.5, keep_generators=1, **TINY))
    summary = score_checkpoint(Path("checkpoints/flat/generator.pt"))
    typed = score_checkpoint(Path("checkpoints/flat/generator_001.pt"), dataset=f"{tmp_path}/flat")
    assert typed["pictures"] == summary["pictures"] == 4
    names = {path.name for path in Path("evaluation/flat").glob("scores*.csv")}
    assert names == {"scores_val.csv", "scores_generator_001_val.csv"}
    other = score_checkpoint(Path("checkpoints/flat/generator.pt"), split="train")
    listed = [Path(f"evaluation/flat/scores_{s}.csv").read_text() for s in ("train", "val")]
    assert other["pictures"] == 4
    assert sys.platform != "linux" or r"\udcff" in "".join(listed)


def test_two_folders_that_were_named_are_not_taken_for_labels(towns: Path, tmp_path: Path):
    for half, side in (("A", 0), ("B", 64)):
        (tmp_path / "towns" / half).mkdir(parents=True)
        for path in (towns / "train").iterdir():
            picture = Image.open(path).crop((side, 0, side + 64, 64))
            picture.save(tmp_path / "towns" / half / path.name)
    folders = {"input_dir": "towns/B", "target_dir": "towns/A"}
    train(Config(**folders, **TINY))
    photo = Path("checkpoints/towns/generator.pt")
    assert "accuracy" not in score_checkpoint(photo)
    with pytest.raises(ValueError, match="one folder called towns, maps or facades"):
        score_checkpoint(photo, reader=photo)


def test_a_missing_checkpoint_ends_in_one_message():
    result = script("evaluate.py", "checkpoints/none/generator.pt")
    assert result.returncode == 2
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr
