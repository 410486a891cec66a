import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import PHOTOS, TINY, flags, script
from reference import FOLDER, load_by_rule, picture
from runs import assert_same, results
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import train as training
from config import Config
from dataset import normalise
from losses import Losses, adversarial_loss, discriminator_loss
from machine.devices import Machine, choose_machine
from pictures.sides import Sides
from recipes import known_sides, resolve
from run.checkpoints import Checkpoints
from run.sources import open_data
from run.state import new_state
from train import batch_step, learning_rate, train, train_step

CPU = choose_machine("cpu", "fp32")


def test_three_steps_of_the_authors_model():
    config, _ = resolve(Config(dataset="x", recipe="paper", norm="batch", dropout="none"))
    state = new_state(config, known_sides(config), CPU)
    for network, kind in ((state.generator, "generator"), (state.discriminator, "discriminator")):
        network.double()
        load_by_rule(network, kind)
    expected = json.loads((FOLDER / "three_steps_vanilla_batch1.json").read_text())
    for step, row in enumerate(expected[:3]):
        x, y = picture(1, 3, 256, 0.3 * step), picture(1, 3, 256, 1 + 0.3 * step)
        losses = train_step(state, x, y, config, CPU)
        loss_d, loss_g_gan, l1 = (losses[name].item() for name in ("loss_d", "loss_g_gan", "l1"))
        assert loss_d == pytest.approx((row["D_real"] + row["D_fake"]) / 2, rel=1e-6)
        assert loss_g_gan == pytest.approx(row["G_GAN"], rel=1e-6)
        assert l1 * 100 == pytest.approx(row["G_L1"], rel=1e-6)
    sums = [
        sum(p.abs().sum().item() for p in network.parameters())
        for network in (state.generator, state.discriminator)
    ]
    assert sums[0] == pytest.approx(expected[3]["param_abs_sum_G"], rel=1e-6)
    assert sums[1] == pytest.approx(expected[3]["param_abs_sum_D"], rel=1e-6)


def test_losses_by_their_formulas():
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    log_d = -torch.log(torch.sigmoid(real)).mean()
    log_not = -torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), (log_d + log_not) / 2)
    torch.testing.assert_close(adversarial_loss(fake, True, "lsgan"), ((fake - 1) ** 2).mean())


def test_the_last_epoch_still_learns():
    config, _ = resolve(Config(dataset="x", n_epochs=2, n_epochs_decay=3, lr=0.4))
    rates = [learning_rate(config, epoch) for epoch in range(5)]
    assert rates == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1])


def test_overfits_four_pairs(towns: Path):
    learning = {"flip": False, "lr": 1e-3, "lambda_l1": 100.0}
    settings = TINY | {"load_size": 32, "ngf": 16, "ndf": 8} | learning
    config, _ = resolve(Config(dataset=str(towns), **settings))
    state, pairs = new_state(config, known_sides(config), CPU), open_data(config, CPU).train
    x, y = normalise(pairs.__getitems__([(0, index) for index in range(4)]), Sides())
    l1 = [train_step(state, x, y, config, CPU)["l1"].item() for _ in range(250)]
    assert l1[0] > 0.4
    assert sum(l1[-10:]) / 10 < 0.15


def test_a_run_writes_what_the_readme_says(towns: Path, capsys: pytest.CaptureFixture[str]):
    result = script("train.py", *flags(dataset=towns, name="a", keep_generators=2))
    assert result.returncode == 0, result.stderr
    assert "typed" in result.stdout
    assert "preset" in result.stdout or "paper" in result.stdout
    names = {path.name for path in Path("evaluation/a").iterdir()}
    outputs = {f"output_{n:03d}.png" for n in (1, 2, 3)}
    grids = {f"epoch_{n:03d}.png" for n in (1, 2, 3)}
    assert {
        "metrics.csv",
        "config.json",
        "curves.png",
        "index.html",
        "input.png",
        "target.png",
    } | outputs | grids <= names
    found = {path.name for path in Path("checkpoints/a").iterdir()}
    assert found == {"latest.pt", "previous.pt", "generator.pt", "generator_002.pt"}
    _, rows, _ = results("a")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert all(float(row["val_l1"]) > 0 for row in rows)
    train(Config(dataset=str(towns), name="a", **TINY | {"keep_generators": 2}))
    assert "finished" in capsys.readouterr().out


def test_grey_targets_of_a_paletted_set_have_no_classes(towns: Path, tmp_path: Path):
    shutil.copytree(towns, tmp_path / "towns")
    train(Config(dataset="towns", output_nc=1, **TINY))
    assert "val_accuracy" not in results("towns")[1][0]


