"""Every setting of a training run: edit a default below, or type its flag at ``train.py``."""

import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

# The paper (section 3.3, appendix 6.2), with the epochs of the authors' PyTorch port.
PAPER: dict[str, Any] = {
    "direction": "AtoB",
    "load_size": 286,
    "crop_size": 256,
    "batch_size": 1,
    "flip": True,
    "n_epochs": 100,
    "n_epochs_decay": 100,
}

# How to learn: as in the paper, or with what has helped since (measured in the README).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "bottleneck": 1,
        "dropout": True,
        "even_start": False,
        "labels": "none",
        "lambda_l1": 100.0,
        "lambda_features": 0.0,
        "ema_decay": 0.0,
    },
    "modern": {
        "bottleneck": 4,
        "dropout": False,
        "even_start": True,
        "labels": "target",  # where their colours are known
        "lambda_l1": 25.0,
        "lambda_features": 10.0,
        "ema_decay": 0.999,
    },
}

# What the recipe of a data set changes in that. The paper's shorter trainings do not decay.
_DRAWN = {"load_size": 143, "crop_size": 128, "n_epochs": 4, "n_epochs_decay": 4}
_EDGES = {"load_size": 256, "batch_size": 4, "flip": False, "n_epochs": 15, "n_epochs_decay": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "towns": _DRAWN,
    "heights": _DRAWN,
    "facades": {"direction": "BtoA"},
    "maps": {},
    "cityscapes": {"direction": "BtoA"},
    "edges2shoes": _EDGES,
    "edges2handbags": _EDGES,
    "night2day": {"batch_size": 4, "n_epochs": 17, "n_epochs_decay": 0},
}

# Where the authors publish the archives of those data sets (the drawn ones aside).
OFFICIAL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets"

MAX_CROP = 1024  # pixels
PATHS = ("dataset", "train_dir", "val_dir", "input_dir", "target_dir", "a", "b")
PATHS += ("cache_dir", "init_from", "teacher")


class Rule(NamedTuple):
    """What the values of a setting may be; it stands beside the setting."""

    allows: Callable[[Any], bool]
    expected: str


def whole(least: int) -> Rule:
    """Return the rule of a whole number that has a smallest value."""
    return Rule(lambda value: value >= least, f"a whole number from {least} up")


def number(least: float) -> Rule:
    """Return the rule of a finite number that has a smallest value."""
    return Rule(lambda value: least <= value < math.inf, f"a number from {least:g} up")


def plain_name(name: str) -> str:
    """Return ``name`` with an underscore for each character that no folder's name can hold."""
    return re.sub(r'[/\\:*?"<>|]', "_", name)


DATASET = Rule(bool, "a folder, or one of " + ", ".join(PRESETS))
MIRROR = Rule(bool, "an http(s) address, or a folder that holds NAME.tar.gz")
RANGE = Rule(
    lambda value: -math.inf < value[0] < value[1] < math.inf, "two numbers, the smaller one first"
)
BOTTLENECK = Rule(lambda value: value in (1, 2, 4, 8), "1, 2, 4 or 8")
DECAY = Rule(lambda value: 0 <= value < 1, "a number from 0 up to, but not, 1")
SHARE = Rule(lambda value: 0 < value < 1, "a number between 0 and 1")
FOLDER_NAME = Rule(
    lambda value: value not in (".", "..") and value == plain_name(value),
    "a plain folder name, without slashes and the like",
)
CROP = Rule(
    lambda value: 32 <= value <= MAX_CROP and value.bit_count() == 1,
    "a power of two from 32 to 1024 (32, 64, 128, 256, 512, 1024)",
)
DEVICE = Rule(
    lambda value: value.split(":")[0] in ("auto", "cpu", "cuda", "mps"),
    "auto, cpu, mps, cuda, or one card as cuda:1",
)
SEED = Rule(lambda value: 0 <= value < 2**63, "a whole number from 0 up to 2**63 - 1")


