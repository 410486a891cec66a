"""Large convolutions of small maps as matrix products, which a CPU computes faster."""

from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 1_000_000  # weights, from which on the products are faster,
SMALL = 512  # and places of the smaller map, over the whole batch, up to which they are
SHAPE = ((4, 4), (2, 2), (1, 1))  # kernel, stride and padding of those that are looked at


def use_products(network: nn.Module) -> None:
    """Let the 4x4 convolutions of stride 2 in a network compute by products where that is faster.

    The library lays the weights out anew for each use. Of 4 million weights and a map of 8x8
    places that takes most of the time, while a product takes them as they are. The function is the
    same, to rounding.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.weight.numel() < LARGE:
            continue
        if (module.kernel_size, module.stride, module.padding) == SHAPE:
            up = isinstance(module, nn.ConvTranspose2d)
            module.forward = MethodType(_upwards if up else _downwards, module)


def _downwards(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return ``conv(x)``: (N, c_in, H, W) to (N, c_out, H/2, W/2)."""
    n, _, height, width = x.shape
    if n * height * width > 4 * SMALL:
        return nn.Conv2d.forward(conv, x)
    patches = F.unfold(x.float(), kernel_size=4, padding=1, stride=2)  # (N, 16 c_in, H/2 W/2)
    found = F.linear(patches.mT, conv.weight.flatten(1), conv.bias)  # (N, H/2 W/2, c_out)
    return found.mT.unflatten(2, (height // 2, width // 2))


def _upwards(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Return ``conv(x)``: (N, c_in, H, W) to (N, c_out, 2H, 2W)."""
    n, _, height, width = x.shape
    if n * height * width > SMALL:
        return nn.ConvTranspose2d.forward(conv, x)
    patches = F.linear(x.flatten(2).mT, conv.weight.flatten(1).T)  # (N, H W, 16 c_out)
    size = (2 * height, 2 * width)
    found = F.fold(patches.mT.float(), size, kernel_size=4, padding=1, stride=2).to(patches.dtype)
    return found if conv.bias is None else found + conv.bias.type_as(found)[:, None, None]