def test_l1_alone_leaves_the_discriminator(towns: Path):
    config = Config(dataset=str(towns), name="l1", gan_mode="none", **TINY)
    train(config)
    state, rows, _ = results("l1")
    fresh = new_state(
        resolve(config)[0], known_sides(resolve(config)[0]), CPU
    ).discriminator.state_dict()
    assert_same(fresh, state["discriminator"])
    assert "loss_d" not in rows[0]
    assert math.isfinite(float(rows[0]["l1"]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_full_precision(towns: Path, precision: str):
    settings = TINY | {"n_epochs": 1, "n_epochs_decay": 0, "lr": 2e-4}
    config = Config(dataset=str(towns), name="full", **settings)
    train(config)
    train(replace(config, name=precision, precision=precision))
    full, mixed = float(results("full")[1][0]["l1"]), float(results(precision)[1][0]["l1"])
    assert mixed == pytest.approx(full, rel=0.02)
    assert mixed != full


def test_means_of_many_steps_in_half_precision_do_not_stand_still():
    config, _ = resolve(Config(dataset="x", **TINY))
    machine = choose_machine("cpu", "bf16")
    state = new_state(config, known_sides(config), machine)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    losses = train_step(state, x, x, config, machine)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    losses = train_step(state, x, x, replace(config, gan_mode="none"), machine)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_validation_does_not_touch_the_training(towns: Path):
    config = Config(dataset=str(towns), name="often", norm="batch", **TINY)
    train(config)
    train(replace(config, name="seldom", val_interval=99))
    often, seldom = results("often")[0], results("seldom")[0]
    assert_same(often, seldom)


READING_METHODS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"}
READING_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class MethodReads(TorchFunctionMode):
    """Notes what hands a tensor's content to Python: on a GPU each of these waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING_METHODS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class OperationReads(TorchDispatchMode):
    """Notes the same inside torch, whoever calls it: optimisers, the scaler, backward."""

    def __init__(self, *more: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.noted = (*READING_OPERATIONS, *more)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.noted:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "gan_mode"),
    [("fp32", "vanilla"), ("bf16", "lsgan"), ("fp16", "vanilla"), ("fp16", "none")],
)
def test_the_loop_reads_the_device_only_at_the_log_interval(
    towns: Path, monkeypatch: pytest.MonkeyPatch, precision: str, gan_mode: str
):
    methods, operations = MethodReads(), OperationReads()

    def watched(batches: Iterator[Tensor], stop: int) -> Iterator[Tensor]:
        with methods, operations:  # from the first batch of an epoch to the end of its last step
            yield from islice(batches, stop)

    monkeypatch.setattr(training, "islice", watched)
    monkeypatch.setattr(Checkpoints, "save_if_due", lambda self, state: None)
    settings = TINY | {"log_interval": 3, "precision": precision, "gan_mode": gan_mode}
    train(Config(dataset=str(towns), name="a", **settings))
    # 8 steps hold the third and the sixth.
    assert methods.names == ["tolist"] * 2 * 3
    assert operations.names == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"labels": "input", "direction": "BtoA"}, PHOTOS, {"gan_mode": "none"}],
    ids=str,
)
def test_a_step_copies_nothing_to_the_device_and_so_can_be_recorded(settings: dict):
    config, _ = resolve(Config(dataset="towns", **TINY | settings))
    sides = known_sides(config)
    step = batch_step(new_state(config, sides, CPU), sides, config, CPU)
    batch = torch.randint(0, 255, (1, 6, 32, 32), dtype=torch.uint8)
    step(batch)
    with OperationReads("lift_fresh") as operations:  # of a tensor made from Python's numbers
        step(batch)
    assert operations.names == []


def test_a_loss_is_added_in_one_place(towns: Path, monkeypatch: pytest.MonkeyPatch):
    losses, weights = training.target_losses, training.loss_weights

    def with_edges(output: Tensor, y: Tensor, config: Config) -> Losses:
        return losses(output, y, config) | {"loss_edges": (output - y).diff().abs().mean()}

    monkeypatch.setattr(training, "target_losses", with_edges)
    monkeypatch.setattr(training, "loss_weights", lambda c: weights(c) | {"loss_edges": 0.0})
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    monkeypatch.setattr(training, "loss_weights", lambda c: weights(c) | {"loss_edges": 10.0})
    train(replace(config, name="b"))
    unweighted, weighted = (results(name)[1] for name in ("a", "b"))
    assert all(float(row["loss_edges"]) > 0 for row in unweighted)
    assert [row["loss_edges"] for row in weighted] != [row["loss_edges"] for row in unweighted]


@pytest.mark.parametrize("gan_mode", ["vanilla", "none"])
def test_a_batch_in_parts_teaches_what_the_whole_does(gan_mode: str):
    whole, _ = resolve(Config(dataset="x", batch_size=4, gan_mode=gan_mode, **TINY))
    x, y = (torch.rand(4, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in range(2))
    states, losses = [], []
    for config in (whole, replace(whole, accumulate=2)):
        state = new_state(config, Sides(), CPU)
        for network in (state.generator, state.discriminator):
            network.double()
        losses.append([train_step(state, x, y, config, CPU) for _ in range(3)][-1])
        states.append(state)
    for networks in zip(*((s.generator, s.discriminator) for s in states), strict=True):
        for one, other in zip(*(n.parameters() for n in networks), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    torch.testing.assert_close(*losses)


def test_maps_that_are_computed_again_change_nothing():
    kept, _ = resolve(Config(dataset="x", recipe="paper", batch_size=2, **TINY))
    x, y = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
    states = [new_state(config, Sides(), CPU) for config in (kept, replace(kept, recompute=True))]
    for state in states:
        torch.manual_seed(1)  # the same noise: dropout is on
        train_step(state, x, y, kept, CPU)
    assert_same(*(state.generator.state_dict() for state in states))
    saved = [len(saved_by(state.generator, x)) for state in states]
    assert saved[1] < saved[0] / 2


def saved_by(network: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Return the tensors that are kept for the way back."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        network(x)
    return kept


@pytest.mark.parametrize(
    ("settings", "device", "is_recorded"),
    [
        ({}, "cuda", True),
        ({}, "cpu", False),
        ({"cuda_graph": False}, "cuda", False),
        ({"accumulate": 2, "batch_size": 2}, "cuda", False),
        ({"recompute": True}, "cuda", False),
    ],
)
def test_only_a_step_that_can_be_recorded_is_played_back(
    settings: dict, device: str, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
):
    graphs: list[None] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(None))
    config, _ = resolve(Config(dataset="x", **(TINY | settings)))
    machine = Machine(torch.device(device), torch.float32)
    batch_step(new_state(config, Sides(), CPU), Sides(), config, machine)
    assert len(graphs) == is_recorded
