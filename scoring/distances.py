"""How far outputs are from real pictures, as networks see it that have learned from photos.

Only ``lpips`` is that of its paper. There is no FID, which is the Fréchet distance by one certain
Inception.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from scoring.photos import PhotoNetwork, fetched, naming
from scoring.scores import Measure, Scores
from scoring.tables import drawn_again

SUBSET = 50  # pictures in each of the subsets whose kernel distances are averaged
RESAMPLES = 1000


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


class FeatureDistances(Measure):
    """Distances between outputs and targets in the features of a network.

    ``distance``, of one output to its target: as in LPIPS, the mean square difference of their
    maps with all channels of a place scaled to length 1, but without learned weights. ``kid`` and
    ``frechet``, of all outputs to all targets as two sets, whatever belongs together: the kernel
    and the Fréchet distance of the features of whole pictures. ``kid`` is unbiased, so small sets
    will do; ``frechet`` falls with the number of pictures, so compare equal numbers alone.
    """

    def __init__(self, network: PhotoNetwork) -> None:
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
    counts = torch.from_numpy(drawn_again(n, RESAMPLES)).double()
    kernels = poly_kernel(fake, fake) + poly_kernel(real, real) - 2 * poly_kernel(fake, real)
    kernels = kernels.double().fill_diagonal_(0)
    distances = ((counts @ kernels) * counts).sum(dim=1) / (n**2 - counts.square().sum(dim=1))
    low, high = (distances[1:] - distances[0]).quantile(torch.tensor([0.025, 0.975]).double())
    return low.item(), high.item()
