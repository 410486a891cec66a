from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from runs import assert_same, results
from test_finetune import differing, fresh_state

from config import Config
from labels import SCORE_SCALE
from losses import class_loss, loss_weights
from machine.devices import choose_machine
from recipes import known_sides, resolve
from run.state import TrainingState, new_state
from train import train, train_step
from utils import Facts, load_generator


def saved(**settings: object) -> str:
    """Save a generator that has learned nothing, and return where."""
    config = settled(**settings)
    weights = fresh_state(**settings).generator.state_dict()
    content = {"generator": weights} | Facts(config, known_sides(config)).as_saved()
    torch.save(content, "teacher.pt")
    return "teacher.pt"


def settled(**settings: object) -> Config:
    return resolve(Config(**{"dataset": "x"} | TINY | settings))[0]


def taught_state(**settings: object) -> TrainingState:
    """A new student, with the teacher that the settings name."""
    config = settled(**settings)
    teacher = load_generator(config.teacher, device="cpu")
    return new_state(config, known_sides(config), choose_machine("cpu", "fp32"), teacher)


@pytest.mark.parametrize("dataset", ["x", "towns"])  # whose targets are colours, classes
def test_who_does_as_its_teacher_has_nothing_to_learn(dataset: str):
    state = taught_state(dataset=dataset, teacher=saved(dataset=dataset, seed=2))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    stranger = state.teacher(x, state.generator(x))

    state.generator.load_state_dict(state.teacher.generator.state_dict())
    for translate in state.teacher.adapters:
        torch.nn.init.dirac_(translate.weight)
        torch.nn.init.zeros_(translate.bias)
    fake = state.generator(x)
    same = state.teacher(x, fake)
    chances = (SCORE_SCALE * fake).softmax(dim=1)
    least = 0 if dataset == "x" else class_loss(fake, chances).item()
    assert same["loss_maps"].item() < 1e-10
    assert same["loss_taught"].item() == pytest.approx(least, abs=1e-6)
    assert stranger["loss_maps"] > 0.1
    assert stranger["loss_taught"] > same["loss_taught"]


def test_a_teacher_gives_one_answer_whatever_noise_it_learned_with():
    state = taught_state(teacher=saved(recipe="paper"), recipe="paper")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    fake = state.generator(x)
    first, second = (state.teacher(x, fake)["loss_taught"] for _ in range(2))
    assert first == second


def test_a_step_teaches_what_the_teacher_makes_of_labels():
    settings = {"dataset": "towns", "direction": "BtoA", "labels": "input"}
    state = taught_state(teacher=saved(seed=2, **settings), **settings)
    x, y = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    seen = state.labels.encode_input(x)
    wanted = state.teacher(seen, state.generator(seen))
    config = settled(teacher="teacher.pt", **settings)
    losses = train_step(state, x, y, config, choose_machine("cpu", "fp32"))
    for name in ("loss_taught", "loss_maps"):
        assert losses[name].item() == pytest.approx(wanted[name].item(), rel=1e-5)
    weighed = loss_weights(config)
    assert (weighed["loss_taught"], weighed["loss_maps"]) == (config.lambda_l1, 10)


@pytest.mark.parametrize("gan_mode", ["vanilla", "none"])
def test_a_narrow_student_learns_and_goes_on_with_its_teacher(towns: Path, gan_mode: str):
    path = saved(dataset=str(towns))
    before = torch.load(path, weights_only=True)["generator"]
    settings = TINY | {"ngf": 2, "n_epochs_decay": 0, "gan_mode": gan_mode, "teacher": path}
    config = Config(dataset=str(towns), name="whole", **settings)
    train(config)
    train(replace(config, name="parts", n_epochs=1))
    Path(path).rename("kept.pt")  # the checkpoint holds the teacher
    train(replace(config, name="parts"))
    for whole, parts in zip(results("whole"), results("parts"), strict=True):
        assert_same(whole, parts)

    settings |= {"dataset": str(towns), "teacher": "kept.pt"}
    untaught, learned = taught_state(**settings).teacher, taught_state(**settings).teacher
    learned.load_state_dict(results("whole")[0]["teacher"])
    assert not differing(learned.generator, before)
    names = untaught.adapters.state_dict()
    assert differing(learned.adapters, names) == list(names)
    rows = results("whole")[1]
    assert float(rows[-1]["loss_maps"]) < float(rows[0]["loss_maps"])


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_size": 64, "load_size": 72},
        {"output_nc": 1},
        {"dataset": "towns"},
        {"direction": "BtoA"},
    ],
)
def test_who_does_something_else_cannot_teach(settings: dict):
    with pytest.raises(
        ValueError, match=r"teacher\.pt cannot teach .*: it has another .*above all --d"
    ):
        taught_state(teacher=saved(), **settings)
