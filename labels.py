"""Label pictures as classes: from colours to what the networks see of them, and back."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictures.palettes import IGNORED

# Scores are multiplied by this before the softmax. They grow slowly at the paper's learning rate;
# times 8 a class becomes sure about as fast as tanh saturates.
SCORE_SCALE = 8.0
# At test a pixel gives so much of its colour to each neighbour in a row or column, as pixels on an
# edge have it in label pictures that were resized.
EDGE_SHARE = 0.1

Colours = Sequence[Sequence[int]]  # (red, green, blue) of each class, 0 to 255


class Labels(nn.Module):
    """Knows the classes in label pictures, of inputs, of targets, or of both.

    A side without colours holds photos or the like: all methods return its pictures as they are.

    Args:
        input_colours: Those of the classes in inputs, if these are label pictures.
        target_colours: Those of the classes in targets, likewise.
        soft_edges: Whether edges between classes in outputs hold colours between theirs, as those
            of real label pictures may.
        ignores: Whether pixels can be of no class (``is_ignored``).
    """

    def __init__(
        self,
        input_colours: Colours | None = None,
        target_colours: Colours | None = None,
        *,
        soft_edges: bool = True,
        ignores: bool = False,
    ) -> None:
        super().__init__()
        self.soft_edges, self.ignores = soft_edges, ignores
        for name, colours in (("input", input_colours), ("target", target_colours)):
            colours = None if colours is None else torch.as_tensor(colours) / 127.5 - 1
            # (K, 3) in [-1, 1]. Not saved here: a checkpoint keeps the palettes in its sides.
            self.register_buffer(name, colours, persistent=False)

    def encode_input(self, x: Tensor) -> Tensor:
        """Return what the networks see of inputs.

        Args:
            x: Input pictures, (N, channels, H, W) in [-1, 1].

        Returns:
            The class of the nearest colour at each pixel, one-hot, (N, classes, H, W); zeros
            where a pixel is of none (``is_ignored``).
        """
        return x if self.input is None else self._encoded(x, self.input)

    def encode_target(self, y: Tensor) -> Tensor:
        """Return what outputs are compared with.

        Args:
            y: Target pictures, (N, channels, H, W) in [-1, 1].

        Returns:
            The class of the nearest colour at each pixel, as ``encode_input`` gives it.
        """
        return y if self.target is None else self._encoded(y, self.target)

    def decode_target(self, y: Tensor) -> Tensor:
        """Return the pictures, (N, 3, H, W) in [-1, 1], of targets that were encoded."""
        return y if self.target is None else _painted(y, self.target)

    def decode_output(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the pictures that outputs stand for while the generator learns.

        Args:
            output: Scores of the classes, (N, classes, H, W).
            y: Targets that were encoded.

        Returns:
            (N, 3, H, W) in [-1, 1]: at each pixel the mean colour by the classes' probabilities;
            where the target is of no class, the same grey as the target's.
        """
        if self.target is None:
            return output
        picture = _painted((SCORE_SCALE * output).softmax(dim=1), self.target)
        return picture * y.sum(dim=1, keepdim=True) if self.ignores else picture

    def finish(self, output: Tensor) -> Tensor:
        """Return the pictures to show: of pure colours, with soft_edges softened between classes.

        Args:
            output: Scores of the classes, (N, classes, H, W).

        Returns:
            (N, 3, H, W) in [-1, 1]: the colour of the likeliest class at each pixel.
        """
        if self.target is None:
            return output
        picture = _painted(one_hot(output.argmax(dim=1), output.shape[1]), self.target)
        return _softened(picture) if self.soft_edges else picture

    def _encoded(self, picture: Tensor, colours: Tensor) -> Tensor:
        classes = one_hot(nearest_class(picture, colours), len(colours))
        return classes * ~is_ignored(picture) if self.ignores else classes


def is_ignored(picture: Tensor) -> Tensor:
    """Return where pictures (N, 3, H, W) in [-1, 1] are of no class, as (N, 1, H, W)."""
    # Numbers, no tensor: to copy one to a card would keep the step from being recorded.
    red, green, blue = (
        (part - (level / 127.5 - 1)).abs() < 1 / 255  # half a level of 8 bits
        for part, level in zip(picture.split(1, dim=1), IGNORED, strict=True)
    )
    return red & green & blue


def _painted(shares: Tensor, colours: Tensor) -> Tensor:
    """Return the mean colour of the classes by their shares (N, K, H, W), as (N, 3, H, W)."""
    return torch.einsum("nkhw,kc->nchw", shares, colours)


def _softened(picture: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) in which pixels share their colour with their neighbours."""
    line = torch.tensor([EDGE_SHARE, 1 - 2 * EDGE_SHARE, EDGE_SHARE], device=picture.device)
    kernel = (line[:, None] * line).expand(picture.shape[1], 1, 3, 3)
    around = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(around, kernel, groups=picture.shape[1])


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
    # Channel by channel, so that no tensor (N, K, 3, H, W) is needed.
    parts = zip(picture.split(1, dim=1), colours[:, :, None, None].unbind(1), strict=True)
    return sum((part - colour).square() for part, colour in parts).argmin(dim=1)
