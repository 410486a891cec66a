"""Files of generators: read with care, whoever wrote them, and turned into networks."""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from authors import import_generator
from config import OF_THE_MACHINE, Config, plain_name
from generator import Generator
from labels import Labels
from machine.devices import pick_device
from pictures.sides import Side, Sides
from recipes import resolve

# What a file that lacks a setting was made without, whatever the recipe says now.
LACKING = {"refine": False, "even_kernels": False, "lambda_projected": 0.0}
GONE = {"even_start"}  # settings of older files that say nothing of the generator in them
MAX_SIDE = 65535  # pixels, of the pictures of a training
FACTS, CHECKSUM = "pix2pix", "crc32"  # in the metadata of a safetensors file of this project


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint of this project."""


# --- Networks ---
@dataclass(frozen=True)
class Facts:
    """What a generator is saved with, to be used on other pictures."""

    config: Config
    """The resolved settings that it was trained with."""
    sides: Sides
    """What its inputs and outputs are as files."""
    picture_size: tuple[int, int] | None = None
    """Median height and width, in pixels, of the pictures it was trained on, where known."""
    side_by_side: bool = False
    """Whether those were halves of side-by-side pictures."""
    mixed_sizes: bool = False
    """Whether those were of many sizes, all squeezed to one."""

    def as_saved(self) -> dict[str, Any]:
        """Return them as plain data, for a checkpoint."""
        return vars(self) | {"config": asdict(self.config), "sides": self.sides.as_saved()}

    @classmethod
    def from_saved(cls, content: Mapping[str, Any]) -> "Facts":
        """Return what ``as_saved`` made plain; what concerns the machine takes its default.

        Raises:
            ValueError, TypeError, KeyError: They are not as ``as_saved`` makes them.
        """
        saved = {n: v for n, v in content["config"].items() if n not in GONE}
        unknown = saved.keys() - {field.name for field in fields(Config)}
        if unknown:
            names = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"it is of another version of this project, with settings {names}")
        typed = LACKING | {n: v for n, v in saved.items() if n not in OF_THE_MACHINE}
        size = content.get("picture_size")
        if size is not None:
            height, width = size
            if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
                raise ValueError(f"picture_size is {size}")
            size = (height, width)
        return cls(
            resolve(Config(**typed))[0],
            Sides.from_saved(content["sides"]),
            size,
            bool(content.get("side_by_side")),
            bool(content.get("mixed_sizes")),
        )


class Translator(nn.Module):
    """A generator with all that is needed to use it: pictures in, pictures out.

    Args:
        generator: The network.
        labels: Which of its pictures are label pictures, and of which classes.
        facts: What it was trained with.
    """

    def __init__(self, generator: Generator, labels: Labels, facts: Facts) -> None:
        super().__init__()
        self.generator, self.labels, self.facts = generator, labels, facts

    @property
    def config(self) -> Config:
        """The resolved settings of its training."""
        return self.facts.config

    @property
    def sides(self) -> Sides:
        """What its inputs and outputs are as files."""
        return self.facts.sides

    def forward(self, x: Tensor) -> Tensor:
        """Translate pictures.

        Args:
            x: (N, channels, H, W) in [-1, 1], H and W multiples of ``multiple``.

        Returns:
            (N, channels of the targets, H, W) in [-1, 1], float32.
        """
        output = self.generator(self.labels.encode_input(x))
        with torch.autocast(x.device.type, enabled=False):  # colours need more digits than it has
            return self.labels.finish(output)

    @property
    def multiple(self) -> int:
        """What sides of pictures in pixels must be multiples of: 2 to the number of levels."""
        return 2 ** len(self.generator.encoder)


def labels_of(config: Config, sides: Sides) -> Labels:
    """Return what of the pictures is taken for classes."""
    return Labels(
        sides.input.colours if config.is_label("input") else None,
        sides.target.colours if config.is_label("target") else None,
        soft_edges=not sides.target.is_exact,
        ignores=config.ignore is not None,
    )


def build_generator(config: Config, sides: Sides) -> Generator:
    """Return the generator that a resolved ``config`` describes, freshly initialised.

    Args:
        config: Its settings.
        sides: What its inputs and outputs are as files.
    """
    channels = [
        len(side.palette) if config.is_label(role) else side.channels
        for role, side in zip(("input", "target"), sides, strict=True)
    ]
    return Generator(
        *channels,
        crop_size=config.crop_size,
        bottleneck=config.bottleneck,
        ngf=config.ngf,
        norm=config.norm,
        dropout=config.dropout,
        even_kernels=config.even_kernels,
        refine=config.refine,
        tanh=not config.is_label("target"),
        recompute=config.recompute,
    )


@contextmanager
def testing(network: nn.Module, seed: int) -> Iterator[None]:
    """Lend ``network`` for test-time use, then hand it back as it was.

    Nothing inside touches the random state outside, and dropout at test, where it is on, draws
    the same noise every time.
    """
    was_training, device = network.training, next(network.parameters()).device
    accelerators = {} if device.type == "cpu" else {"device_type": device.type}
    devices = [device] if accelerators else []
    with torch.inference_mode(), torch.random.fork_rng(devices, **accelerators):
        torch.manual_seed(seed)
        network.eval()
        try:
            yield
        finally:
            network.train(was_training)


# --- Files ---
def load_generator(path: str | Path, device: str | torch.device = "auto") -> Translator:
    """Return a trained generator, ready to translate.

    Args:
        path: ``generator.pt`` or ``latest.pt`` of a run, what export.py wrote as safetensors, or
            ``latest_net_G.pth`` of the authors' PyTorch port.
        device: Where to put it; "auto" is CUDA, else Apple's MPS, else the CPU.

    Returns:
        The module, configured for test, with what it was trained with as ``facts``. It takes
        (N, channels, H, W) in [-1, 1], H and W multiples of ``multiple``.

    Raises:
        CheckpointError: The file is damaged or holds no such generator.
        OSError: It does not exist or cannot be read.
        ValueError: This machine has no such device.
    """
    path = Path(path)
    content = read_file(path)
    if is_ours(content):
        with explaining(path):
            weights = content.get("average") or content["generator"]
            translator = translator_from(Facts.from_saved(content), weights)
    else:
        translator = _import(content, path)
    return translator.to(pick_device(str(device)))


def translator_from(facts: Facts, weights: Any) -> Translator:
    """Return a generator with the weights of a file, configured for test.

    Raises:
        ValueError: They are not those of such a generator.
    """
    generator = build_generator(facts.config, facts.sides)
    load_weights(generator, weights)
    return _ready(generator, facts)


def _ready(generator: Generator, facts: Facts) -> Translator:
    translator = Translator(generator, labels_of(facts.config, facts.sides), facts)
    return translator.eval().requires_grad_(False)


def _import(content: Any, path: Path) -> Translator:
    """Return a generator that the authors' code saved."""
    try:
        # The authors' files all have the same name, in the folder of their run.
        generator, config = import_generator(content, plain_name(path.absolute().parent.name))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return _ready(generator, Facts(config, Sides(Side(config.input_nc), Side(config.output_nc))))


