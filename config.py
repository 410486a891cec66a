"""Every setting of a training run: edit a default below, or type its flag at ``train.py``."""

import functools
import inspect
import os
import re
import sys
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from annotated_types import Ge, Gt, Interval, Lt
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

# Where the authors publish the archives of those data sets (the drawn ones aside).
OFFICIAL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets"

MAX_CROP = 1024  # pixels
PATHS = ("dataset", "train_dir", "val_dir", "a", "b", "cache_dir", "init_from", "teacher")
# What concerns the machine is for its user to say, never for a file that came from elsewhere.
OF_THE_MACHINE = ("mirror", "cache_dir", "cache_limit_gb", "max_pixels", "device", "num_workers")


def plain_name(name: str) -> str:
    """Return ``name`` with an underscore for each character that no folder's name can hold."""
    # The last ones steer a terminal, or are no text.
    return re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]', "_", name)


def _folder_name(name: str) -> str:
    if name in (".", "..") or name != plain_name(name) or len(os.fsencode(name)) > 200:
        raise ValueError(
            "it should be a plain folder name of 200 bytes at most, without slashes and the like"
        )
    return name


def _in_order(numbers: tuple[float, float]) -> tuple[float, float]:
    if numbers[0] >= numbers[1]:
        raise ValueError("it should be two numbers, the smaller one first")
    return numbers


