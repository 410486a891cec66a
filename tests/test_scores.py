import math

import numpy as np
import pytest
import torch
from torch import nn

from labels import nearest_class
from machine.devices import Machine
from pictures.palettes import MAPS, TOWNS
from pictures.sides import Sides
from scoring.scores import (
    GRID_PERIODS,
    Classes,
    FixedMarks,
    class_scores,
    count_classes,
    gradient_energy,
    grid_energy,
    score_all,
    score_picture,
)
from scoring.tables import over_targets

FP32 = Machine(torch.device("cpu"), torch.float32)
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
    colours = torch.tensor(list(TOWNS.values())) / 127.5 - 1
    assert nearest_class(picture, colours).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_sharpness_falls_with_blur_and_is_one_for_the_target():
    batch = torch.randint(0, 255, (1, 6, 32, 32), dtype=torch.uint8)
    batch[:, :3] = batch[:, 3:]
    _, same = score_all(nn.Identity(), [batch], [], sides=Sides(), machine=FP32)
    _, blurred = score_all(nn.AvgPool2d(3, 1, 1), [batch, batch], [], sides=Sides(), machine=FP32)
    assert same["sharpness"] == pytest.approx(1)
    assert blurred["sharpness"] < 0.3
    assert "accuracy" not in same


def test_gradient_energy_of_a_ramp():
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]
    assert gradient_energy(ramp) == 1


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_grid_shows_at_its_period(period: int):
    torch.manual_seed(0)
    y = torch.randn(1, 3, 64, 96) * 0.1
    wave = torch.cos(torch.arange(96) * 2 * math.pi / period) * 0.2
    rows = [score_picture(y + wave, y), score_picture(2 * y, y)]
    first, second = map(over_targets, rows)
    for other in GRID_PERIODS:
        assert second[f"grid_{other}"] == pytest.approx(4, rel=1e-3)
        if other == period:
            assert first[f"grid_{other}"] > 20
        else:
            assert first[f"grid_{other}"] == pytest.approx(1, abs=0.1)
    # Sums over pictures, not the mean of their ratios.
    rows[0]["target_grid_2"], rows[1]["target_grid_2"] = 3.0, 1.0
    rows[0]["grid_2"], rows[1]["grid_2"] = 3.0, 5.0
    batches = [torch.zeros(1, 6, 32, 32, dtype=torch.uint8)] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoring.scores.score_picture", lambda fake, y: rows.pop(0))
        _, scores = score_all(nn.Identity(), batches, [], sides=Sides(), machine=FP32)
    assert scores["grid_2"] == pytest.approx(8 / 4)
    assert grid_energy(y + wave.roll(1) + 5, period) == pytest.approx(
        grid_energy(y + wave, period), rel=0.5
    )


def test_classes_are_scored_over_the_pixels_of_all_pictures():
    block, river = np.zeros((16, 16), dtype=int), np.zeros((16, 16), dtype=int)
    river[:, 8:] = 5
    batches = [
        torch.cat([label_bytes(found), label_bytes(true)], dim=1)
        for found, true in [(block, block), (block, river)]
    ]
    _, scores = score_all(nn.Identity(), batches, [Classes(TOWNS)], sides=Sides(), machine=FP32)
    assert {"l1", "psnr", "ssim", "sharpness", "class_accuracy"} < scores.keys()
    assert scores["accuracy"] == pytest.approx(3 / 4)
    # Over the pictures it would be (1 + (1/2 + 0) / 2) / 2.
    assert scores["miou"] == pytest.approx((3 / 4 + 0) / 2)


def test_the_majority_class():
    majority = Classes(TOWNS)
    majority.counts[0, 0] = 2
    majority.counts[2, 1] = 6
    scores = majority.total()["majority"]
    assert scores["class"] == list(TOWNS)[2]
    assert scores["accuracy"] == pytest.approx(0.75)
    assert scores["miou"] == pytest.approx((0.75 + 0) / 2)


def test_land_and_built_up_are_one_class_in_the_merged_accuracy():
    counts = torch.zeros(7, 7, dtype=torch.long)
    for true, found in zip([0, 0, 1, 2], [1, 0, 0, 0], strict=True):
        counts[true, found] += 1
    scores = class_scores(counts, MAPS)
    assert scores["accuracy"] == pytest.approx(1 / 4)
    assert scores["merged_accuracy"] == pytest.approx(3 / 4)


def test_fixed_marks():
    torch.manual_seed(0)
    mark = torch.randn(1, 3, 64, 64)
    marks, of_half = FixedMarks(), FixedMarks()
    for _ in range(40):
        noise = torch.randn(1, 3, 64, 64)
        marks(noise, mark, noise)
        of_half(noise, (mark + noise) / math.sqrt(2), mark)
    measured = marks.total()
    assert measured["fixed_marks"] == pytest.approx(1)
    assert measured["fixed_marks_of_targets"] == pytest.approx(0, abs=0.01)
    assert of_half.total()["fixed_marks"] == pytest.approx(0.5, abs=0.02)
    single = FixedMarks()
    single(mark, mark, mark)
    assert math.isnan(single.total()["fixed_marks"])


def test_a_generator_at_test_time_under_autocast():
    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x)
            return x

    asked: list = []
    batch = torch.zeros(1, 6, 32, 32, dtype=torch.uint8)
    machine = Machine(torch.device("cpu"), torch.bfloat16)
    rows, _ = score_all(Asking(), [batch, batch], [], sides=Sides(), machine=machine)
    assert asked == [torch.bfloat16] * 2
    assert [row["l1"] for row in rows] == [0, 0]
