import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from report import COLUMNS, Report, sample_grid, to_image


def test_pictures_keep_their_values():
    picture = torch.tensor([-1.0, 0.0, 1.0, 2.0]).repeat(3, 4, 1)
    assert np.asarray(to_image(picture))[0, :, 0].tolist() == [0, 128, 255, 255]
    assert to_image(picture[:1]).mode == "L"


def test_a_grid_holds_every_picture_under_its_label():
    samples = [tuple(torch.full((3, 32, 48), value) for value in (-1.0, 0.0, 1.0))] * 2
    grid = np.asarray(sample_grid(samples, "epoch 1"))
    colours, counts = np.unique(grid.reshape(-1, 3), axis=0, return_counts=True)
    area = dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True))
    assert area[(128, 128, 128)] >= 2 * 32 * 48
    assert area[(0, 0, 0)] >= 2 * 32 * 48


def test_going_on_drops_the_rows_of_epochs_that_are_done_again(tmp_path: Path):
    report = Report(tmp_path, epochs_done=0)
    for epoch in (1, 2, 3):
        report.add_metrics({"epoch": epoch, "l1": 0.1 * epoch})
    again = Report(tmp_path, epochs_done=1)
    again.add_metrics({"epoch": 2, "l1": 0.5})
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["epoch"], row["l1"]) for row in rows] == [("1", "0.1"), ("2", "0.5")]
    assert rows[0]["val_l1"] == ""
    assert Image.open(tmp_path / "curves.png").width > 500
    assert list((tmp_path / "tensorboard").iterdir())
