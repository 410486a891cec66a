"""Train Pix2Pix: paired image-to-image translation with a conditional GAN (arXiv 1611.07004).

The whole algorithm, for each batch of pairs (x, y):

    fake = G(x)                                            translate
    D learns to say "real" to (x, y), "fake" to (x, fake)  teach the discriminator
    G learns to make D say "real" to (x, fake),            teach the generator
        and to keep fake close to y (L1)

``python train.py --help`` lists the settings, ``config.py`` holds them. The same command again
goes on where the last one stopped.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as activation_checkpoint

from config import Config, parse_command_line
from dataset import derived_seed, normalise, training_loader
from discriminator import Discriminator
from generator import Generator
from losses import class_loss, feature_loss, follow, perceptual_loss, photo_network
from machine.devices import Machine, choose_machine, played_back
from machine.processes import joined, one_voice
from machine.stopping import StopRequest, freeing_frames, run_script
from pictures.sides import Sides
from recipes import describe, resolve
from run.checkpoints import Checkpoints, Saved
from run.report import Report
from run.sources import Data, open_data
from run.teacher import Teacher
from utils import build_generator

Losses = dict[str, Tensor]  # by name: scalars on the device
Loss = tuple[Tensor, Losses]  # what a network is to minimise, and what to show of it
checkpoint = partial(activation_checkpoint, use_reentrant=False)


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


def target_loss(fake: Tensor, y: Tensor, config: Config) -> Losses:
    """Return what ties outputs to their targets: equation 3, or the classes' cross-entropy.

    A term that is added here, and its weight below, appears in the bar, the table and the curves.
    """
    if config.is_label("target"):
        return {"loss_classes": class_loss(fake, y)}
    losses = {"l1": F.l1_loss(fake, y)}
    if config.lambda_perceptual:
        losses["loss_perceptual"] = perceptual_loss(fake, y)
    return losses


def weights(config: Config) -> dict[str, float]:
    """Return the weights in what the generator minimises: equation 4, and what came later."""
    return {
        "loss_g_gan": 1.0,
        "l1": config.lambda_l1,
        "loss_features": config.lambda_features,
        "loss_classes": config.lambda_classes,
        "loss_perceptual": config.lambda_perceptual,
        "loss_taught": config.lambda_classes if config.is_label("target") else config.lambda_l1,
        "loss_maps": config.lambda_maps,
    }


# --- The step ---
@dataclass
class TrainingState(Saved):
    """All that a run changes. The names of the fields are those in the checkpoint."""

    generator: Generator
    discriminator: Discriminator
    optimizer_g: torch.optim.Adam
    optimizer_d: torch.optim.Adam
    scaler: torch.amp.GradScaler
    average: Generator | None = None
    """The generator's mean over its last steps, where ema_decay asks for one."""
    teacher: Teacher | None = None
    """Where the settings name one."""
    totals: Losses = field(default_factory=dict)
    """Sums of the losses over the steps of this epoch."""
    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the next one that are done."""
    seconds: float = 0.0
    """Wall time spent, over all the parts of the run."""

    @property
    def shown(self) -> Generator:
        """The generator that is shown, scored and saved for use."""
        return self.generator if self.average is None else self.average


def new_state(config: Config, sides: Sides, machine: Machine) -> TrainingState:
    """Return both networks, freshly initialised from the seed, with their optimisers."""
    if config.lambda_perceptual:
        photo_network(machine.device)  # that it is missing is better known now
    torch.manual_seed(config.seed)
    generator = build_generator(config, sides).to(machine.device)
    discriminator = Discriminator(
        generator.seen_nc,
        sides.target.channels,
        ndf=config.ndf,
        n_layers_d=config.n_layers_d,
        norm=config.norm,
    ).to(machine.device)
    generator.recompute = config.recompute
    average = copy.deepcopy(generator).requires_grad_(False) if config.ema_decay else None
    teacher = Teacher(config.teacher, generator).to(machine.device) if config.teacher else None
    learning = [*generator.parameters(), *(teacher.translators.parameters() if teacher else ())]
    if config.compile:
        machine.compile(generator, "forward")
        machine.compile(discriminator, "features")
    # One fused kernel reads and writes the 57 million parameters once.
    adam = {"lr": config.lr, "betas": (config.beta1, 0.999), "fused": True}
    return TrainingState(
        generator,
        discriminator,
        torch.optim.Adam(learning, **adam),
        torch.optim.Adam(discriminator.parameters(), **adam),
        machine.new_scaler(),
        average,
        teacher,
    )


def train_step(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Losses:
    """Teach both networks one batch (section 3.3), in as many parts as ``accumulate`` says.

    Args:
        state: Its networks, optimisers and scaler are updated in place.
        x: Inputs, (N, channels, H, W) in [-1, 1].
        y: Targets, likewise.
        config: Resolved settings.
        machine: The precision of the forward passes.

    Returns:
        The losses of this batch, detached, in float32, still on the device.
    """
    lessons = [lesson(state, *part, config, machine) for part in parts_of(x, y, config.accumulate)]
    losses = update(state.optimizer_d, lessons, state.scaler, machine)
    state.discriminator.requires_grad_(False)  # it judges, but the next loss does not teach it
    losses |= update(state.optimizer_g, lessons, state.scaler, machine)
    state.discriminator.requires_grad_(True)
    state.scaler.update()
    return losses


def lesson(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Iterator[Loss]:
    """Yield the loss of the discriminator, and once that has learned the one of the generator."""
    generator, discriminator = state.generator, state.discriminator
    y = generator.as_target(y)
    with machine.autocast:
        # Of many parts only one's inner maps can be kept, so they are computed again to learn.
        fake = generator(x) if config.accumulate == 1 else checkpoint(generator, x)

    seen = generator.as_seen(x)
    real_picture, fake_picture = generator.as_picture(y), generator.as_picture(fake)
    with machine.autocast:
        real_maps = discriminator.features(seen, real_picture)
        fake_maps = discriminator.features(seen, fake_picture.detach())
        real_logits, fake_logits = real_maps[-1], fake_maps[-1]
        loss_d = discriminator_loss(real_logits, fake_logits, config.gan_mode)
    d_real, d_fake = (probability(z, config.gan_mode) for z in (real_logits, fake_logits))
    yield loss_d, {"loss_d": loss_d, "d_real": d_real, "d_fake": d_fake}

    with machine.autocast:
        fake_maps = discriminator.features(seen, fake_picture)
        terms = {"loss_g_gan": adversarial_loss(fake_maps[-1], True, config.gan_mode)}
        terms |= target_loss(fake, y, config)
        if config.lambda_features:
            terms["loss_features"] = feature_loss(real_maps, fake_maps)
        if state.teacher is not None:
            terms |= state.teacher(x, fake)
        loss_g = sum(weights(config)[name] * loss for name, loss in terms.items())
    yield loss_g, terms


def plain_step(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Losses:
    """Teach the generator without a discriminator, by L1 alone in the paper (section 4.2)."""
    lessons = [
        plain_lesson(state, *part, config, machine) for part in parts_of(x, y, config.accumulate)
    ]
    losses = update(state.optimizer_g, lessons, state.scaler, machine)
    state.scaler.update()
    return losses


def plain_lesson(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Iterator[Loss]:
    """Yield the loss of the generator."""
    with machine.autocast:
        fake = state.generator(x)
        terms = target_loss(fake, state.generator.as_target(y), config)
        if state.teacher is not None:
            terms |= state.teacher(x, fake)
        loss_g = sum(weights(config)[name] * loss for name, loss in terms.items())
    yield loss_g, terms


def step_of(state: TrainingState, config: Config, machine: Machine) -> Callable[[Tensor], Losses]:
    """Return the step that teaches ``state`` a batch as it comes from the loader."""
    teach = plain_step if config.gan_mode == "none" else train_step

    def step(batch: Tensor) -> Losses:
        x, y = normalise(batch, state.generator.sides)
        return teach(state, x, y.clamp(-1, 1), config, machine)  # tanh reaches no further

    # Maps that are computed again ask for the random state, which torch 2.9 cannot record.
    is_plain = config.accumulate == 1 and not config.recompute and machine.processes.count == 1
    if config.cuda_graph and is_plain and machine.device.type == "cuda":
        return played_back(step, (state.optimizer_g, state.optimizer_d))
    return step


def parts_of(x: Tensor, y: Tensor, accumulate: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into equal parts, so that the mean of their gradients is its own."""
    return list(zip(x.chunk(accumulate), y.chunk(accumulate), strict=True))


