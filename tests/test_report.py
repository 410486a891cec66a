import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from config import Config
from machine.devices import choose_machine
from machine.stopping import StopRequest
from recipes import known_sides, resolve
from run.report import FIRST_COLUMNS, Report, sample_grid, to_image
from run.sources import open_data
from run.state import new_state


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


@pytest.fixture
def report(towns: Path) -> Iterator[Report]:
    """A report of a run that has just begun, and its state as ``report.state``."""
    config = resolve(Config(dataset=str(towns), name="a", val_interval=99, **TINY))[0]
    machine = choose_machine("cpu", "fp32")
    state = new_state(config, known_sides(config), machine)
    report = Report(config, open_data(config, machine), machine, state, StopRequest())
    report.state = state
    with report:
        yield report


def add_epoch(report: Report, epoch: int, **means: float) -> list[dict[str, str]]:
    """Log an epoch of 8 steps with such mean losses, and return the table."""
    report.state.epoch, report.state.step = epoch - 1, 8
    report.state.totals = {name: torch.tensor(8 * value) for name, value in means.items()}
    report.add_epoch(report.state)
    with open("evaluation/a/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_going_on_drops_the_rows_of_epochs_that_are_done_again(report: Report):
    for epoch in (1, 2, 3):
        add_epoch(report, epoch, loss_d=0.5, l1=0.1 * epoch)
    report.state.epoch = 1
    again = Report(report.config, report.data, report.machine, report.state, StopRequest())
    again.state = report.state
    rows = add_epoch(again, 2, loss_d=0.5, l1=0.5, loss_new=7)
    assert [(row["epoch"], row["l1"], row["loss_new"]) for row in rows] == [
        ("1", "0.1", ""),
        ("2", "0.5", "7"),
    ]
    assert list(rows[0])[:6] == [*FIRST_COLUMNS, "loss_d"]
    assert list(rows[0]).index("val_l1") > list(rows[0]).index("loss_new")
    assert Image.open("evaluation/a/curves.png").width > 500
    assert list(Path("evaluation/a/tensorboard").iterdir())


@pytest.mark.parametrize(
    "table",
    ["epoch;l1\n1;0.5\n", 'epoch,l1\n1,"0,5"\n', "epoch,l1\n1,0.5,7\n", "epoch,l1\n1.5,2\n"],
)
def test_a_table_that_another_program_saved_is_refused_at_the_start(report: Report, table: str):
    Path("evaluation/a/metrics.csv").write_text(table)
    with pytest.raises(ValueError, match=r"metrics\.csv is not the table.*move it elsewhere"):
        Report(report.config, report.data, report.machine, report.state, StopRequest())


def test_a_log_file_gets_whole_lines_now_and_then(
    report: Report, capsys: pytest.CaptureFixture[str]
):
    for step in range(1, 9):
        report.state.step = step
        report.add_step(report.state, {"l1": torch.tensor(0.25)})
    assert capsys.readouterr().err == ""
    report.bar.start_t -= 99  # a minute later
    report.bar.last_print_t -= 99
    report.add_step(report.state, {"l1": torch.tensor(0.25)})
    line = capsys.readouterr().err
    assert "l1=0.25" in line and "epoch 1/3" in line
    assert line.count("\n") == 1 and "\r" not in line
