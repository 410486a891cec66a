import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import CPU, TINY
from runs import results
from torch import nn

from config import Config
from labels import SCORE_SCALE, Labels, one_hot
from losses import class_loss, feature_loss, perceptual_loss
from machine.devices import choose_machine
from pictures.palettes import IGNORED, TOWNS
from recipes import known_sides, resolve
from run.state import new_state
from scoring import photos
from scoring.scores import count_classes, score_labelled, score_picture
from train import EMA_EVERY, train, train_step, update_ema
from utils import Facts, Translator

COLOURS = list(TOWNS.values())


def test_features_are_compared_but_for_the_verdict():
    real = [torch.tensor([1.0, 2.0]), torch.tensor([[5.0]])]
    fake = [torch.tensor([1.0, 4.0]), torch.tensor([[2.0]])]
    assert feature_loss(real, fake).item() == pytest.approx(1 + 3)


def test_the_loss_of_classes_is_the_cross_entropy():
    scores = torch.randn(2, 6, 4, 4)
    classes = torch.randint(6, (2, 4, 4))
    true = one_hot(classes, 6)
    chances = (SCORE_SCALE * scores).softmax(dim=1)
    expected = -chances.gather(1, classes[:, None]).log().mean()
    torch.testing.assert_close(class_loss(scores, true), expected)


def test_the_loss_of_classes_teaches_most_where_it_is_most_wrong():
    true = one_hot(torch.zeros(1, 1, 1, dtype=torch.long), 2)
    scores = torch.tensor([-20.0, 20.0]).reshape(1, 2, 1, 1).requires_grad_()  # chance e^-320
    class_loss(scores, true).backward()
    assert scores.grad.flatten().tolist() == pytest.approx([-SCORE_SCALE, SCORE_SCALE])


def test_classes_become_probabilities_and_at_test_colours():
    labels = Labels(target_colours=COLOURS)
    scores = torch.randn(2, 6, 32, 32)
    mean = labels.decode_output(scores, one_hot(scores.argmax(dim=1), 6))
    chances = (SCORE_SCALE * scores).softmax(dim=1)
    expected = sum(
        chances[:, k, None] * labels.target[k][:, None, None] for k in range(len(COLOURS))
    )
    torch.testing.assert_close(mean, expected)
    likeliest = scores.argmax(dim=1)
    colours = torch.tensor(COLOURS)[likeliest].movedim(-1, 1) / 127.5 - 1
    torch.testing.assert_close(labels.encode_target(colours).argmax(dim=1), likeliest)
    torch.testing.assert_close(labels.decode_target(labels.encode_target(colours)), colours)


def test_edges_between_classes_are_as_soft_as_those_of_resized_label_pictures():
    classes = torch.zeros(1, 8, 8, dtype=torch.long)
    classes[..., 4:] = 1
    picture = Labels(target_colours=COLOURS).finish(one_hot(classes, 6))[0]
    one, other = torch.tensor(COLOURS[:2]) / 127.5 - 1
    for column, share in enumerate((0, 0, 0, 0.1, 0.9, 1, 1, 1)):
        expected = (1 - share) * one + share * other
        torch.testing.assert_close(picture[..., column], expected[:, None].expand(3, 8))


def test_photos_pass_as_they_are():
    x = torch.rand(1, 3, 4, 4)
    labels = Labels()
    for method in (labels.encode_input, labels.encode_target, labels.decode_target, labels.finish):
        assert method(x) is x
    assert labels.decode_output(x, x) is x


def test_classes_that_score_alike_are_not_mixed():
    labels = Labels(target_colours=COLOURS, soft_edges=False)
    picture = labels.finish(torch.zeros(1, 6, 2, 2))
    assert torch.equal(picture, labels.target[0][:, None, None].expand(1, 3, 2, 2))


def test_pixels_of_no_class_are_out_of_the_loss_and_of_what_the_discriminator_sees():
    labels = Labels(target_colours=COLOURS, ignores=True)
    y = labels.target[torch.randint(6, (1, 4, 4))].movedim(-1, 1)
    y[..., 1] = torch.tensor(IGNORED)[:, None] / 127.5 - 1
    true, scores = labels.encode_target(y), torch.randn(1, 6, 4, 4)
    kept = [0, 2, 3]
    left_out = class_loss(scores[..., kept], true[..., kept]) * 3 / 4
    torch.testing.assert_close(class_loss(scores, true), left_out)
    real, fake = labels.decode_target(true), labels.decode_output(scores, true)
    assert torch.equal(real[..., 1], fake[..., 1])
    assert count_classes(y.roll(1, 2), y, TOWNS).sum() == 12


