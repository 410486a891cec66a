"""Train Pix2Pix: paired image-to-image translation with a conditional GAN (arXiv 1611.07004).

The whole algorithm, for each batch of pairs (x, y):

    fake = G(x)                                            translate
    D learns to say "real" to (x, y), "fake" to (x, fake)  teach the discriminator
    G learns to make D say "real" to (x, fake),            teach the generator
        and to keep fake close to y (L1)

``python train.py --help`` lists the settings, ``config.py`` holds them. The same command again
goes on where the last one stopped.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from config import Config, describe, parse_command_line, resolve
from dataset import BadPictures, normalise, training_loader, validation_loader
from discriminator import Discriminator
from evaluate import evaluate
from generator import Generator
from report import COLUMNS, Report, Sample
from sources import open_split, palette_of, split_of
from devices import compile_networks, keep_freed_memory, pick_device, pick_dtype
from scripts import Interrupted, StopRequest, run_script
from disk import make_folder, move_aside
from utils import CheckpointWriteError, build_generator, get_rng_state, load_checkpoint, pick_autocast, save_checkpoint, save_file, set_rng_state, set_tf32, testing

# What may differ between a checkpoint and the command that goes on from it.
CHANGEABLE = {
    *("lr", "n_epochs", "n_epochs_decay", "num_workers", "device", "precision", "compile"),
    *("log_interval", "picture_interval", "val_interval", "checkpoint_minutes"),
    *("keep_generators", "cache_dir", "cache_limit_gb", "mirror", "on_bad_picture"),
}
LOSSES = ("loss_d", "d_real", "d_fake", "loss_g_gan", "l1")


class DivergedError(ValueError):
    """A loss is no longer a finite number."""


# --- The losses (section 3.1) ---
def adversarial_loss(logits: Tensor, is_real: bool, gan_mode: str) -> Tensor:
    """Return how far the discriminator's ``logits`` are from the verdict real, or fake.

    Args:
        logits: (N, 1, h, w).
        is_real: The verdict to compare with.
        gan_mode: "vanilla" is the cross-entropy of equation 1, "lsgan" the squared distance.
    """
    verdict = torch.full_like(logits, float(is_real))
    if gan_mode == "lsgan":
        return F.mse_loss(logits, verdict)
    return F.binary_cross_entropy_with_logits(logits, verdict)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, gan_mode: str) -> Tensor:
    """Return equation 1 as the discriminator minimises it, halved to slow it (section 3.3)."""
    real = adversarial_loss(real_logits, True, gan_mode)
    fake = adversarial_loss(fake_logits, False, gan_mode)
    return (real + fake) / 2


def generator_loss(fake_logits: Tensor, gan_mode: str) -> Tensor:
    """Return the generator's side of equation 1: maximise log D(x, G(x)) (section 3.3)."""
    return adversarial_loss(fake_logits, True, gan_mode)


def l1_loss(fake: Tensor, y: Tensor) -> Tensor:
    """Return equation 3, the mean absolute difference; (N, C, H, W) each, in [-1, 1]."""
    return F.l1_loss(fake, y)


