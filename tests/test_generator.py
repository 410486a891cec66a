import numpy as np
import pytest
import torch
from reference import FOLDER, load_by_rule, picture
from torch import nn

from generator import Generator


def convolutions(network: nn.Module, kind: type) -> list[tuple[int, int]]:
    return [(m.in_channels, m.out_channels) for m in network.modules() if type(m) is kind]


def test_widths_are_those_of_the_paper():
    network = Generator(crop_size=256)
    down = [width for _, width in convolutions(network, nn.Conv2d)]
    up = convolutions(network, nn.ConvTranspose2d)
    assert down == [64, 128, 256, 512, 512, 512, 512, 512]
    # Appendix 6.1.1: CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128 counts what comes in.
    assert [wide for wide, _ in up] == [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    assert [narrow for _, narrow in up] == [512, 512, 512, 512, 256, 128, 64, 3]


def test_parameter_count_of_the_reference_network():
    count = sum(p.numel() for p in Generator(crop_size=256, norm="batch").parameters())
    assert count == 54_413_955


@pytest.mark.parametrize("crop_size", [32, 64, 128, 256, 512, 1024])
def test_depth_follows_the_crop_size(crop_size: int):
    network = Generator(crop_size=crop_size, ngf=2).eval()
    assert len(network.encoder) == len(network.decoder) == np.log2(crop_size)
    bottleneck = []
    network.encoder[-1].register_forward_hook(lambda *args: bottleneck.append(args[-1].shape))
    assert network(torch.zeros(1, 3, crop_size, crop_size)).shape == (1, 3, crop_size, crop_size)
    assert bottleneck == [(1, 16, 1, 1)]


def test_other_channels_and_sizes_than_square():
    network = Generator(1, 2, crop_size=32, ngf=4).eval()
    output = network(torch.randn(2, 1, 64, 96))
    assert output.shape == (2, 2, 64, 96)
    assert output.abs().max() <= 1


@pytest.mark.parametrize("crop_size", [32, 256])
def test_dropout_stands_in_the_first_three_decoder_blocks(crop_size: int):
    network = Generator(crop_size=crop_size, ngf=2)
    has_dropout = [any(isinstance(m, nn.Dropout) for m in block) for block in network.decoder]
    assert has_dropout == [True] * 3 + [False] * (len(has_dropout) - 3)
    assert not any(isinstance(m, nn.Dropout) for m in Generator(dropout="none", ngf=2).modules())


def test_outermost_and_bottleneck_have_no_norm():
    network = Generator(crop_size=64, ngf=2)
    normed = [any(isinstance(m, nn.InstanceNorm2d) for m in block) for block in network.encoder]
    assert normed == [False, True, True, True, True, False]


def test_initialisation():
    torch.manual_seed(0)
    network = Generator(crop_size=128, ngf=32)
    weights = torch.cat(
        [m.weight.flatten() for m in network.modules() if hasattr(m, "kernel_size")]
    )
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.InstanceNorm2d)])
    biases = [m.bias for m in network.modules() if getattr(m, "bias", None) is not None]
    assert weights.mean().abs() < 1e-4
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    assert biases
    assert all((bias == 0).all() for bias in biases)


def test_instance_norm_is_batch_norm_at_batch_size_one():
    torch.manual_seed(0)
    instance = Generator(crop_size=32, ngf=4, norm="instance", dropout="none")
    batch = Generator(crop_size=32, ngf=4, norm="batch", dropout="none")
    batch.load_state_dict(instance.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(instance(x), batch(x))


def test_instance_norm_does_not_depend_on_the_rest_of_the_batch():
    network = Generator(crop_size=32, ngf=4, norm="instance", dropout="none")
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


@pytest.mark.parametrize("mode", ["train_mode", "eval_mode"])
def test_equal_to_the_authors_network(mode: str):
    network = Generator(norm="batch_running", dropout="none")
    load_by_rule(network, "generator")
    network.train(mode == "train_mode")
    with torch.no_grad():
        output = network(picture(1, 3, 256, 0).float())
    expected = np.load(FOLDER / "unet256_batch.npz")[mode]
    np.testing.assert_allclose(output.numpy()[:, :, ::4, ::4], expected, atol=1e-5, rtol=0)
