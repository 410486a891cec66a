"""The PatchGAN discriminator of Pix2Pix (Isola et al., 2017, section 3.2.2, appendix 6.1.2).

And one that came later, beside it: a discriminator that knows photos.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from generator import initialise, norm_layer


class Discriminator(nn.Module):
    """Judges each patch of a picture, together with the input it was made from.

    n_layers_d 3 is the paper's C64-C128-C256-C512 with a receptive field of 70x70 pixels;
    1 gives 16x16, 5 gives 286x286, and 0 the 1x1 PixelGAN.

    Args:
        input_nc: Channels of the input picture.
        output_nc: Channels of the (real or generated) output picture.
        ndf: Channels of the first layer.
        n_layers_d: Number of layers of stride 2; each doubles the receptive field.
        norm: "instance", "batch", "batch_running" or "none".
        at_once: Whether ``of_both`` judges two pictures as one batch; not the same with batch norm.
        photo_channels: Channels of the maps that a second discriminator beside this one judges,
            ``projected``; without any there is none.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        *,
        ndf: int = 64,
        n_layers_d: int = 3,
        norm: str = "instance",
        at_once: bool = False,
        photo_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.at_once = at_once
        kernel = 4 if n_layers_d > 0 else 1
        padding = 1 if n_layers_d > 0 else 0
        widths = [ndf * min(2**level, 8) for level in range(max(n_layers_d, 1) + 1)]
        layers: list[nn.Module] = []
        channels = input_nc + output_nc
        for level, width in enumerate(widths):
            stride = 2 if level < n_layers_d else 1
            norm_here = "none" if level == 0 else norm
            bias = norm_here == "none"
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding, bias=bias),
                norm_layer(norm_here, width),
                nn.LeakyReLU(0.2),
            ]
            channels = width
        # No sigmoid: the losses take logits, which is the same and numerically safe.
        layers.append(nn.Conv2d(channels, 1, kernel, stride=1, padding=padding))
        self.layers = nn.Sequential(*layers)
        initialise(self)
        self.projected = None
        if photo_channels:
            self.projected = ProjectedDiscriminator(input_nc, photo_channels)

    @property
    def receptive_field(self) -> int:
        """Side, in pixels, of the square of the pictures that one logit depends on."""
        field = 1
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Conv2d):
                field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Judge whether ``y`` is the real counterpart of ``x``.

        Args:
            x: Input pictures, (N, input_nc, H, W) in [-1, 1].
            y: Real or generated outputs, (N, output_nc, H, W) in [-1, 1].

        Returns:
            Logits, (N, 1, h, w), one a patch; 30x30 for 256x256 pictures. Positive means real.
        """
        return self.features(x, y)[-1]

    def features(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the map after each block, the logits last; ``x`` and ``y`` as in ``forward``."""
        maps: list[Tensor] = []
        seen = torch.cat([x, y], dim=1)  # (N, 6, H, W)
        for number, layer in enumerate(self.layers, start=1):
            seen = layer(seen)  # (N, 64, H/2, W/2), ... (N, 1, 30, 30) at H = 256
            if isinstance(layer, nn.LeakyReLU) or number == len(self.layers):  # a block ends
                maps.append(seen)
        return maps

    def of_both(
        self, x: Tensor, real: Tensor, fake: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the maps of two outputs for the same ``x``, as from ``features``.

        To judge both at once takes a CPU a sixth to a third less time than one after the other.
        """
        if not self.at_once:
            return self.features(x, real), self.features(x, fake)
        maps = self.features(torch.cat([x, x]), torch.cat([real, fake]))
        real_maps, fake_maps = zip(*(found.chunk(2) for found in maps), strict=True)
        return real_maps, fake_maps


class ProjectedDiscriminator(nn.Module):
    """Judges a picture by its maps in a network that knows photos (arXiv 2111.01007).

    Its maps come from a trained network, so it need not learn to see first. Each map has a head of
    its own. Of its channels a head sees 64 random mixtures, which never change, so that it cannot
    settle on a few.

    Args:
        input_nc: Channels of the input picture.
        channels: Those of the maps that are judged, the last ones of the network's.
    """

    def __init__(self, input_nc: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for number, count in enumerate(channels):
            mixture = torch.empty(64, count, 1, 1)
            self.register_buffer(f"mixture_{number}", nn.init.kaiming_normal_(mixture))
            self.heads.append(_head(64 + input_nc))

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Judge whether a picture is the real counterpart of ``x``.

        Args:
            x: Input pictures, (N, input_nc, H, W) in [-1, 1].
            maps: Those of the real or generated outputs, (N, channels, h, w) each.

        Returns:
            Logits, (N, 1, h, w), for each map. Positive means real.
        """
        logits = []
        judged = maps[len(maps) - len(self.heads) :]
        for number, (found, head) in enumerate(zip(judged, self.heads, strict=True)):
            seen = F.conv2d(found, self.get_buffer(f"mixture_{number}")).float()
            # What a place holds counts, not how much of it.
            seen = seen * (seen.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
            beside = F.adaptive_avg_pool2d(x, seen.shape[2:])
            logits.append(head(torch.cat([seen, beside], dim=1)))
        return logits


def _head(channels: int) -> nn.Sequential:
    """Return the layers that judge one map; spectral norm keeps them from becoming too sure."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, 128, kernel_size=3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(128, 128, kernel_size=3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(128, 1, kernel_size=1)),
    )