# The types of the settings: what is outside them is refused, see ``Config``.
Text = Annotated[str, Field(min_length=1)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Range = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_in_order)]
Count = Annotated[int, Ge(1)]
CountOrNone = Annotated[int, Ge(0)]
LoadSize = Annotated[int, Ge(32)]
CropSize = Literal[32, 64, 128, 256, 512, 1024]
Weight = Annotated[FiniteFloat, Ge(0)]
Rate = Annotated[FiniteFloat, Gt(0)]
Share = Annotated[float, Interval(gt=0, lt=1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Roles = Literal["none", "input", "target", "both"]


@dataclass(frozen=True)
class Config:
    """The settings of one training run.

    A setting that is None follows the data set (its row in PRESETS), else the recipe or the paper.

    Raises:
        ValueError: A value, or a pair of values, that cannot work.
    """

    recipe: Literal["paper", "modern"] = "modern"
    """Train as in the paper, or with what improved the results here; both are in RECIPES."""

    # --- The data ---
    # Set these to train on your own pictures.
    dataset: Text = "towns"
    """Folder of pairs; shards, as 'x/train-{000..099}.tar'; or a name in PRESETS (made for you)."""
    mirror: Text = OFFICIAL
    """Where a data set in PRESETS is fetched: http(s) address, or local folder of NAME.tar.gz."""
    name: FolderName = ""
    """Name of the run, for its folders of results; empty: the data set's folder name."""
    train_dir: str = ""
    """Folder of training pairs, if not called train. X/learn also finds X/learn_A, X/learn_B."""
    val_dir: str = ""
    """Folder or shards of validation pairs, if not called val, validation or test."""
    a: str = ""
    """A pictures, if not in a folder A: a path (photos/), a folder's name, or an ending ('*_A')."""
    b: str = ""
    """B pictures, likewise: maps/, masks, or '*_mask' for 1_mask.png beside 1.jpg."""
    val_fraction: Share = 0.1
    """Share of the pairs kept for validation, where the folder has no split of its own."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """AtoB turns A pictures (the left halves) into B pictures, BtoA the other way round."""
    load_size: LoadSize | None = None
    """Side in pixels to which pictures are resized before the random crop (jitter)."""
    crop_size: CropSize | None = None
    """Side in pixels of the training pictures, a power of two."""
    flip: bool | None = None
    """Mirror half of the pairs, left to right, at random."""
    keep_aspect: bool = False
    """Scale the short side to load_size and crop, instead of squeezing pictures to a square."""
    check_halves: bool = True
    """Refuse side-by-side pictures that are not two squares, or look like single ones."""
    nearest: Roles = "none"
    """Pictures to resize by nearest neighbour: labels, so that no colours are invented."""
    labels: Roles | None = None
    """Which are label pictures: inputs are shown as classes, targets learned as such, not by L1."""
    ignore: int | None = None
    """Number in label pictures that is no class (255, -1) and is left out of loss and scores."""
    on_bad_picture: Literal["stop", "skip"] = "stop"
    """List all pictures that cannot be used, then stop, or go on without them (skip)."""
    input_nc: Count | None = None
    """Channels of the inputs; None: as the files have. 1 (grey) and 3 (colour) become the other."""
    output_nc: Count | None = None
    """Channels of the outputs, likewise."""
    input_range: Range | None = None
    """Input numbers scaled to -1 and 1; None: those of 8 or 16 bits, else of 99.8 % of the data."""
    target_range: Range | None = None
    """The same for targets: 0 4095 for 12 bits, 0 1 for masks saved as 0 and 1."""
    alpha: Literal["white", "keep"] = "white"
    """Draw transparent pictures over white, or keep opacity as a channel."""
    max_pixels: Count | None = None
    """Pixels of the largest picture that is read; None: 179 million, Pillow's guard."""
    cache_dir: Text = "data/.cache"
    """Folder for the pictures as decoded and resized once, which later runs share."""
    cache_limit_gb: Weight = 16.0
    """Largest cache of one data set, in GB; above it pictures are decoded each time."""

    # --- The networks ---
    # Change these for a smaller, larger or other generator and discriminator.
    bottleneck: Literal[1, 2, 4, 8] | None = None
    """Side of the U-Net's innermost map: 1 (the paper), or 8 (smaller and faster)."""
    even_kernels: bool | None = None
    """Keep the outermost transposed kernel from painting a grid of 2 px on even ground."""
    refine: bool | None = None
    """Add two convolutions at full size after the U-Net, which see the input: no grid of 2 px."""
    ngf: Count = 64
    """Channels of the generator's outermost layer."""
    ndf: Count = 64
    """Channels of the discriminator's first layer."""
    n_layers_d: Annotated[int, Interval(ge=0, le=8)] = 3
    """Layers of stride 2 in the discriminator: 0 judges pixels, 1 16x16, 3 70x70, 5 286x286."""
    norm: Literal["instance", "batch", "batch_running", "none"] = "instance"
    """Normalisation; at test batch takes the batch's statistics, batch_running the training's."""
    dropout: Literal["none", "training", "always"] | None = None
    """The paper's noise z, in the first decoder blocks: while training, or always (at test too)."""

    # --- The training ---
    # Change these to train longer, with other losses, in less memory, or from a trained run.
    n_epochs: CountOrNone | None = None
    """Epochs at the full learning rate."""
    n_epochs_decay: CountOrNone | None = None
    """Epochs after those, in which the learning rate falls linearly towards zero."""
    batch_size: Count | None = None
    """Pairs a step; the paper takes 1 to 10, by data set (section 3.3)."""
    accumulate: Count = 1
    """Learn a batch in so many parts, one after the other: less memory, more time."""
    recompute: bool = False
    """Compute the generator's inner maps twice instead of keeping them: less memory, more time."""
    lr: Rate | None = None
    """Learning rate of Adam for both networks: 2e-4 in the recipe "paper", 6e-4 in "modern"."""
    beta1: Decay = 0.5
    """Decay rate of Adam's running mean of the gradient."""
    gan_mode: Literal["vanilla", "lsgan", "none"] = "vanilla"
    """Adversarial loss: cross-entropy, least squares, or none (L1 alone, no discriminator)."""
    lambda_l1: Weight | None = None
    """Weight of the L1 loss beside the adversarial loss; 0 where targets are learned as classes."""
    lambda_classes: Weight = 20.0
    """Weight of the cross-entropy, where targets are learned as classes."""
    lambda_features: Weight | None = None
    """Weight of feature matching: the discriminator's maps of output and target should agree."""
    lambda_perceptual: Weight | None = None
    """Weight of the distance in a network trained on photos; 0 where targets are classes."""
    lambda_projected: Weight | None = None
    """Weight of a second discriminator, which judges the maps of that network; 0 likewise."""
    ema_decay: Decay | None = None
    """Use the mean of the generator over its last 1 / (1 - ema_decay) steps or so; 0: the last."""
    init_from: str = ""
    """File to fine-tune from: generator.pt, latest.pt, .safetensors, latest_net_G.pth."""
    teacher: str = ""
    """Checkpoint of a run whose generator teaches this one, which can be narrower (--ngf 16)."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and dropout."""

    # --- The machine ---
    # Change these to choose a device, or for speed; the defaults suit most machines.
    device: Device = "auto"
    """auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, else fp16 on CUDA, else fp32 (with TF32 off)."""
    compile: bool = False
    """Compile both networks with torch.compile, which takes minutes at the start."""
    cuda_graph: bool = True
    """On CUDA, record each epoch's step once and play it back: far faster at batch size 1."""
    num_workers: CountOrNone | None = None
    """Processes that prepare pairs; None: 2 to 8 by cores, none if cached and on a CPU."""

    # --- What a run writes ---
    # Change these for more or fewer readings, validations and checkpoints.
    log_interval: Count = 20
    """Steps between two readings of the losses, for the bar and the check on NaN."""
    val_interval: Count = 1
    """Epochs between two validations with samples (after the first and the last epoch always)."""
    checkpoint_minutes: Weight = 10.0
    """Minutes between two checkpoints; 0 writes one after every step."""
    keep_generators: CountOrNone = 0
    """Keep the generator of every so many epochs as generator_050.pt; 0 keeps the last alone."""

    def is_label(self, role: str) -> bool:
        """Whether the pictures of a role, "input" or "target", are taken for classes."""
        return self.labels in (role, "both")

    @property
    def asks_photo_network(self) -> bool:
        """Whether a loss asks the network that knows photos, in resolved settings."""
        return bool(self.lambda_perceptual or self.lambda_projected)

    def __post_init__(self) -> None:
        """Check each value by its type, then those that only work together."""
        for name, adapter in _adapters().items():
            value = _plain(getattr(self, name))
            try:
                if isinstance(value, str):  # a path need not be text, and pydantic takes text alone
                    adapter.validate_python(value.encode(errors="replace").decode())
                else:
                    value = adapter.validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                reason = re.sub("^(Input|String|Tuple)", "it", reason)
                reason = reason.replace("Field required", "a number is missing")
                raise ValueError(f"{name} is {value!r}; {reason}.") from None
            object.__setattr__(self, name, value)
        _check_together(self)


@functools.cache
def _adapters() -> dict[str, TypeAdapter]:
    """Return what checks each setting by its type, by the setting's name."""
    hints = get_type_hints(Config, include_extras=True)
    strict = ConfigDict(strict=True)  # or batch_size "4" and True would be numbers
    return {name: TypeAdapter(hint, config=strict) for name, hint in hints.items()}


def _plain(value: Any) -> Any:
    """Return a number of NumPy or torch, a path or a list as what a checkpoint can hold."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list):
        return tuple(value)
    return value.item() if hasattr(value, "item") and not value.shape else value


def _check_together(config: Config) -> None:
    """Refuse values that cannot work together, naming the smallest change that does."""
    if config.a == config.b != "":
        raise ValueError(
            f"a and b are both {config.a}; set them to two names or endings, such as '*_A' and "
            "'*_B'."
        )
    if config.n_epochs == 0 and config.n_epochs_decay == 0:
        raise ValueError("n_epochs and n_epochs_decay are both 0; set n_epochs to 1 or more.")
    if config.gan_mode == "none" and config.lambda_projected:
        raise ValueError(
            "gan_mode none has no discriminator, but lambda_projected is "
            f"{config.lambda_projected:g}; set it to 0, or change gan_mode."
        )
    others = config.lambda_perceptual or (config.is_label("target") and config.lambda_classes)
    if config.gan_mode == "none" and config.lambda_l1 == 0 and not others:
        raise ValueError(
            "gan_mode is none and lambda_l1 is 0, so there is no loss to train on; "
            "set lambda_l1 above 0 (the paper: 100)."
        )
    if config.ignore is not None and config.labels == "none":
        raise ValueError(
            "ignore is a number in label pictures, and labels is none; add --labels target, input "
            "or both, or leave ignore out."
        )
    _check_parts(config)
    if config.crop_size is not None:
        _check_sizes(config)


def _check_sizes(config: Config) -> None:
    """Refuse a crop that does not fit its picture, or of which the discriminator leaves nothing."""
    if config.load_size is not None and config.load_size < config.crop_size:
        raise ValueError(
            f"load_size {config.load_size} is smaller than crop_size {config.crop_size}, and a "
            f"crop cannot be larger than its picture; set load_size to {config.crop_size} or more."
        )
    # After the stride-2 layers two 4x4 convolutions take one pixel each, and the norm between
    # them needs more than one: four must be left.
    deepest = config.crop_size.bit_length() - 3
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
    if config.norm.startswith("batch") and (config.accumulate > 1 or config.recompute):
        raise ValueError(
            f"norm {config.norm} needs the whole batch at once, and accumulate and recompute "
            "compute it in parts or twice; use norm instance, or leave out accumulate and "
            "recompute."
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
    config = (tyro.conf.OmitArgPrefixes,)
    typed = vars(tyro.cli(_command_line(), args=_typed_words(), config=config))
    fresh = typed.pop("fresh")
    groups = [vars(group) for group in typed.values()]
    return Config(**{name: value for group in groups for name, value in group.items()}), fresh


def _typed_words() -> list[str]:
    """Return the words of the command line, with ``--no-flip`` spelled ``--flip False``."""
    hints = get_type_hints(Config)
    switches = "|".join(name for name in hints if _is_switch(hints[name])).replace("_", "[-_]")
    words = []
    for word in sys.argv[1:]:
        if re.match("--local[-_]rank=", word):
            continue  # torch.distributed.launch adds what it also says in the environment
        word = re.sub(f"^--no[-_]({switches})(?==|$)", r"--\1=False", word)
        # The value apart, or tyro compares it too when it looks for what a wrong flag meant.
        words += word.split("=", 1) if re.match("--[^=]+=[^-]", word) else [word]
    return words


def _command_line() -> type:
    """Return the fields of Config for tyro, in the groups that the comments there name."""
    texts = r'^    (?:# --- (.+) ---\n    # (.+)|(\w+): .+\n    """(.+)""")$'
    hints = get_type_hints(Config, include_extras=True)
    groups: list[tuple[str, str, list]] = [("", "", [])]
    for title, line, name, text in re.findall(texts, inspect.getsource(Config), re.MULTILINE):
        if title:
            groups.append((f"{title}:", line, []))  # tyro adds the word "options"
        else:
            hint = _switch(name) if _is_switch(hints[name]) else hints[name]
            hint = Annotated[hint, tyro.conf.arg(help=text)]
            groups[-1][2].append((name, hint, getattr(Config, name)))

    fresh = tyro.conf.arg(help="Move an existing run of that name aside and start over.")
    parts: list = [("fresh", Annotated[bool, tyro.conf.FlagCreatePairsOff, fresh], False)]
    for title, line, settings in groups:
        group = make_dataclass("Group", settings)
        hint = Annotated[group, tyro.conf.arg(name=title, help=line)]
        parts.append((f"group_{len(parts)}", hint, field(default_factory=group)))
    text = (
        "Train Pix2Pix. The same command again goes on where the run stopped. "
        "None is the value of the data set or the recipe, unless a text says otherwise."
    )
    return make_dataclass("CommandLine", parts, namespace={"__doc__": text})


def _is_switch(hint: Any) -> bool:
    return hint in (bool, bool | None)


def _switch(name: str) -> Any:
    """Return the type of a setting of two states: tyro wants a value where it can be None."""

    def read(words: list[str]) -> bool:
        if words not in ([], ["True"], ["False"]):
            raise ValueError("type the flag alone, or with --no- before its name")
        return words != ["False"]

    reading = tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="",
        instance_from_str=read,
        is_instance=lambda value: value in (True, False, None),
        str_from_instance=lambda value: [str(value)],
    )
    flag = name.replace("_", "-")
    names = tyro.conf.arg(name=f"no-{flag}", aliases=[f"--{flag}"])  # --help has the alias first
    return Annotated[bool | None, reading, names]
