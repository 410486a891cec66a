import numpy as np
import pytest
import torch
from reference import FOLDER, load_by_rule, picture

from discriminator import Discriminator


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
