from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models import Inception_V3_Weights, inception_v3

from scoring.distances import FeatureDistances, kernel_distance, kernel_spread
from scoring.photos import score_network

CPU = torch.device("cpu")


def photo() -> Tensor:
    """Grace Hopper in her uniform, which matplotlib brings along; (1, 3, 600, 512) in [-1, 1]."""
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return torch.from_numpy(np.array(Image.open(path))).movedim(2, 0)[None] / 127.5 - 1


def test_efficientnet_knows_what_a_photo_shows_and_what_is_near_it():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = score_network(CPU)
    assert network.name == "efficientnet_lite2"
    verdict = network.network(F.interpolate(photo(), (260, 260), mode="bilinear", antialias=True))
    categories = Inception_V3_Weights.IMAGENET1K_V1.meta["categories"]
    assert categories[verdict.argmax()] == "military uniform"

    measure = FeatureDistances(network)
    target = F.interpolate(photo(), (64, 64), mode="area")
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    fakes = [(target + level * noise).clamp(-1, 1) for level in (0, 0.05, 0.2, 0.5)]
    distances = [next(iter(measure(target, fake, target).values())) for fake in fakes]
    assert distances == sorted(distances)
    assert distances[0] == 0
    grey = target[:, :1]
    assert measure(grey, grey.roll(3, dims=3), grey)["distance_efficientnet_lite2"] > 0.01
    names = {"kid", "kid_low", "kid_high", "kid_floor", "frechet"}
    assert {name.replace("_efficientnet_lite2", "") for name in measure.total()} == names
    assert FeatureDistances(network).total() == {}


def test_inception_is_taken_where_its_weights_lie(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", "cache")
    weights = Path("cache/hub/checkpoints/inception_v3_google-0cc3c7bd.pth")
    weights.parent.mkdir(parents=True)
    torch.save(inception_v3(init_weights=False).state_dict(), weights)
    network = score_network(CPU)
    assert network.name == "torchvision_inception"
    assert network.maps(torch.zeros(2, 1, 64, 64))[-1].shape == (2, 2048, 1, 1)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"inception_v3_google-0cc3c7bd\.pth is damaged"):
        score_network(CPU)


def test_without_any_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", "cache")
    monkeypatch.setattr("scoring.photos.find_spec", lambda name: None)
    assert score_network(CPU) is None


def unbiased(fake: Tensor, real: Tensor) -> float:
    """The squared maximum mean discrepancy of the paper of KID (arXiv 1801.01401, equation 4)."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1) ** 3

    n = len(real)
    within = [
        (k.sum() - k.trace()) / (n * (n - 1)) for k in (kernel(real, real), kernel(fake, fake))
    ]
    return (sum(within) - 2 * kernel(real, fake).mean()).item()


def test_distances_of_sets_by_their_formulas():
    random = torch.Generator().manual_seed(0)
    samples = [torch.randn(2, 40, 8, generator=random) for _ in range(200)]
    pairs = [(fake + 0.3, real) for fake, real in samples]
    # With 40 pictures each of the subsets is all of them.
    assert kernel_distance(*pairs[0]) == pytest.approx(unbiased(*pairs[0]), rel=1e-3)
    assert abs(kernel_distance(*samples[0])) < unbiased(*pairs[0])
    # The interval is as wide as distances differ when all pictures are drawn anew.
    expected = 2 * 1.96 * np.std([unbiased(*pair) for pair in pairs])
    spreads = [kernel_spread(*pair) for pair in pairs[:20]]
    assert np.mean([high - low for low, high in spreads]) == pytest.approx(expected, rel=0.3)
    assert all(low < 0 < high for low, high in spreads)


def test_frechet_distance_of_two_clouds():
    measure = FeatureDistances(type("Network", (), {"name": "n"})())
    random = torch.Generator().manual_seed(0)
    features = torch.randn(500, 4, generator=random)
    measure.real, measure.fake = list(features.split(1)), list((3 * features + 1).split(1))
    mean, spread = features.double().mean(dim=0), features.double().T.cov()
    # The clouds have the same axes: |difference of the means|^2 + tr((3 - 1)^2 C).
    expected = (2 * mean + 1).square().sum() + 4 * spread.trace()
    assert measure.total()["frechet_n"] == pytest.approx(expected.item(), rel=1e-3)
