import pytest
import torch
from torch import nn

from machine import products
from machine.products import use_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_products_are_the_convolution(monkeypatch, kind: type[nn.Module], dtype: torch.dtype):
    monkeypatch.setattr(products, "LARGE", 0)
    torch.manual_seed(0)
    for has_bias, side in ((True, 8), (False, 8), (False, 32)):  # 32: too large, left alone
        conv = kind(4, 6, kernel_size=4, stride=2, padding=1, bias=has_bias)
        other = nn.Sequential(kind(4, 6, kernel_size=4, stride=2, padding=1, bias=has_bias))
        other[0].load_state_dict(conv.state_dict())
        use_products(other)
        found = []
        for network in (conv, other):
            x = torch.linspace(-1, 1, 2 * 4 * side * side).reshape(2, 4, side, side)
            x.requires_grad_()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                y = network(x)
            y.float().square().sum().backward()
            found.append((y, x.grad, next(network.parameters()).grad))
        for one, two in zip(*found, strict=True):
            assert one.dtype == two.dtype
            scale = one.abs().max().item()
            torch.testing.assert_close(two, one, rtol=0, atol=scale * torch.finfo(dtype).eps * 32)


def test_other_convolutions_are_left_alone(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 0)
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 4, stride=1, padding=1))
    use_products(network)
    assert all("forward" not in vars(layer) for layer in network)
