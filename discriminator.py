"""The PatchGAN discriminator of Pix2Pix (Isola et al., 2017, section 3.2.2, appendix 6.1.2)."""

import torch
from torch import Tensor, nn

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
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        *,
        ndf: int = 64,
        n_layers_d: int = 3,
        norm: str = "instance",
    ) -> None:
        super().__init__()
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
