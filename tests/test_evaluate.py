import math

import numpy as np
import pytest
import torch
from torch import nn

from evaluate import evaluate, gradient_energy, nearest_class, score_picture
from palettes import TOWNS

COLOURS = np.array(list(TOWNS.values()))


def label_picture(classes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(COLOURS[classes], -1, 0)).float()[None] / 127.5 - 1


def test_a_perfect_output():
    y = label_picture(np.random.default_rng(0).integers(0, 6, (32, 32)))
    scores = score_picture(y.clone(), y, TOWNS)
    assert (scores["l1"], scores["accuracy"], scores["miou"]) == (0, 1, 1)
    assert scores["ssim"] == pytest.approx(1, abs=1e-5)


def test_scores_by_their_formulas():
    true = np.zeros((32, 32), dtype=int)
    true[:, 16:] = 1
    found = true.copy()
    found[:, 16:20] = 2
    y, fake = label_picture(true), label_picture(found)
    scores = score_picture(fake, y, TOWNS)
    assert scores["accuracy"] == pytest.approx(1 - 4 / 32)
    assert scores["miou"] == pytest.approx((1 + 12 / 16 + 0) / 3)
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