def update(
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[Iterator[Loss]],
    scaler: torch.amp.GradScaler,
    machine: Machine,
) -> Losses:
    """Take one step of ``optimizer`` down the mean gradient of the next loss of each lesson.

    Where processes share the batch, it is the mean over all of them.
    """
    optimizer.zero_grad()
    shown = []
    for part in lessons:
        loss, losses = next(part)
        scaler.scale(loss / len(lessons)).backward()
        shown.append(detached(losses))
    machine.processes.average(p.grad for p in optimizer.param_groups[0]["params"])
    scaler.step(optimizer)
    if len(shown) == 1:
        return shown[0]
    return {name: sum(losses[name] for losses in shown) / len(shown) for name in shown[0]}


def detached(losses: Losses) -> Losses:
    """Return ``losses`` as numbers to be summed: in half precision a sum soon stands still."""
    return {name: loss.detach().float() for name, loss in losses.items()}


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
@one_voice()
@freeing_frames
def train(config: Config, fresh: bool = False) -> None:
    """Train, or go on with the training that has the same name.

    Args:
        config: The settings; None follows the recipe of the data set.
        fresh: Move an existing run of that name aside and start over.

    Raises:
        ValueError, OSError: A setting, picture or checkpoint that cannot be used; the message
            says which, and what to do.
        Interrupted: Ctrl-C, SIGTERM or the like; a checkpoint was written.
    """
    config, origin = resolve(config)
    with (
        joined(config) as processes,  # one, or those that torchrun has started
        Checkpoints(config, processes, fresh=fresh) as checkpoints,  # refuses other settings
    ):
        if checkpoints.is_finished:
            print(checkpoints.how_to_go_on())
            return
        print(f"Settings of {config.name}:\n{describe(config, origin)}")
        machine = choose_machine(config.device, config.precision, processes)
        data = processes.in_turns(open_data, config, checkpoints.sides)
        state = checkpoints.restored(new_state(config, data.sides, machine), data)
        report = Report(config, data, machine, state)
        with (
            StopRequest(processes.is_first) as stop,
            checkpoints.kept(state),
            report,
            closing(
                training_loader(
                    data.train,
                    config,
                    state.epoch,
                    state.step,
                    device=machine.device,
                    check=stop.check,
                    share_of=processes.share_of,
                )
            ) as batches,
        ):
            while state.epoch < config.n_epochs + config.n_epochs_decay:
                train_epoch(state, batches, data, config, machine, checkpoints, report, stop)
                report.add_epoch(state, stop)  # validates, draws and logs what is due
                checkpoints.keep_generator(state)
                state.epoch, state.step, state.totals = state.epoch + 1, 0, {}
        print(
            f"Finished: pictures and scores in {report.folder} (open index.html there), "
            f"generator in {checkpoints.generator}."
        )