# --- The step ---
@dataclass
class TrainingState:
    """All that a run changes. The names of the fields are those in the checkpoint."""

    generator: Generator
    discriminator: Discriminator
    optimizer_g: torch.optim.Adam
    optimizer_d: torch.optim.Adam
    scaler: torch.amp.GradScaler
    totals: Tensor
    """Sums of the LOSSES over the steps of this epoch, (5,), on the device."""
    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the next one that are done."""
    seconds: float = 0.0
    """Wall time spent, over all the parts of the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return every field by its name, as tensors and plain data."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.state_dict() if hasattr(value, "state_dict") else value
            for name, value in values.items()
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned, onto the device of the networks."""
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "load_state_dict"):
                # A scaler that was off saves nothing, and may be on now: precision may change.
                if saved[field.name]:
                    value.load_state_dict(saved[field.name])
            elif isinstance(value, Tensor):
                value.copy_(saved[field.name])
            else:
                setattr(self, field.name, saved[field.name])


def train_step(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, autocast: torch.autocast
) -> Tensor:
    """Teach both networks one batch (section 3.3).

    Args:
        state: Its networks, optimisers and scaler are updated in place.
        x: Inputs, (N, input_nc, H, W) in [-1, 1].
        y: Targets, (N, output_nc, H, W) in [-1, 1].
        config: Resolved settings.
        autocast: The precision of the forward passes.

    Returns:
        The LOSSES of this batch, (5,), still on the device.
    """
    generator, discriminator = state.generator, state.discriminator
    with autocast:
        fake = generator(x)

    with autocast:
        real_logits = discriminator(x, y)
        fake_logits = discriminator(x, fake.detach())
        loss_d = discriminator_loss(real_logits, fake_logits, config.gan_mode)
    update(state.optimizer_d, loss_d, state.scaler)

    discriminator.requires_grad_(False)  # it judges, but this loss does not teach it
    with autocast:
        loss_g_gan = generator_loss(discriminator(x, fake), config.gan_mode)
        l1 = l1_loss(fake, y)
        loss_g = loss_g_gan + config.lambda_l1 * l1  # equation 4
    update(state.optimizer_g, loss_g, state.scaler)
    discriminator.requires_grad_(True)

    state.scaler.update()
    d_real, d_fake = (probability(z, config.gan_mode) for z in (real_logits, fake_logits))
    return torch.stack([loss_d, d_real, d_fake, loss_g_gan, l1]).detach()


def l1_step(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, autocast: torch.autocast
) -> Tensor:
    """Teach the generator by L1 alone: the paper's comparison (section 4.2), ``gan_mode none``."""
    with autocast:
        l1 = l1_loss(state.generator(x), y)
    update(state.optimizer_g, config.lambda_l1 * l1, state.scaler)
    state.scaler.update()
    return F.pad(l1.detach()[None], (len(LOSSES) - 1, 0))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
    """Take one step of ``optimizer`` down the gradient of ``loss``."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)


def probability(logits: Tensor, gan_mode: str) -> Tensor:
    """Return the mean probability of "real" that ``logits`` stand for."""
    return (logits if gan_mode == "lsgan" else logits.sigmoid()).mean()


def learning_rate(config: Config, epoch: int) -> float:
    """Return the rate of an epoch, counted from 0: constant, then falling linearly.

    The last epoch still learns: the rate would reach zero one epoch after it.
    """
    decayed = max(0, epoch + 1 - config.n_epochs)
    return config.lr * (1 - decayed / (config.n_epochs_decay + 1))


# --- The run ---
def train(config: Config, fresh: bool = False) -> None:
    """Train, or go on with the training that has the same name.

    Args:
        config: The settings; None follows the recipe of the data set.
        fresh: Move an existing run of that name aside and start over.

    Raises:
        ValueError, OSError: A setting, picture or checkpoint that cannot be used; the message
            says which, and what to do.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    config, origin = resolve(config)
    checkpoints, results = Path("checkpoints") / config.name, Path("evaluation") / config.name
    saved = None if fresh else load_checkpoint(checkpoints)
    if saved is not None:
        check_same_run(config, saved["config"])
        if saved["epoch"] >= config.n_epochs + config.n_epochs_decay:
            print(
                f"{config.name} is finished after {saved['epoch']} epochs: see {results} and "
                f"{checkpoints}. To go on, raise n_epochs or n_epochs_decay; to start over, "
                "add --fresh."
            )
            return
    print(f"Settings of {config.name}:\n{describe(config, origin)}")
    run = Run(config, saved)
    if fresh:  # not before everything that can be wrong with the new run has been looked at
        move_aside(checkpoints, results)
    run.finish()
    print(f"Finished: pictures and scores in {results}, generator in {checkpoints}/generator.pt.")


