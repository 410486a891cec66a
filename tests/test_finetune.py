import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_authors import save, unet

from config import Config
from machine.devices import choose_machine
from recipes import known_sides, resolve
from run.finetune import start_from
from run.state import TrainingState, new_state
from train import train
from utils import Facts, load_generator


def fresh_state(**settings: object) -> TrainingState:
    config = resolve(Config(**TINY | {"dataset": "x", "seed": 1} | settings))[0]
    return new_state(config, known_sides(config), choose_machine("cpu", "fp32"))


def started(state: TrainingState, path: object) -> str:
    config, norm = Config(dataset="x", init_from=str(path)), state.generator.norm
    ngf = state.generator.encoder[0][1].out_channels
    return start_from(state, replace(config, ngf=ngf, norm=norm))


def differing(first: torch.nn.Module, second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, t in first.state_dict().items() if not torch.equal(t, second[name])]


@pytest.fixture
def trained(towns: Path) -> dict:
    train(Config(dataset=str(towns), name="a", **TINY | {"n_epochs": 1, "n_epochs_decay": 0}))
    return torch.load("checkpoints/a/latest.pt", weights_only=True)


def test_a_new_run_starts_from_both_networks(trained: dict, towns: Path):
    state = fresh_state()
    line = started(state, "checkpoints/a/latest.pt")
    assert not differing(state.generator, trained["average"])
    assert not differing(state.average, trained["average"])
    assert not differing(state.discriminator, trained["discriminator"])
    assert "discriminator is from there, too" in line
    again = fresh_state()
    assert "discriminator is new" in started(again, "checkpoints/a/generator.pt")
    assert not differing(again.generator, trained["average"])


def test_other_sizes_and_channels_draw_only_what_they_must(trained: dict):
    before = trained["average"]
    larger = fresh_state(crop_size=64, load_size=72)
    line = started(larger, "checkpoints/a/generator.pt")
    weights = larger.generator.state_dict()
    assert torch.equal(weights["encoder.1.1.weight"], before["encoder.1.1.weight"])
    assert torch.equal(weights["decoder.2.1.weight"], before["decoder.1.1.weight"])
    assert "encoder level 3" in line and "encoder level 1" not in line
    grey = fresh_state(input_nc=1)
    line = started(grey, "checkpoints/a/latest.pt")
    sees_input = ("encoder.0.1.weight", "refinement.0.weight")
    differ = differing(grey.generator, before | dict.fromkeys(sees_input, torch.zeros(1)))
    assert differ == [*sees_input]
    said = "drawn anew: encoder level 1 1.weight, refinement.0.weight; the discriminator is new"
    assert said in line


def test_a_generator_of_classes_can_learn_colours(towns: Path):
    classes = fresh_state(dataset="towns")
    assert not classes.generator.tanh
    config = resolve(Config(**TINY | {"dataset": "towns"}))[0]
    content = {"generator": classes.generator.state_dict()}
    torch.save(content | Facts(config, known_sides(config)).as_saved(), "classes.pt")
    state = fresh_state()
    line = started(state, "classes.pt")
    assert "drawn anew: refinement.2.weight, refinement.2.bias; the disc" in line
    again = fresh_state(dataset="towns")
    assert "drawn anew" not in started(again, "classes.pt")


def test_the_authors_file_is_a_start():
    path = save(unet(6, 4, "batch").state_dict())
    state = fresh_state(recipe="paper", crop_size=64, load_size=72, norm="batch")
    assert started(state, str(path)) == f"Starting from {path}; the discriminator is new."
    assert not differing(state.generator, load_generator(path, "cpu").generator.state_dict())


def test_what_fits_nowhere_is_refused_with_the_settings_that_do(trained: dict):
    with pytest.raises(ValueError, match="--ngf 4 --norm instance"):
        started(fresh_state(ngf=6), "checkpoints/a/generator.pt")


def test_the_command_line_starts_from_a_file(
    trained: dict, towns: Path, capsys: pytest.CaptureFixture[str]
):
    config = Config(dataset=str(towns), name="b", init_from="checkpoints/a/latest.pt", **TINY)
    train(replace(config, lr=1e-12, n_epochs=1, n_epochs_decay=0))
    assert re.search(r"Starting from checkpoints.a.latest\.pt", capsys.readouterr().out)
    weights = torch.load("checkpoints/b/latest.pt", weights_only=True)["generator"]
    torch.testing.assert_close(weights, trained["average"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="name of its own"):
        train(replace(config, name="a", dataset=str(towns), ngf=6))