def train_epoch(
    state: TrainingState,
    batches: Iterator[Tensor],
    data: Data,
    config: Config,
    machine: Machine,
    checkpoints: Checkpoints,
    report: Report,
    stop: StopRequest,
) -> None:
    """Take the steps that are left of this epoch."""
    processes = machine.processes
    for optimizer in (state.optimizer_g, state.optimizer_d):
        optimizer.param_groups[0]["lr"] = learning_rate(config, state.epoch)
    step = step_of(state, config, machine)
    while state.step < data.steps_per_epoch:
        with processes.together():  # what stops one process stops all, between the same two steps
            stop.check()
            batch = next(batches)
        # The noise of a step (dropout) follows from its number, so a run goes on exactly.
        torch.manual_seed(derived_seed(config.seed, state.epoch, state.step, *processes.mark))
        losses = step(batch.to(machine.device, non_blocking=True))
        processes.average(losses.values())
        for name, loss in losses.items():
            state.totals[name] = state.totals.get(name, 0) + loss
        state.step += 1
        if state.average is not None:
            n_steps = state.epoch * data.steps_per_epoch + state.step
            follow(state.average, state.generator, config.ema_decay, n_steps)
        report.add_step(state, losses)  # reads the device at the log interval alone
        checkpoints.save_if_due(state)


@one_voice()
def main() -> None:
    """Train with the settings of ``config.py`` and the command line."""
    config, fresh = parse_command_line()
    train(config, fresh=fresh)


if __name__ == "__main__":
    run_script(main)