def check_same_run(config: Config, saved: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint that was trained with other settings.

    Raises:
        ValueError: Listing every setting that differs.
    """
    differences = [
        f"  {name}: {saved.get(name)!r} in the checkpoint, {value!r} now"
        for name, value in asdict(config).items()
        if name not in CHANGEABLE and saved.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"checkpoints/{config.name} was trained with other settings:\n"
            + "\n".join(differences)
            + "\nGo back to those, give the new run a name of its own (--name), or add --fresh to "
            "move the old run aside and start over."
        )


def new_state(config: Config, device: torch.device) -> TrainingState:
    """Return both networks, freshly initialised from the seed, with their optimisers."""
    torch.manual_seed(config.seed)
    generator = build_generator(config).to(device)
    discriminator = Discriminator(
        config.input_nc,
        config.output_nc,
        ndf=config.ndf,
        n_layers_d=config.n_layers_d,
        norm=config.norm,
    ).to(device)
    # One fused kernel reads and writes the 57 million parameters once.
    adam = {"lr": config.lr, "betas": (config.beta1, 0.999), "fused": True}
    is_fp16 = pick_dtype(config.precision, device) == torch.float16
    return TrainingState(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), **adam),
        torch.optim.Adam(discriminator.parameters(), **adam),
        torch.amp.GradScaler(device.type, enabled=is_fp16),
        torch.zeros(len(LOSSES), device=device),
    )


class Run:
    """One training run: its state, its data, and where it writes.

    Args:
        config: Resolved settings.
        saved: The checkpoint to go on from, or None.
    """

    def __init__(self, config: Config, saved: dict[str, Any] | None) -> None:
        self.config = config
        self.n_epochs = config.n_epochs + config.n_epochs_decay
        self.checkpoints = Path("checkpoints") / config.name
        self.device = pick_device(config.device)
        self.autocast = pick_autocast(config.precision, self.device)
        set_tf32(config.precision)
        keep_freed_memory()

        split = split_of(config)
        self.pairs, self.val_pairs = open_split(config, split)
        print(split.describe(config.name, self.pairs.sizes))
        for note in self.pairs.notes + self.val_pairs.notes:
            print(note)
        self.palette = palette_of(config)
        # What a generator must be saved with, to be used on other pictures.
        self.facts = {"config": asdict(config), "picture_size": self.pairs.typical_size()}
        self.steps_per_epoch = len(self.pairs) // config.batch_size

        self.state = new_state(config, self.device)
        if saved is not None:
            self.restore(saved)
        if config.compile:
            networks = (self.state.generator, self.state.discriminator)
            compile_networks(*networks, device=self.device)
        self.loader = self.open_loader()
        self.stop = StopRequest()
        self.speed = math.nan
        self.saved_at = time.monotonic()
        self.started_at = time.monotonic() - self.state.seconds

    def finish(self) -> None:
        """Train to the last epoch, or until a stop is requested."""
        state = self.state
        results = make_folder(Path("evaluation") / self.config.name)
        make_folder(self.checkpoints)
        self.report = Report(results, epochs_done=state.epoch)
        self.report.write_settings(asdict(self.config))
        batches = iter(self.loader)
        with self.stop:
            try:
                with self.progress_bar() as bar:
                    while state.epoch < self.n_epochs:
                        self.train_epoch(batches, bar)
                        self.end_epoch()
                        state.epoch, state.step = state.epoch + 1, 0
                        state.totals.zero_()
                self.save()
            except CheckpointWriteError:
                raise
            except (BadPictures, OSError):  # no step is lost to a bad picture or a locked table
                self.save()
                raise
            except Interrupted as stop:
                self.save()
                raise Interrupted(
                    f"Stopped in epoch {state.epoch + 1} after step {state.step} of "
                    f"{self.steps_per_epoch}. {self.checkpoints / 'latest.pt'} holds everything: "
                    "give the same command to go on.",
                    stop.exit_code - 128,
                ) from None

    def train_epoch(self, batches: Iterator[Tensor], bar: tqdm) -> None:
        """Take the steps that are left of this epoch."""
        state, config = self.state, self.config
        step = l1_step if config.gan_mode == "none" else train_step
        for optimizer in (state.optimizer_g, state.optimizer_d):
            optimizer.param_groups[0]["lr"] = learning_rate(config, state.epoch)
        bar.set_description(f"epoch {state.epoch + 1}/{self.n_epochs}")
        began, first_step = time.monotonic(), state.step

        while state.step < self.steps_per_epoch:
            batch = next(batches).to(self.device, non_blocking=True)
            x, y = normalise(batch, config.input_nc)
            losses = step(state, x, y, config, self.autocast)
            state.totals += losses
            state.step += 1
            bar.update(config.batch_size)
            # Reading a loss waits for the device, so it happens only now and then.
            if state.step % config.log_interval == 0:
                bar.set_postfix(self.finite(losses))
            if time.monotonic() - self.saved_at >= config.checkpoint_minutes * 60:
                self.save()
            self.stop.check()

        if state.step > first_step:
            pictures = (state.step - first_step) * config.batch_size
            self.speed = pictures / (time.monotonic() - began)

    def end_epoch(self) -> None:
        """Validate, log and draw what is due after the epoch whose steps are all done."""
        config, state, epoch = self.config, self.state, self.state.epoch + 1
        state.seconds = time.monotonic() - self.started_at
        values = {
            "epoch": epoch,
            "step": epoch * self.steps_per_epoch,
            "seconds": state.seconds,
            "pictures_per_second": self.speed,
            "lr": learning_rate(config, state.epoch),
        }
        means = self.finite(state.totals / self.steps_per_epoch)
        values |= {"l1": means["l1"]} if config.gan_mode == "none" else means
        if self.is_due(config.val_interval):
            values |= self.validate()
        self.report.add_metrics(values)
        if self.is_due(config.picture_interval):
            self.report.add_samples(self.samples(), epoch)
        if config.keep_generators and epoch % config.keep_generators == 0:
            content = {"generator": state.generator.state_dict()} | self.facts
            save_file(content, self.checkpoints / f"generator_{epoch:03d}.pt")
        shown = [f"{n} {v:.4g}" for n, v in values.items() if n == "l1" or n.startswith("val_")]
        tqdm.write(f"epoch {epoch}/{self.n_epochs}: {', '.join(shown)}")

    def is_due(self, interval: int) -> bool:
        """Say whether something is due after this epoch: the first and the last always are."""
        epoch = self.state.epoch + 1
        return epoch % interval == 0 or epoch in (1, self.n_epochs)

    def validate(self) -> dict[str, float]:
        """Return the scores on all validation pairs."""
        with testing(self.state.generator, self.config, self.device):
            scores = evaluate(
                self.state.generator,
                self.stop.watch(validation_loader(self.val_pairs)),
                input_nc=self.config.input_nc,
                device=self.device,
                autocast=self.autocast,
                palette=self.palette,
            )
        named = {f"val_{name}": value for name, value in scores.items()}
        return {name: value for name, value in named.items() if name in COLUMNS}

    def samples(self) -> list[Sample]:
        """Translate a few validation pairs, the same ones every time."""
        n_samples = min(self.config.n_samples, len(self.val_pairs))
        samples: list[Sample] = []
        with testing(self.state.generator, self.config, self.device):
            for place in range(n_samples):
                index = place * len(self.val_pairs) // n_samples
                batch = self.val_pairs[0, index][None].to(self.device)
                x, y = normalise(batch, self.config.input_nc)
                with self.autocast:
                    samples.append((x[0], self.state.generator(x)[0], y[0]))
        return samples

    def finite(self, losses: Tensor) -> dict[str, float]:
        """Read the LOSSES from the device.

        Raises:
            DivergedError: One is not a finite number.
        """
        read = dict(zip(LOSSES, losses.tolist(), strict=True))
        broken = [name for name, value in read.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(
                f"{' and '.join(broken)} became infinite or NaN in epoch {self.state.epoch + 1}. "
                f"{self.checkpoints / 'latest.pt'}, if there is one, is from before that: go on "
                "from it with a lower --lr (half of it), or with --precision fp32."
            )
        return read

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            DivergedError: A loss was not finite; the last good checkpoint stays.
            OSError: It could not be written; the older ones stay.
        """
        self.finite(self.state.totals)
        self.state.seconds = time.monotonic() - self.started_at
        content = self.state.state_dict() | {
            "rng": get_rng_state(self.device),
            "n_pairs": len(self.pairs),
        }
        save_checkpoint(content | self.facts, self.checkpoints)
        self.saved_at = time.monotonic()

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint.

        Raises:
            ValueError: The data set has changed since.
        """
        if saved["n_pairs"] != len(self.pairs):
            raise ValueError(
                f"{self.config.name} was trained on {saved['n_pairs']} pairs, and the data set "
                f"now has {len(self.pairs)}. Bring back the old ones, or start over with --fresh "
                "(or another --name)."
            )
        self.state.load_state_dict(saved)
        set_rng_state(saved["rng"], self.device)
        print(f"Going on in epoch {self.state.epoch + 1} after step {self.state.step}.")

    def open_loader(self) -> DataLoader:
        """Return the batches from here to the end of the run."""
        return training_loader(
            self.pairs,
            batch_size=self.config.batch_size,
            n_epochs=self.n_epochs,
            start_epoch=self.state.epoch,
            start_step=self.state.step,
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def progress_bar(self) -> tqdm:
        """Return a bar over the pictures of the whole run."""
        done = self.state.epoch * self.steps_per_epoch + self.state.step
        return tqdm(
            total=self.n_epochs * self.steps_per_epoch * self.config.batch_size,
            initial=done * self.config.batch_size,
            unit="picture",
            dynamic_ncols=True,
        )


def main() -> None:
    """Train with the settings of ``config.py`` and the command line."""
    config, fresh = parse_command_line()
    train(config, fresh=fresh)


if __name__ == "__main__":
    run_script(main)