@dataclass(frozen=True)
class Config:
    """The settings of one training run.

    A setting that is None follows the data set (its row in PRESETS), else the recipe or the paper.

    Raises:
        ValueError: A value, or a pair of values, that cannot work.
    """

    recipe: Literal["paper", "modern"] = "modern"
    """How to learn: as in the paper, or with what has helped since; both are in RECIPES."""

    # --- The data ---
    dataset: Annotated[str, DATASET] = "towns"
    """Folder of pairs; shards, as 'x/train-{000..099}.tar'; or a name in PRESETS (made for you)."""
    mirror: Annotated[str, MIRROR] = OFFICIAL
    """Where a data set in PRESETS is fetched: base address, or local folder of NAME.tar.gz."""
    name: Annotated[str, FOLDER_NAME] = ""
    """Name of the run, for its folders of results; empty: the data set's folder name."""
    train_dir: str = ""
    """Training pairs, where they are not called train: X/learn also finds X/learn_A, X/learn_B."""
    val_dir: str = ""
    """Validation pairs, where they are not called val, validation or test; likewise. Or shards."""
    input_dir: str = ""
    """Folder of input pictures, whose targets have the same names in target_dir."""
    target_dir: str = ""
    """Folder of target pictures."""
    a: str = ""
    """Name of the folders of A pictures, where it is not A: images finds train/images as well."""
    b: str = ""
    """Name of the folders of B pictures, where it is not B."""
    suffix_a: str = ""
    """What the names of A pictures end in, where both lie in one folder: _A, or .jpg for a type."""
    suffix_b: str = ""
    """What the names of B pictures end in, such as _B."""
    val_fraction: Annotated[float, SHARE] = 0.1
    """Share of the pairs kept for validation, where the folder has no split of its own."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """AtoB turns the left halves into the right ones, BtoA the right into the left."""
    load_size: Annotated[int | None, whole(32)] = None
    """Side in pixels to which the halves are resized before the random crop (jitter)."""
    crop_size: Annotated[int | None, CROP] = None
    """Side in pixels of the training pictures: a power of two from 32 to 1024."""
    flip: bool | None = None
    """Mirror half of the pairs, left to right, at random."""
    keep_aspect: bool = False
    """Scale the short side to load_size and crop, instead of squeezing pictures to a square."""
    square_halves: bool = True
    """Expect side-by-side pictures twice as wide as high; off: cut any even width in half."""
    check_halves: bool = True
    """Refuse side-by-side pictures that look like single ones; off: cut them in half anyway."""
    nearest: Literal["none", "input", "target", "both"] = "none"
    """Pictures to resize by nearest neighbour: labels, so that no colours are invented."""
    labels: Literal["none", "input", "target", "both"] | None = None
    """Pictures whose colours or numbers are classes: shown as such, or learned in place of L1."""
    on_bad_picture: Literal["stop", "skip"] = "stop"
    """stop lists every picture that cannot be used; skip lists them and goes on without."""
    input_nc: Annotated[int | None, whole(1)] = None
    """Channels of the inputs; None: as the files have. 1 (grey) and 3 (colour) become the other."""
    output_nc: Annotated[int | None, whole(1)] = None
    """Channels of the outputs, likewise."""
    input_range: Annotated[tuple[float, float] | None, RANGE] = None
    """Numbers that become -1 and 1; None: all of 8 or 16 bits, else 99.8 % of those there are."""
    target_range: Annotated[tuple[float, float] | None, RANGE] = None
    """The same of the targets: 0 4095 for 12 bits, 0 1 for masks saved as 0 and 1."""
    alpha: Literal["white", "keep"] = "white"
    """What is transparent: drawn over white, or opacity kept as a channel."""
    max_pixels: Annotated[int | None, whole(1)] = None
    """Pixels of the largest picture that is read; None: 179 million, Pillow's guard."""
    cache_dir: Annotated[str, Rule(bool, "a folder")] = "data/.cache"
    """Folder for the pictures as decoded and resized once, which later runs share."""
    cache_limit_gb: Annotated[float, number(0)] = 16.0
    """Largest cache of one data set, in GB; above it pictures are decoded each time."""

    # --- The networks ---
    bottleneck: Annotated[int | None, BOTTLENECK] = None
    """Side of the U-Net's innermost map: 1 (the paper), or 4, in 0.7 of a CPU's time a step."""
    even_start: bool | None = None
    """Begin with transposed kernels that paint even areas, against a grid of 2 px."""
    ngf: Annotated[int, whole(1)] = 64
    """Channels of the generator's outermost layer."""
    ndf: Annotated[int, whole(1)] = 64
    """Channels of the discriminator's first layer."""
    n_layers_d: Annotated[int, Rule(lambda v: 0 <= v <= 8, "a whole number from 0 to 8")] = 3
    """Layers of stride 2 in the discriminator: 0 judges pixels, 1 16x16, 3 70x70, 5 286x286."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation; instance equals the paper's batch norm at batch size 1."""
    dropout: bool | None = None
    """Dropout in the first three decoder blocks while training: the paper's noise z."""
    dropout_at_test: bool = False
    """Keep dropout on when translating: the paper's way; the same input then varies."""
    batch_norm_at_test: Literal["batch", "running"] = "batch"
    """Statistics of batch norm when translating: the batch's own (the paper), or the running."""

    # --- The training ---
    n_epochs: Annotated[int | None, whole(0)] = None
    """Epochs at the full learning rate."""
    n_epochs_decay: Annotated[int | None, whole(0)] = None
    """Epochs after those, in which the learning rate falls linearly towards zero."""
    batch_size: Annotated[int | None, whole(1)] = None
    """Pairs a step; the paper takes 1 to 10, by data set (section 3.3)."""
    accumulate: Annotated[int, whole(1)] = 1
    """Parts in which a batch is learned from, one after the other: less memory, more time."""
    recompute: bool = False
    """Compute the generator's inner maps twice instead of keeping them: less memory, more time."""
    lr: Annotated[float, Rule(lambda value: 0 < value < math.inf, "a number above 0")] = 2e-4
    """Learning rate of Adam, for both networks."""
    beta1: Annotated[float, DECAY] = 0.5
    """Decay rate of Adam's running mean of the gradient."""
    gan_mode: Literal["vanilla", "lsgan", "none"] = "vanilla"
    """Adversarial loss: cross-entropy, least squares, or none (L1 alone, no discriminator)."""
    lambda_l1: Annotated[float | None, number(0)] = None
    """Weight of the L1 loss beside the adversarial loss; 0 where targets are learned as classes."""
    lambda_classes: Annotated[float, number(0)] = 20.0
    """Weight of the cross-entropy, where targets are learned as classes."""
    lambda_features: Annotated[float | None, number(0)] = None
    """Weight of feature matching: the discriminator's maps of an output are to be the target's."""
    lambda_perceptual: Annotated[float, number(0)] = 0.0
    """Weight of the distance in a network that knows photos (10; needs requirements-eval.txt)."""
    ema_decay: Annotated[float | None, DECAY] = None
    """Use the mean of the generator over its last steps, some 1 / (1 - ema_decay); 0: the last."""
    init_from: str = ""
    """File to start a new run from (fine-tuning): generator.pt, latest.pt, latest_net_G.pth."""
    teacher: str = ""
    """Checkpoint of a run whose generator teaches this one, which can be narrower (--ngf 16)."""
    lambda_maps: Annotated[float, number(0)] = 10.0
    """Weight of what the teacher's decoder finds, to be found in this generator's too."""
    seed: Annotated[int, SEED] = 0
    """Seed of weights, order, augmentation and dropout."""

    # --- The machine ---
    device: Annotated[str, DEVICE] = "auto"
    """auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, else fp16 on CUDA, else fp32 (with TF32 off)."""
    compile: bool = False
    """Compile both networks with torch.compile, which takes minutes at the start."""
    cuda_graph: bool = True
    """On CUDA, record each epoch's step once and play it back: far faster at batch size 1."""
    num_workers: Annotated[int, whole(0)] = 2
    """Processes that prepare pairs beside the training; 0 prepares them in between."""

    # --- What a run writes ---
    log_interval: Annotated[int, whole(1)] = 20
    """Steps between two readings of the losses, for the bar and the check on NaN."""
    picture_interval: Annotated[int, whole(1)] = 1
    """Epochs between two grids of sample pictures (the first and the last are always drawn)."""
    val_interval: Annotated[int, whole(1)] = 1
    """Epochs between two validations (the first and the last epoch are always validated)."""
    n_samples: Annotated[int, whole(1)] = 6
    """Validation pairs in the grid of samples."""
    checkpoint_minutes: Annotated[float, number(0)] = 10.0
    """Minutes between two checkpoints; 0 writes one after every step."""
    keep_generators: Annotated[int, whole(0)] = 0
    """Keep the generator of every so many epochs as generator_050.pt; 0 keeps the last alone."""

    def is_label(self, role: str) -> bool:
        """Whether the pictures of a role, "input" or "target", are taken for classes."""
        return self.labels in (role, "both")

    def __post_init__(self) -> None:
        """Check each value, then those that only work together."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        _check_pairs(self)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as Python's own type; refuse one of another type or outside its range."""
    rules = getattr(hint, "__metadata__", ())
    hint = get_args(hint)[0] if rules else hint
    kind, *others = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and others:
        return None
    if get_origin(kind) is tuple:
        kind, choices = tuple, ()
        right_kind = _is_pair(value := _plain(value, kind))
    else:
        choices = get_args(kind)  # of a Literal
        kind = str if choices else kind
        value = _plain(value, kind)
        right_kind = value in choices if choices else type(value) is kind
    if right_kind and all(rule.allows(value) for rule in rules):
        return value
    expected = [rule.expected for rule in rules] or choices or [f"of type {kind.__name__}"]
    raise ValueError(f"{name} is {value!r}; it must be {' or '.join(expected)}.")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and [type(number) for number in value] == [float, float]


