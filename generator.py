"""The U-Net generator of Pix2Pix (Isola et al., 2017, section 3.2.1 and appendix 6.1.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASS_SCALE = 8.0  # of the scores of classes, which have farther to go than those of tanh
EDGE = 2.0  # how much harder than the probabilities the edges between classes are painted
NORMS: dict[str, type[nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "none": nn.Identity,
}


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Return the normalisation layer called ``norm`` for a map of ``channels`` channels.

    Instance norm learns a scale and a shift, as batch norm does: at batch size 1 the two then
    compute the same function.

    Args:
        norm: "instance", "batch" or "none".
        channels: Channels of the map to be normalised.
    """
    return nn.Identity() if norm == "none" else NORMS[norm](channels, affine=True)


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

    def __init__(self, c_in: int, c_out: int, *, norm: str, dropout: bool) -> None:
        super().__init__(
            nn.ReLU(),
            # A norm subtracts the mean, so a bias before it would have no effect.
            nn.ConvTranspose2d(
                c_in, c_out, kernel_size=4, stride=2, padding=1, bias=norm == "none"
            ),
            norm_layer(norm, c_out),
            nn.Dropout(0.5) if dropout else nn.Identity(),
        )


def even_out(network: nn.Module) -> None:
    """Draw 4x4 transposed kernels anew, so that at first no pixel differs from its neighbours.

    With stride 2 each output pixel is made by one of four 2x2 parts of the kernel, by its place.
    Drawn apart, the parts lay a grid of 2 px over all pictures, which training has to unlearn.
    """
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            part = torch.empty(*module.weight.shape[:2], 2, 2).normal_(0.0, 0.02)
            with torch.no_grad():
                module.weight.copy_(part.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class Generator(nn.Module):
    """U-Net: an encoder down to 1x1, a mirrored decoder, and skip connections between them.

    At 256 px the encoder is C64-C128-C256-C512-C512-C512-C512-C512; each halving of the crop
    drops, each doubling adds one C512 (a 32 px crop: C64-C128-C256-C512-C512).

    With a ``palette`` the targets are label pictures: while it learns, the outputs are the
    probabilities of the classes, and after ``eval()`` pictures in their colours. With an
    ``input_palette`` the inputs are, and each pixel is seen as its class.

    Args:
        input_nc: Channels of the input picture.
        output_nc: Channels of the output picture.
        crop_size: Side of the training pictures, a power of two from 32 to 1024. It sets the
            depth, log2(crop_size / bottleneck).
        bottleneck: Side of the innermost map for pictures of crop_size; the paper: 1.
        even_start: Whether to begin with ``even_out``.
        palette: Colours (0 to 255) of the classes, where outputs are label pictures.
        input_palette: Those of the inputs.
        soft_edges: Whether edges between classes hold colours between theirs, as real ones may.
        ngf: Channels of the outermost encoder layer.
        norm: "instance", "batch" or "none".
        dropout: Dropout of 0.5 in the first three decoder blocks, the paper's only noise z.
        dropout_at_test: Keep dropout on after ``eval()``, as the paper does.
        batch_norm_at_test: What batch norm takes after ``eval()``: "batch", the statistics of
            the batch at hand (the paper), or "running", those gathered in training.
    """

    config: Any = None
    """The settings it was trained with, where it comes from a checkpoint."""
    sides: Any = None
    """What its inputs and outputs are as files (``pictures.sides.Sides``), likewise."""
    recompute: bool = False
    """Whether the maps inside blocks are computed again on the way back, instead of kept."""
    picture_size: tuple[int, int] | None = None
    """Median height and width, in pixels, of the pictures it was trained on, where known."""
    side_by_side: bool = False
    """Whether those were halves of side-by-side pictures."""
    mixed_sizes: bool = False
    """Whether those were of many sizes, all squeezed to one."""

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        *,
        crop_size: int = 256,
        bottleneck: int = 1,
        ngf: int = 64,
        norm: str = "instance",
        dropout: bool = True,
        even_start: bool = False,
        palette: Sequence[Sequence[int]] | None = None,
        input_palette: Sequence[Sequence[int]] | None = None,
        soft_edges: bool = True,
        dropout_at_test: bool = False,
        batch_norm_at_test: str = "batch",
    ) -> None:
        super().__init__()
        self.soft_edges = soft_edges
        self.dropout_at_test, self.batch_norm_at_test = dropout_at_test, batch_norm_at_test
        for name, colours in (("palette", palette), ("input_palette", input_palette)):
            colours = None if colours is None else torch.as_tensor(colours) / 127.5 - 1
            self.register_buffer(name, colours)  # (K, 3) in [-1, 1]
        self.seen_nc = input_nc if input_palette is None else len(input_palette)
        depth = (crop_size // bottleneck).bit_length() - 1
        widths = [ngf * min(2**level, 8) for level in range(depth)]

        # One pixel has no statistics: a norm would map a 1x1 bottleneck to zero.
        norms = ["none", *[norm] * (depth - 2), "none"]
        self.encoder = nn.ModuleList(
            # The authors' network with batch norm has no encoder bias at all.
            Down(
                c_in, c_out, norm=here, bias=here == "none" and norm != "batch", activate=level > 0
            )
            for level, (c_in, c_out, here) in enumerate(
                zip([self.seen_nc, *widths[:-1]], widths, norms, strict=True)
            )
        )
        self.decoder = nn.ModuleList(
            Up(
                # A skip connection doubles what comes from below, but for the bottleneck.
                widths[level] * (1 if level == depth - 1 else 2),
                widths[level - 1],
                norm=norm,
                dropout=dropout and level > depth - 4,
            )
            for level in reversed(range(1, depth))
        )
        n_scores = output_nc if palette is None else len(palette)
        self.decoder.append(Up(widths[0] * 2, n_scores, norm="none", dropout=False))
        initialise(self)
        if even_start:
            even_out(self.decoder)

    def train(self, mode: bool = True) -> "Generator":
        """Switch to training, or (``eval()``) to the behaviour at test that its settings say."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train(mode or self.dropout_at_test)
            elif isinstance(module, nn.BatchNorm2d) and self.batch_norm_at_test == "batch":
                # Training mode computes the batch's own statistics; not tracking them keeps the
                # running ones as training left them.
                module.train()
                module.track_running_stats = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Translate pictures.

        Args:
            x: (N, input_nc, H, W) in [-1, 1]; H and W multiples of crop_size's power of two,
                2^depth (any such size, square or not).

        Returns:
            (N, output_nc, H, W) in [-1, 1], float32 in every precision; with a palette, while
            it learns, probabilities (N, classes, H, W).
        """
        skips: list[Tensor] = []
        x = self.as_seen(x)
        for down in self.encoder:
            x = self._through(
                down, x
            )  # (N, 64, H/2, W/2), (N, 128, H/4, W/4), ... (N, 512, 1, 1) at H = 256
            skips.append(x)
        x = self._through(self.decoder[0], skips.pop())  # (N, 512, 2, 2)
        for up in list(self.decoder)[1:-1]:
            x = torch.cat([skips.pop(), x], dim=1)
            x = self._through(up, x)  # (N, 512, 4, 4), ... (N, 64, H/2, W/2)
        outermost = self.decoder[-1]
        # Half precision has too few digits for the values that become pixels.
        with torch.autocast(x.device.type, enabled=False):
            x = torch.cat([skips.pop(), x], dim=1).to(outermost[1].weight.dtype)
            x = self._through(outermost, x)  # (N, 3, H, W), or a score for each class
            return torch.tanh(x) if self.palette is None else self._classes(x)

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _classes(self, scores: Tensor) -> Tensor:
        """Turn scores (N, K, H, W) into probabilities, or at test into colours."""
        if self.training:
            return (CLASS_SCALE * scores).softmax(dim=1)
        if not self.soft_edges:
            return self.as_picture(one_hot(scores.argmax(dim=1), scores.shape[1]))
        # Nearly the colour of the likeliest class, but edges are as soft as real ones.
        return self.as_picture((EDGE * CLASS_SCALE * scores).softmax(dim=1))

    def as_seen(self, x: Tensor) -> Tensor:
        """Return what the networks see of inputs.

        Args:
            x: Input pictures, (N, input_nc, H, W) in [-1, 1].

        Returns:
            The same; with an input_palette the class of nearest colour, one-hot, (N, K, H, W).
        """
        if self.input_palette is None:
            return x
        return one_hot(nearest_class(x, self.input_palette), len(self.input_palette))

    def as_picture(self, output: Tensor) -> Tensor:
        """Return the picture that an output, or a target, stands for while it learns.

        Args:
            output: (N, output_nc, H, W) in [-1, 1]; with a palette (N, classes, H, W), shares.

        Returns:
            (N, output_nc, H, W) in [-1, 1]: the same, or the mean colour of the classes.
        """
        if self.palette is None:
            return output
        return torch.einsum("nkhw,kc->nchw", output, self.palette)

    def as_target(self, y: Tensor) -> Tensor:
        """Return what outputs are to be while it learns.

        Args:
            y: Target pictures, (N, output_nc, H, W) in [-1, 1].

        Returns:
            The same; with a palette the class of nearest colour, one-hot, (N, classes, H, W).
        """
        if self.palette is None:
            return y
        return one_hot(nearest_class(y, self.palette), len(self.palette))


def one_hot(classes: Tensor, count: int) -> Tensor:
    """Return for each of ``count`` classes where its number stands in (N, H, W): (N, K, H, W)."""
    numbers = torch.arange(count, device=classes.device)[:, None, None]
    return (classes[:, None] == numbers).float()


def nearest_class(picture: Tensor, colours: Tensor) -> Tensor:
    """Return for each pixel the class whose colour is the nearest, by Euclid's distance in RGB.

    Args:
        picture: (N, 3, H, W) in [-1, 1].
        colours: Of the classes, (K, 3) in [-1, 1].

    Returns:
        Numbers of classes, (N, H, W).
    """
    parts = zip(picture.split(1, dim=1), colours[:, :, None, None].unbind(1), strict=True)
    return sum((part - colour).square() for part, colour in parts).argmin(dim=1)