def test_pixels_of_no_class_are_out_of_the_scores():
    y = torch.tensor(COLOURS)[torch.randint(6, (1, 32, 32))].movedim(-1, 1) / 127.5 - 1
    fake, masked = (y + 0.1).clamp(-1, 1), y.clone()
    masked[..., 16:] = torch.tensor(IGNORED)[:, None, None] / 127.5 - 1
    half = score_picture(fake[..., :16], y[..., :16])
    scores = score_labelled(fake, masked)
    assert scores["l1"] == pytest.approx(half["l1"], rel=1e-5)
    assert scores["psnr"] == pytest.approx(half["psnr"], rel=1e-5)
    masked[:] = torch.tensor(IGNORED)[:, None, None] / 127.5 - 1
    assert all(math.isnan(score) for score in score_labelled(fake, masked).values())


def test_colours_have_all_their_digits_in_half_precision():
    config, _ = resolve(Config(dataset="towns", **TINY))
    sides = known_sides(config)
    state = new_state(config, sides, choose_machine("cpu", "bf16"))
    translator = Translator(state.generator, state.labels, Facts(config, sides)).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert translator(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def grid_on_even_ground(up: nn.ConvTranspose2d) -> float:
    """Return the mean step from pixel to pixel, as a share of what the channels differ by."""
    even = torch.rand(1, up.in_channels, 1, 1).expand(-1, -1, 16, 16)
    painted = up(even)[..., 4:-4, 4:-4]
    steps = [painted.diff(dim=dim).abs().mean() for dim in (-1, -2)]
    return (sum(steps) / painted.std(dim=1).mean()).item()


def test_even_kernels_begin_without_a_grid_and_the_outermost_stays_so():
    grids = {}
    for even_kernels in (False, True):
        config, _ = resolve(Config(dataset="towns", even_kernels=even_kernels, **TINY))
        state = new_state(config, known_sides(config), CPU)
        convolutions = [up[1] for up in state.generator.decoder]
        begin = [grid_on_even_ground(up) for up in convolutions]
        for _ in range(3):
            train_step(state, *torch.rand(2, 1, 3, 32, 32), config, CPU)
        grids[even_kernels] = [*begin, grid_on_even_ground(convolutions[-1])]
    assert max(grids[True]) < 1e-5
    assert min(grids[False]) > 0.1


def test_the_average_follows_and_forgets_its_beginning():
    config, _ = resolve(Config(dataset="x", **TINY))
    state = new_state(config, known_sides(config), choose_machine("cpu", "fp32"))
    expected = copy.deepcopy(state.average.state_dict())
    for step in range(1, 3 * EMA_EVERY):
        with torch.no_grad():
            for parameter in state.generator.parameters():
                parameter.add_(step)
        update_ema(state, 0.999, step)
        if step % EMA_EVERY:
            continue
        decay = ((1 + step) / (10 + step)) ** EMA_EVERY
        now = dict(state.generator.named_parameters())
        expected = {n: decay * mean + (1 - decay) * now[n] for n, mean in expected.items()}
    assert all(torch.allclose(mean, expected[n]) for n, mean in state.average.named_parameters())
    assert state.best_generator is state.average


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
    assert content["generator"]["refinement.2.weight"].shape[0] == 6
    assert float(rows[2]["loss_classes"]) < float(rows[0]["loss_classes"])
    assert "l1" not in rows[0] and float(rows[2]["val_accuracy"]) > 0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_network_that_knows_photos_tells_pictures_apart(channels: int):
    look = photos.loss_network(torch.device("cpu")).maps
    y = torch.rand(1, channels, 64, 64) * 2 - 1
    fake = y.clone().requires_grad_()
    assert perceptual_loss(look(y), look(fake)).item() == 0
    loss = perceptual_loss(look(y), look(fake * 0.5))
    loss.backward()
    assert loss.item() > 0.05 and fake.grad.abs().sum() > 0


def test_its_folded_norms_change_nothing():
    y = torch.rand(1, 3, 64, 64) * 2 - 1
    plain = photos.efficientnet(0, y.device)
    x = plain._swish(plain._bn0(plain._conv_stem(y)))
    for block in plain._blocks[:11]:
        x = block(x)
    network = photos.loss_network(y.device)
    torch.testing.assert_close(network.maps(y)[-1], x, atol=1e-4, rtol=1e-4)
    assert tuple(found.shape[1] for found in network.maps(y)) == network.channels
