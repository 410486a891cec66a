"""The U-Net generator of Pix2Pix (Isola et al., 2017, section 3.2.1 and appendix 6.1.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Return the normalisation layer called ``norm`` for a map of ``channels`` channels.

    Instance norm learns a scale and a shift, as batch norm does: at batch size 1 the two then
    compute the same function.

    Args:
        norm: "instance", "batch", "batch_running" (the same layer, see ``Generator``) or "none".
        channels: Channels of the map to be normalised.
    """
    if norm == "none":
        return nn.Identity()
    layer = nn.InstanceNorm2d if norm == "instance" else nn.BatchNorm2d
    return layer(channels, affine=True)


def initialise(network: nn.Module) -> None:
    """Draw the weights as the paper does (appendix 6.2), from torch's global generator.

    Convolutions get N(0, 0.02), norm scales N(1, 0.02), all biases zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.InstanceNorm2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- Even kernels, which came later ---
# A transposed convolution of stride 2 makes even and odd pixels with different parts of its 4x4
# kernel, 2x2 weights each. On even ground a pixel gets the sum of its part. Where these sums differ
# one sees a grid of 2 px.
@torch.no_grad()
def begin_evenly(network: nn.Module) -> None:
    """Draw transposed kernels anew: one part each, which is used for all four."""
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            part = torch.empty(*module.weight.shape[:2], 2, 2).normal_(0.0, 0.02)
            module.weight.copy_(part.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@torch.no_grad()
def even_out(kernel: Tensor) -> None:
    """Move the four parts of a kernel, (c_in, c_out, 4, 4), to equal sums, in place."""
    parts = kernel.unflatten(2, (2, 2)).unflatten(4, (2, 2))  # rows and columns: weight, pixel
    means = parts.mean(dim=(2, 4), keepdim=True)
    parts -= means - means.mean(dim=(3, 5), keepdim=True)


class Down(nn.Sequential):
    """One encoder block: (N, c_in, H, W) to (N, c_out, H/2, W/2)."""

    def __init__(
        self, c_in: int, c_out: int, *, norm: str, bias: bool, activate: bool = True
    ) -> None:
        super().__init__(
            nn.LeakyReLU(0.2) if activate else nn.Identity(),
            nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1, bias=bias),
            norm_layer(norm, c_out),
        )


class Up(nn.Sequential):
    """One decoder block: (N, c_in, H, W) to (N, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int, *, norm: str, dropout: bool = False) -> None:
        super().__init__(
            nn.ReLU(),
            # A norm subtracts the mean, so a bias before it would have no effect.
            nn.ConvTranspose2d(
                c_in, c_out, kernel_size=4, stride=2, padding=1, bias=norm == "none"
            ),
            norm_layer(norm, c_out),
            nn.Dropout(0.5) if dropout else nn.Identity(),
        )


def refinement(input_nc: int, width: int, output_nc: int) -> nn.Sequential:
    """Return two convolutions at full size: (N, width + input_nc, H, W) to (N, output_nc, H, W).

    A transposed convolution of stride 2 paints even and odd pixels with different kernels, which
    one sees as a grid of 2 px. These treat all pixels alike, and the input beside it has its edges
    in place.
    """
    first = nn.Conv2d(width + input_nc, width, kernel_size=3, padding=1)
    last = nn.Conv2d(width, output_nc, kernel_size=3, padding=1)
    layers = nn.Sequential(first, nn.LeakyReLU(0.2), last)
    initialise(layers)
    nn.init.kaiming_normal_(first.weight, 0.2)  # no norm follows that would bring it to size
    return layers