def _plain(value: Any, kind: type) -> Any:
    """Return a sweep's NumPy number, an enum or a path as what a checkpoint can hold."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hasattr(value, "item") and not value.shape:  # a scalar of NumPy or torch
        value = value.item()
    if kind is tuple and isinstance(value, Sequence):
        return tuple(_plain(number, float) for number in value)
    if isinstance(value, bool):  # an int to Python, but batch_size=True is a mistake
        return value
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    return str(value) if isinstance(value, str) else value


def _check_pairs(config: Config) -> None:
    """Refuse values that cannot work together, naming the smallest change that does."""
    for one, other in (("input_dir", "target_dir"), ("a", "b")):
        if bool(getattr(config, one)) != bool(getattr(config, other)):
            missing = other if getattr(config, one) else one
            raise ValueError(f"{missing} is empty; {one} and {other} are set together.")
    if config.input_dir and config.a:
        raise ValueError(
            "input_dir and a are both set; name the folders of inputs and targets in one way."
        )
    if config.suffix_a == config.suffix_b != "":
        raise ValueError(
            f"suffix_a and suffix_b are both {config.suffix_a}; set them to what tells A from B."
        )
    if config.input_dir and config.direction == "BtoA":
        raise ValueError(
            "direction is BtoA, but input_dir and target_dir say already what becomes what; leave "
            "direction out, and swap the two folders to learn the other way round."
        )
    if config.n_epochs == 0 and config.n_epochs_decay == 0:
        raise ValueError("n_epochs and n_epochs_decay are both 0; set n_epochs to 1 or more.")
    others = config.lambda_perceptual or (config.is_label("target") and config.lambda_classes)
    if config.gan_mode == "none" and config.lambda_l1 == 0 and not others:
        raise ValueError(
            "gan_mode is none and lambda_l1 is 0, so there is no loss to train on; "
            "set lambda_l1 above 0 (the paper: 100)."
        )
    _check_parts(config)
    if config.crop_size is None:
        return
    if config.load_size is not None and config.load_size < config.crop_size:
        raise ValueError(
            f"load_size {config.load_size} is smaller than crop_size {config.crop_size}, and a "
            f"crop cannot be larger than its picture; set load_size to {config.crop_size} or more."
        )
    # After the stride-2 layers two 4x4 convolutions take one pixel each, and the norm between
    # them needs more than one: four must be left.
    deepest = int(math.log2(config.crop_size)) - 2
    if config.n_layers_d > deepest and config.gan_mode != "none":
        raise ValueError(
            f"n_layers_d {config.n_layers_d} leaves nothing of a {config.crop_size} px crop for "
            f"the discriminator to judge; set n_layers_d to {deepest} or less, or crop_size to "
            f"{2 ** (config.n_layers_d + 2)} or more."
        )


def _check_parts(config: Config) -> None:
    """Refuse what would make a batch that is learned from in parts another batch."""
    if config.batch_size and config.batch_size % config.accumulate:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split into {config.accumulate} equal parts; "
            "set accumulate to a divisor of it."
        )
    if config.norm == "batch" and (config.accumulate > 1 or config.recompute):
        raise ValueError(
            "norm is batch, whose statistics are those of all pictures computed at once, and are "
            "counted at each computation; leave norm at instance, or accumulate and recompute out."
        )
    if config.teacher and (config.accumulate > 1 or config.recompute):
        raise ValueError(
            "a teacher compares the inner maps of a whole batch, which accumulate and recompute do "
            "not keep; leave those out."
        )


def parse_command_line() -> tuple[Config, bool]:
    """Read the flags of ``train.py``; each field of Config is one.

    Returns:
        The settings, and whether ``--fresh`` was given. A wrong flag or value prints one message
        and exits with code 2.
    """
    return tyro.cli(_command_line, config=(tyro.conf.OmitArgPrefixes,))


def _command_line(
    config: Annotated[Config, tyro.conf.arg(name="")],
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> tuple[Config, bool]:
    """Train Pix2Pix. The same command again goes on where the run stopped.

    Args:
        config: Settings; None follows the recipe of the data set.
        fresh: Move an existing run of that name aside and start over.
    """
    return config, fresh
