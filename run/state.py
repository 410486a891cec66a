"""All that a run changes, and how it begins."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from discriminator import Discriminator
from generator import Generator
from labels import Labels
from machine.devices import Machine
from machine.products import use_products
from pictures.sides import Sides
from run.teacher import Teacher
from scoring.photos import loss_network
from utils import Translator, build_generator, labels_of, load_weights


@dataclass
class TrainingState:
    """All that a run changes. The names of the fields are those in the checkpoint."""

    generator: Generator
    discriminator: Discriminator
    optimizer_g: torch.optim.Adam
    optimizer_d: torch.optim.Adam
    scaler: torch.amp.GradScaler
    labels: Labels
    """What of the pictures is taken for classes; nothing of it is learned."""
    average: Generator | None = None
    """The generator's mean over its last steps, where ema_decay asks for one."""
    teacher: Teacher | None = None
    """Where the settings name one."""
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses over the steps of this epoch."""
    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the next one that are done."""
    seconds: float = 0.0
    """Wall time spent, over all the parts of the run."""

    is_whole = True  # not in the middle of a step; no field, as it is never saved

    @property
    def best_generator(self) -> Generator:
        """The generator to translate with: the average, if there is one."""
        return self.generator if self.average is None else self.average

    @property
    def done(self) -> tuple[int, int]:
        """The epochs that are done, and the steps of the next one."""
        return self.epoch, self.step

    def set_learning_rate(self, rate: float) -> None:
        """Let both networks learn at a rate."""
        for optimizer in (self.optimizer_g, self.optimizer_d):
            optimizer.param_groups[0]["lr"] = rate

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the block in which a step changes the state: what it leaves undone is not saved."""
        self.is_whole = False
        yield
        self.is_whole = True  # not in a finally: after an error it stays False

    def state_dict(self) -> dict[str, Any]:
        """Return every field by its name, as tensors and plain data."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: value.state_dict() if hasattr(value, "state_dict") else value
            for name, value in values.items()
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Raises:
            ValueError, KeyError: It is not the state of such a run.
        """
        for name in (one.name for one in fields(self)):
            value, found = getattr(self, name), saved[name]
            if isinstance(value, nn.Module):
                load_weights(value, found)
            elif isinstance(value, torch.optim.Optimizer):
                _load_optimizer(value, found)
            elif isinstance(value, torch.amp.GradScaler):
                if found:  # one that was off saves nothing, and may be on now
                    value.load_state_dict(found)
            else:
                setattr(self, name, _checked(name, found, value))
        # In fp16 the scaler may have skipped all steps so far.
        has_learned = bool(self.epoch or self.step) and not saved["scaler"]
        if has_learned and not saved["optimizer_g"]["state"]:
            raise ValueError("the generator's optimiser has lost its state")


def _load_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Any]) -> None:
    """Give an optimiser what it has gathered about its weights; its settings stay as they are.

    Raises:
        ValueError: It is not what Adam gathers of these weights.
    """
    weights, state = optimizer.param_groups[0]["params"], found["state"]
    if state and state.keys() != set(range(len(weights))):  # none before the first step
        raise ValueError("an optimiser does not hold the state of all its weights")
    for number, gathered in state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if gathered[name].shape != weights[number].shape:
                raise ValueError(f"{name} {number} of an optimiser is not of its weights' shape")
        mean, square = gathered["exp_avg"], gathered["exp_avg_sq"]
        if not (mean.isfinite().all() and (square >= 0).all() and float(gathered["step"]) >= 1):
            raise ValueError(f"an optimiser's state of weights {number} is impossible")
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": own})


def _checked(name: str, found: Any, usual: Any) -> Any:
    """Return a number, or the losses by their names, of the type and range that is usual."""
    if found is None and usual is None:
        return None
    if isinstance(found, dict) and isinstance(usual, dict):
        names = all(isinstance(name, str) and not name.startswith("val_") for name in found)
        if names and all(v.numel() == 1 and v.ndim == 0 and v.isfinite() for v in found.values()):
            return found
    elif type(found) is type(usual) and 0 <= found < math.inf:
        return found
    raise ValueError(f"{name} is {found!r}")


def new_state(
    config: Config, sides: Sides, machine: Machine, teacher: Translator | None = None
) -> TrainingState:
    """Return both networks, freshly initialised from the seed, with their optimisers.

    Args:
        config: Resolved settings.
        sides: What inputs and targets are.
        machine: Where the networks are to be.
        teacher: A trained generator that teaches this one.

    Raises:
        ValueError: The network of lambda_perceptual and lambda_projected is missing, or the
            teacher does not fit.
    """
    photo_channels: Sequence[int] = ()
    if config.asks_photo_network:  # that it is missing is better known now
        # The outermost map is as large as all others together, and knows no more than a PatchGAN.
        photo_channels = loss_network(machine.device).channels[1:]
    torch.manual_seed(config.seed)
    labels = labels_of(config, sides).to(machine.device)
    generator = build_generator(config, sides).to(machine.device)
    discriminator = Discriminator(
        generator.encoder[0][1].in_channels,
        sides.target.channels,
        ndf=config.ndf,
        n_layers_d=config.n_layers_d,
        norm=config.norm,
        at_once=config.recipe != "paper" and not config.norm.startswith("batch"),
        photo_channels=photo_channels if config.lambda_projected else (),
    ).to(machine.device)
    average = copy.deepcopy(generator).requires_grad_(False) if config.ema_decay else None
    learning = [*generator.parameters()]
    taught = None
    if teacher is not None:
        taught = Teacher(teacher, generator, config, sides).to(machine.device)
        learning += taught.adapters.parameters()
    if config.compile:  # after the average was copied, which is never compiled
        machine.compile(generator, "forward")
        machine.compile(discriminator, "features")
    elif machine.device.type == "cpu" and config.recipe != "paper":  # which stays bit for bit
        use_products(generator)
    # One fused kernel reads and writes the 57 million parameters once.
    adam = {"lr": config.lr, "betas": (config.beta1, 0.999), "fused": True}
    return TrainingState(
        generator,
        discriminator,
        torch.optim.Adam(learning, **adam),
        torch.optim.Adam(discriminator.parameters(), **adam),
        machine.new_scaler(),
        labels,
        average,
        taught,
    )