def is_ours(content: Any) -> bool:
    """Say whether what a file holds is a checkpoint of this project."""
    return isinstance(content, dict) and {"generator", "config"} <= content.keys()


def read_file(path: Path) -> Any:
    """Return what a file of torch or of safetensors holds, tensors on the CPU.

    Code hidden in the file is not run; safetensors files can hold none.

    Raises:
        CheckpointError: The file is damaged.
        OSError: It does not exist or cannot be read.
    """
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError(f"{path} is no file; expected a checkpoint.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a checkpoint, such as checkpoints/NAME/generator.pt."
        )
    with open(path, "rb") as file:
        try:
            # torch itself does not compare the checksums that it writes; before 1.6 it wrote none.
            start = file.read(9)
            if start[:4] == b"PK\x03\x04" and (damaged := zipfile.ZipFile(file).testzip()):
                raise ValueError(f"the checksum of {damaged} does not match")
            if start[8:] == b"{":  # JSON behind its length
                return _read_safetensors(path)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damage makes the readers raise nearly anything
            raise CheckpointError(f"{path} {_why_unreadable(error)}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the weights of a file, and those of a generator of this project with its facts."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if FACTS not in metadata:
        return weights
    if metadata[CHECKSUM] != checksum_of(weights):  # safetensors has none of its own
        raise ValueError("the checksum of its weights does not match")
    return {"generator": weights} | json.loads(metadata[FACTS])


def checksum_of(weights: Mapping[str, Tensor]) -> str:
    """Return a checksum of weights on the CPU, whatever their order."""
    total = 0
    for _, tensor in sorted(weights.items()):
        total = zlib.crc32(tensor.contiguous().numpy().tobytes(), total)
    return f"{total:08x}"


def _why_unreadable(error: Exception) -> str:
    """Say in one sentence what is wrong with a file; torch's own advice is to run its code."""
    if code := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return (
            f"holds code ({code[1]}), as a whole pickled network does, and it is not run; expected "
            "weights alone: save the network's state_dict() instead."
        )
    reason = str(error).partition(". ")[0]
    return f"is damaged or no checkpoint ({type(error).__name__}: {reason})."


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of a file into one error that names it.

    Raises:
        CheckpointError: Anything was raised in the block.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # content of any shape makes the code raise nearly anything
        reason = str(error).partition("\n")[0].rstrip(".")
        reason = f"it lacks {error}" if isinstance(error, KeyError) else reason
        raise CheckpointError(
            f"{path} cannot be used: {reason}. Expected a checkpoint of this version's train.py; "
            "copy it again, or train again."
        ) from error


def load_weights(network: nn.Module, weights: Any) -> None:
    """Give a network the weights of a file.

    Raises:
        ValueError: They are not those of this network, or not finite.
    """
    expected = network.state_dict()
    if not isinstance(weights, Mapping) or weights.keys() != expected.keys():
        found = weights.keys() if isinstance(weights, Mapping) else set()
        odd = sorted(map(str, found ^ expected.keys()))[:3]
        raise ValueError(f"its weights are not those of its settings ({', '.join(odd)})")
    for name, tensor in weights.items():
        if name.endswith("_extra_state"):
            continue  # no tensor, and for the module itself to read
        if not isinstance(tensor, Tensor) or tensor.shape != expected[name].shape:
            raise ValueError(f"{name} is not of the shape {tuple(expected[name].shape)}")
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}, not plain numbers of its kind")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are infinite or NaN")
    network.load_state_dict(weights)