class Generator(nn.Module):
    """U-Net: an encoder, a mirrored decoder, and skip connections between them.

    At 256 px the encoder is C64-C128-C256-C512-C512-C512-C512-C512; each halving of the crop
    drops, each doubling adds one C512 (a 32 px crop: C64-C128-C256-C512-C512). A bottleneck of 4
    drops the two innermost.

    Args:
        input_nc: Channels of the input.
        output_nc: Channels of the output.
        crop_size: Side of the training pictures, a power of two from 32 to 1024. It sets the
            depth, log2(crop_size / bottleneck).
        bottleneck: Side of the innermost map for pictures of crop_size; the paper: 1.
        ngf: Channels of the outermost encoder layer.
        norm: "instance", "batch", "batch_running" or "none". After ``eval()`` batch norm takes
            the statistics of the batch at hand (the paper), batch_running those of the training.
        dropout: When dropout of 0.5 is active in the first three decoder blocks, the paper's only
            noise z: "none", "training", or "always", which is after ``eval()`` too (the paper).
        even_kernels: Whether to ``begin_evenly``; training then calls ``keep_even``.
        refine: Whether the outermost block gives ngf / 4 maps (8 or more), from which
            ``refinement`` makes the output.
        tanh: Whether outputs are pictures in [-1, 1]; if not, they are scores of any size.
        recompute: Whether the maps inside blocks are computed again for the gradients, which
            takes less memory and more time than keeping them.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        *,
        crop_size: int = 256,
        bottleneck: int = 1,
        ngf: int = 64,
        norm: str = "instance",
        dropout: str = "training",
        even_kernels: bool = False,
        refine: bool = False,
        tanh: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.norm, self.dropout, self.tanh, self.recompute = norm, dropout, tanh, recompute
        depth = (crop_size // bottleneck).bit_length() - 1
        widths = [ngf * min(2**level, 8) for level in range(depth)]

        self.encoder = nn.ModuleList()
        channels = input_nc
        for level, width in enumerate(widths):
            # As in the paper the first block has no norm. Neither has the innermost one: a single
            # pixel has no statistics, and would become zero.
            norm_here = "none" if level in (0, depth - 1) else norm
            # The authors' network with batch norm has no encoder bias at all.
            bias = norm_here == "none" and not norm.startswith("batch")
            self.encoder.append(
                Down(channels, width, norm=norm_here, bias=bias, activate=level > 0)
            )
            channels = width

        self.decoder = nn.ModuleList()
        for level in range(depth - 1, 0, -1):
            has_dropout = dropout != "none" and level > depth - 4
            self.decoder.append(Up(channels, widths[level - 1], norm=norm, dropout=has_dropout))
            channels = 2 * widths[level - 1]  # the skip connection brings as many
        width = max(ngf // 4, 8) if refine else output_nc
        self.decoder.append(Up(channels, width, norm="none"))

        initialise(self)
        if even_kernels:
            begin_evenly(self.decoder)
        self.refinement = refinement(input_nc, width, output_nc) if refine else None

    def keep_even(self) -> None:
        """Even out the kernel of the outermost decoder block, whose grid one would see."""
        even_out(self.decoder[-1][1].weight)

    def train(self, mode: bool = True) -> "Generator":
        """Switch to training, or (``eval()``) to the behaviour at test that its settings say."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train(mode or self.dropout == "always")
            elif isinstance(module, nn.BatchNorm2d) and self.norm == "batch":
                # Training mode takes the batch's statistics. Without tracking it leaves those that
                # were gathered in training as they are.
                module.train()
                module.track_running_stats = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Translate pictures.

        Args:
            x: (N, input_nc, H, W) in [-1, 1]; H and W multiples of 2^depth (any such size, square
                or not).

        Returns:
            (N, output_nc, H, W) in [-1, 1], or scores; float32 in every precision.
        """
        seen, skips = x, []
        for down in self.encoder:
            x = self._run(down, x)  # (N, 64, H/2, W/2), ... (N, 512, 1, 1) at H = 256
            skips.append(x)
        first, *inner, outermost = self.decoder
        x = self._run(first, skips.pop())  # (N, 512, 2, 2)
        for up in inner:
            x = torch.cat([skips.pop(), x], dim=1)
            x = self._run(up, x)  # (N, 512, 4, 4), ... (N, 64, H/2, W/2)
        # Half precision has too few digits for the values that become pixels.
        with torch.autocast(x.device.type, enabled=False):
            x = torch.cat([skips.pop(), x], dim=1).to(outermost[1].weight.dtype)  # float32
            x = self._run(outermost, x)  # (N, 3, H, W), or (N, 16, H, W) with refine
            if self.refinement is not None:
                x = torch.cat([F.leaky_relu(x, 0.2), seen], dim=1)
                x = self._run(self.refinement, x)  # (N, 3, H, W)
            return torch.tanh(x) if self.tanh else x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return ``block(x)``; with ``recompute`` its inner maps are not kept."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)
