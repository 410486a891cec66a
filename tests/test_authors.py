import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import FOLDER, KEYS, picture, weight_by_rule
from torch import Tensor, nn

from generator import Generator
from utils import CheckpointError, load_generator

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,  # no scale and shift
    "none": lambda channels: nn.Identity(),
}


class Level(nn.Module):
    """One level of the authors' U-Net, around all that lies deeper."""

    def __init__(self, c_in: int, c_out: int, widths: list[int], norm: str, outermost: bool):
        super().__init__()
        self.outermost = outermost
        width, *deeper = widths
        down = nn.Conv2d(c_in, width, 4, 2, 1, bias=norm == "instance")
        layers = [down] if outermost else [nn.LeakyReLU(0.2), down]
        if deeper:
            layers += [] if outermost else [NORMS[norm](width)]
            layers += [Level(width, width, deeper, norm, outermost=False)]
        bias = outermost or norm == "instance"
        up = nn.ConvTranspose2d(width * (2 if deeper else 1), c_out, 4, 2, 1, bias=bias)
        layers += [nn.ReLU(), up, nn.Tanh() if outermost else NORMS[norm](c_out)]
        if deeper and c_in == width:
            layers += [nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.model(x)
        return inside if self.outermost else torch.cat([x, inside], 1)


class Unet(nn.Module):
    def __init__(self, depth: int, ngf: int, norm: str, input_nc: int = 3, output_nc: int = 3):
        super().__init__()
        widths = [ngf, 2 * ngf, 4 * ngf, *[8 * ngf] * (depth - 3)]
        self.model = Level(input_nc, output_nc, widths, norm, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def unet(*arguments: Any) -> Unet:
    """A small U-Net of the authors in which every weight, bias and statistic counts."""
    torch.manual_seed(0)
    network = Unet(*arguments)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim < 4 and tensor.is_floating_point():
            tensor.normal_(1.0 if key.endswith("weight") else 0.0, 0.3)
    return network


def save(state: Any, path: str = "facades/latest_net_G.pth", **options: Any) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(state, path, **options)
    return Path(path)


def outputs(network: nn.Module, generator: Generator, size: int = 64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    channels = generator.config.input_nc
    x = torch.rand(2, channels, size, 2 * size) * 2 - 1
    with torch.no_grad():
        torch.manual_seed(2)
        theirs = network(x)
        torch.manual_seed(2)
        return theirs, generator(x)


def without_dropout(network: nn.Module) -> nn.Module:
    """As their test.py runs it, but for the noise."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return network


def test_any_folder_will_do():
    path = save(Unet(5, 4, "instance").state_dict(), "run_12:30/latest_net_G.pth")
    assert load_generator(path).config.name == "run_12_30"


@pytest.fixture(scope="module")
def latest_net_g(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        network = Unet(8, 64, "batch")
    state = network.state_dict()
    assert list(state) == KEYS["generator"]
    for key, tensor in state.items():
        counter = key.endswith("num_batches_tracked")
        state[key] = torch.tensor(1) if counter else weight_by_rule(key, tensor.shape).float()
    return save(state, str(tmp_path_factory.mktemp("authors") / "latest_net_G.pth"))


@pytest.mark.parametrize(
    ("mode", "statistics"), [("train_mode", "batch"), ("eval_mode", "running")]
)
def test_the_authors_numbers_through_load_generator(latest_net_g: Path, mode: str, statistics: str):
    generator = load_generator(latest_net_g, device="cpu")
    generator.generator.norm = {"batch": "batch", "running": "batch_running"}[statistics]
    generator.eval()
    output = generator(picture(1, 3, 256, 0).float())
    expected = np.load(FOLDER / "unet256_batch.npz")[mode]
    np.testing.assert_allclose(output.numpy()[:, :, ::4, ::4], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        (5, 3, "instance", 1, 3),
        (6, 2, "batch", 3, 1),
        (7, 2, "instance"),
        (8, 2, "batch"),
        (6, 4, "none"),
    ],
)
def test_equal_to_a_restatement_of_the_authors_network(arguments: tuple[Any, ...]):
    network = without_dropout(unet(*arguments))
    generator = load_generator(save(network.state_dict()), device="cpu")
    theirs, ours = outputs(network, generator, 2 ** arguments[0])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_settings_are_read_from_names_and_shapes():
    generator = load_generator(save(unet(5, 3, "instance", 1, 3).state_dict()), device="cpu")
    config = generator.config
    assert (config.crop_size, config.load_size, config.ngf) == (32, 32, 3)
    assert (config.input_nc, config.output_nc, config.norm) == (1, 3, "instance")
    assert (config.name, config.norm, config.dropout) == ("facades", "instance", "training")
    assert generator.facts.picture_size is None
    deep = load_generator(save(unet(10, 1, "batch").state_dict()), device="cpu").config
    assert (deep.crop_size, deep.norm) == (1024, "batch")


@pytest.mark.parametrize("depth", [5, 7, 8])
def test_dropout_stands_where_the_authors_have_it(depth: int):
    network = unet(depth, 2, "batch").train()
    generator = load_generator(save(network.state_dict()), device="cpu")
    without = outputs(network, generator, 2**depth)[1]
    generator.generator.dropout = "always"
    generator.eval()
    theirs, ours = outputs(network, generator, 2**depth)
    # Drawn from the same seed, the noise is the same only if it is drawn for the same layers.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(ours, without) == (depth == 5)
    places = [
        any(isinstance(m, nn.Dropout) for m in block) for block in generator.generator.decoder
    ]
    assert places == [False] + [True] * (depth - 5) + [False] * 4


def test_running_statistics_are_kept_and_used_when_asked():
    network = unet(6, 2, "batch").eval()
    generator = load_generator(save(network.state_dict()), device="cpu")
    assert not torch.allclose(*outputs(network, generator), atol=1e-3)
    generator.generator.norm = "batch_running"
    generator.eval()
    torch.testing.assert_close(*outputs(network, generator), atol=1e-5, rtol=0)


def test_without_running_statistics_the_batchs_own_are_used():
    network = without_dropout(unet(6, 2, "batch"))
    state = {k: v for k, v in network.state_dict().items() if "running" not in k and "num" not in k}
    generator = load_generator(save(state), device="cpu")
    assert generator.config.norm == "batch"
    torch.testing.assert_close(*outputs(network, generator), atol=1e-5, rtol=0)
    generator.generator.norm = "batch_running"
    generator.eval()
    torch.testing.assert_close(*outputs(network, generator), atol=1e-5, rtol=0)


def test_old_files_of_instance_norm_with_running_statistics():
    network = without_dropout(unet(6, 2, "instance"))
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.rand(module.num_features)
            state[f"{name}.running_var"] = torch.rand(module.num_features)
    generator = load_generator(save(state), device="cpu")
    assert generator.config.norm == "instance"
    torch.testing.assert_close(*outputs(network, generator), atol=1e-5, rtol=0)


def test_old_formats_half_precision_and_data_parallel():
    network = without_dropout(unet(6, 2, "batch").half().float())
    state = {f"module.{k}": v.half() for k, v in network.state_dict().items()}
    path = save(state, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(*outputs(network, load_generator(path, device="cpu")))


def resnet() -> dict[str, Tensor]:
    names = ["model.1.weight", "model.1.bias", "model.10.conv_block.1.weight", "model.26.weight"]
    return {name: torch.zeros(4, 4, 3, 3) for name in names}


def optimiser() -> dict[str, Any]:
    return torch.optim.Adam(nn.Linear(1, 1).parameters()).state_dict()


def altered(**changes: Tensor | None) -> dict[str, Tensor]:
    state = unet(5, 2, "batch").state_dict() | changes
    return {key: tensor for key, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (resnet(), "a ResNet generator"),
        ({key: torch.zeros(4, 4, 4, 4) for key in KEYS["discriminator"]}, r"discriminator \(Patch"),
        ({"net.0.weight": torch.zeros(4, 4, 1, 1)}, "a discriminator of single pixels"),
        ({"G_A": resnet(), "G_B": resnet()}, r"several networks or other parts \(G_A, G_B\)"),
        ({"epoch": 3, "state_dict": {}}, r"a dict of epoch, state_dict;"),
        ({}, "a dict of nothing"),
        (optimiser(), "the state of an optimiser"),
        ([torch.zeros(3)], "a list"),
        (torch.zeros(3), "a Tensor"),
        (nn.Linear(1, 1).state_dict(), r"another network \(weight, bias\)"),
        (Unet(5, 1, "batch"), r"holds code \(test_authors\.Unet\).*state_dict\(\)"),
        (unet(4, 2, "batch").state_dict(), "cannot be used here: .*_size is 16; it should be"),
        (altered(**{"model.model.4.weight": torch.zeros(1)}), "not its layers .*decoder.4.2"),
        (altered(**{"model.model.0.bias": torch.zeros(2)}), "not its layers .*encoder.0.1.bias"),
        (altered(**{"model.attention.weight": torch.zeros(2)}), "has model.attention.weight"),
        (altered(**{"model.model.1.model.6.bias": None}), "not its layers .*decoder.3.2.bias"),
        (altered(**{"model.model.1.model.1.weight": torch.zeros(4, 2, 3, 3)}), "size mismatch"),
    ],
)
def test_other_files_are_refused_by_name(content: Any, name: str):
    with pytest.raises(CheckpointError, match=rf"^facades.latest_net_G\.pth.*{name}") as refusal:
        load_generator(save(content), device="cpu")
    message = str(refusal.value)
    assert "\n" not in message and len(message) < 500
    assert "expected" in message or "should be" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(zipped: bool):
    path = save(unet(5, 1, "batch").state_dict(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (0, 3, 1000, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"latest_net_G\.pth is damaged"):
            load_generator(path, device="cpu")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pwned", "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_does_nothing(zipped: bool):
    state = unet(5, 1, "batch").state_dict() | {"model.model.3.bias": Hostile()}
    path = save(state, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds code \((io|_io)\.open\).*not run"):
        load_generator(path, device="cpu")
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_generator(path, device="cpu")
    assert not Path("pwned").exists()
