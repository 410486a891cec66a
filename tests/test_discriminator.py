import numpy as np
import pytest
import torch
from reference import FOLDER, load_by_rule, picture

from discriminator import Discriminator
from losses import projected_discriminator_loss, projected_loss


def test_parameter_count_of_the_reference_network():
    count = sum(p.numel() for p in Discriminator(norm="batch").parameters())
    assert count == 2_768_705


@pytest.mark.parametrize(
    ("n_layers_d", "field", "side"), [(0, 1, 256), (1, 16, 126), (3, 70, 30), (5, 286, 6)]
)
def test_receptive_field_and_output_size(n_layers_d: int, field: int, side: int):
    network = Discriminator(n_layers_d=n_layers_d, ndf=8)
    assert network.receptive_field == field
    x = torch.zeros(1, 3, 256, 256)
    assert network(x, x).shape == (1, 1, side, side)


@pytest.mark.parametrize("n_layers_d", [0, 1, 3])
def test_a_logit_depends_on_its_patch_alone(n_layers_d: int):
    network = Discriminator(n_layers_d=n_layers_d, ndf=8, norm="none").double()
    y = torch.randn(1, 3, 192, 192, dtype=torch.float64, requires_grad=True)
    logits = network(torch.randn_like(y), y)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, columns = y.grad[0].abs().sum(0).nonzero().T
    assert rows.max() - rows.min() + 1 == network.receptive_field
    assert columns.max() - columns.min() + 1 == network.receptive_field


def test_judges_the_pair_and_not_the_output_alone():
    network = Discriminator(ndf=8)
    x, y = torch.randn(2, 1, 3, 64, 64)
    assert not torch.allclose(network(x, y), network(y, y))


def test_equal_to_the_authors_network():
    # float64: the variance that its first norm sees here is too small for single precision.
    network = Discriminator(norm="batch").double()
    load_by_rule(network, "discriminator")
    with torch.no_grad():
        logits = network(picture(1, 3, 256, 0), picture(1, 3, 256, 1))
    expected = np.load(FOLDER / "patchgan70_batch.npz")
    np.testing.assert_allclose(logits.numpy(), expected[expected.files[0]], atol=1e-6, rtol=0)


def test_a_projected_discriminator_learns_which_picture_belongs_to_its_input():
    torch.manual_seed(0)
    network = Discriminator(2, 3, ndf=2, photo_channels=(8, 5)).projected
    brightness = torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None, None, None]
    x = brightness + torch.randn(4, 2, 32, 32)
    real = [brightness + torch.randn(4, *shape) for shape in ((8, 16, 16), (5, 4, 4))]
    fake = [found.roll(1, dims=0) for found in real]
    mixtures = [found.clone() for found in network.buffers() if found.ndim == 4]
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        adam.zero_grad()
        projected_discriminator_loss(network(x, real), network(x, fake)).backward()
        adam.step()
    assert [logits.shape for logits in network(x, real)] == [(4, 1, 16, 16), (4, 1, 4, 4)]
    assert projected_loss(network(x, fake)) > projected_loss(network(x, real)) + 0.5
    assert all(map(torch.equal, mixtures, (b for b in network.buffers() if b.ndim == 4)))
    louder = [found * 100 for found in real]  # what counts is what a place holds, not how much
    torch.testing.assert_close(network(x, louder), network(x, real), atol=1e-3, rtol=1e-3)


def test_both_at_once_are_judged_as_one_after_the_other():
    x, real, fake = torch.rand(3, 2, 3, 64, 64, dtype=torch.float64)
    found = []
    for at_once in (False, True):
        torch.manual_seed(0)
        network = Discriminator(ndf=4, at_once=at_once).double()
        real_maps, fake_maps = network.of_both(x, real, fake)
        (real_maps[-1].square() - fake_maps[-1]).sum().backward()
        found.append([*real_maps, *fake_maps, *(weight.grad for weight in network.parameters())])
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
