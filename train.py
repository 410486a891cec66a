"""Train Pix2Pix: paired image-to-image translation with a conditional GAN (arXiv 1611.07004).

The whole algorithm, for each batch of pairs (x, y):

    fake = G(x)                                            translate
    D learns to say "real" to (x, y), "fake" to (x, fake)  teach the discriminator
    G learns to make D say "real" to (x, fake),            teach the generator
        and to keep fake close to y (L1)

``python train.py --help`` lists the settings, ``config.py`` holds them. The same command again
goes on where the last one stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from config import Config, parse_command_line
from dataset import normalise, seed_noise, training_batches
from losses import (
    Losses,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    loss_weights,
    perceptual_loss,
    probability_of_real,
    projected_discriminator_loss,
    projected_loss,
    target_losses,
)
from machine.devices import Machine, cuda_graphed, machine_for
from machine.processes import Processes
from machine.stopping import StopRequest, freeing_frames, run_script
from pictures.sides import Sides
from recipes import describe, resolve
from run.checkpoints import Checkpoints
from run.report import Report
from run.sources import open_data
from run.state import TrainingState, new_state
from scoring.photos import loss_network

EMA_EVERY = 4  # steps


# --- The step (section 3.3) ---
@dataclass
class Part:
    """One of the ``accumulate`` equal parts of a batch, with the generator's output for it.

    Where targets are learned as classes, ``y`` and ``output`` are one-hot and scores, ``real`` and
    ``fake`` their colours. Otherwise ``real`` is ``y`` and ``fake`` is ``output``.
    """

    x: Tensor
    """Inputs as the networks see them, (N, channels or classes, H, W)."""
    y: Tensor
    """Targets as outputs are compared with them, likewise."""
    output: Tensor
    """G(x): pictures, or scores of the classes."""
    real: Tensor
    """The pictures, (N, channels, H, W) in [-1, 1], that ``y`` stands for."""
    fake: Tensor
    """Those that ``output`` stands for."""
    real_maps: list[Tensor] = field(default_factory=list)
    """The discriminator's maps of ``real``, kept for feature matching."""
    real_photo: list[Tensor] = field(default_factory=list)
    """Maps of ``real`` in the network that knows photos, where one is asked."""
    fake_photo: list[Tensor] = field(default_factory=list)
    """Those of ``fake``."""
    losses: Losses = field(default_factory=dict)


def train_step(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Losses:
    """Teach both networks one batch.

    Args:
        state: Its networks, optimisers and scaler are updated in place.
        x: Inputs, (N, channels, H, W) in [-1, 1].
        y: Targets, likewise.
        config: Resolved settings.
        machine: The precision of the forward passes.

    Returns:
        The losses of this batch, detached, in float32, still on the device.
    """
    x, y = state.labels.encode_input(x), state.labels.encode_target(y)
    pieces = zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True)
    parts = [translate_part(state, x, y, config, machine) for x, y in pieces]
    if config.gan_mode != "none":
        teach_discriminator(state, parts, config, machine)
    teach_generator(state, parts, config, machine)
    state.scaler.update()
    if config.even_kernels:
        state.generator.keep_even()
    # The report sums them over an epoch; in half precision a long sum stops growing.
    return {
        name: sum(part.losses[name].detach().float() for part in parts) / len(parts)
        for name in parts[0].losses
    }


def translate_part(
    state: TrainingState, x: Tensor, y: Tensor, config: Config, machine: Machine
) -> Part:
    """Translate inputs: fake = G(x)."""
    generator = state.generator
    if config.accumulate > 1:
        # All parts are translated before any is learned from. Their inner maps do not fit into
        # memory together, so they are computed again to learn.
        generator = partial(checkpoint, generator, use_reentrant=False)
    with machine.autocast:
        output = generator(x)
    part = Part(x, y, output, state.labels.decode_target(y), state.labels.decode_output(output, y))
    if config.asks_photo_network:
        look_at_part(part, config, machine)
    return part


def look_at_part(part: Part, config: Config, machine: Machine) -> None:
    """Look at both pictures through a network that knows photos."""
    look = loss_network(part.x.device).maps
    with machine.autocast:
        with torch.no_grad():
            part.real_photo = look(part.real)
        if config.accumulate > 1:  # as the generator's
            look = partial(checkpoint, look, use_reentrant=False)
        part.fake_photo = look(part.fake)


def teach_discriminator(
    state: TrainingState, parts: list[Part], config: Config, machine: Machine
) -> None:
    """Teach D to say "real" to (x, y) and "fake" to (x, fake): equation 1."""
    discriminator = state.discriminator
    state.optimizer_d.zero_grad()
    for part in parts:
        with machine.autocast:
            maps = discriminator.of_both(part.x, part.real, part.fake.detach())
            (*real_maps, real_logits), (*_, fake_logits) = maps
            part.losses["loss_d"] = discriminator_loss(real_logits, fake_logits, config.gan_mode)
            if config.lambda_projected:
                judge = partial(discriminator.projected, part.x)
                fake_photo = [inner.detach() for inner in part.fake_photo]
                loss = projected_discriminator_loss(judge(part.real_photo), judge(fake_photo))
                part.losses["loss_d_projected"] = loss
            loss_d = sum(part.losses.values())
        if config.lambda_features:
            part.real_maps = [inner.detach() for inner in real_maps]
        part.losses["d_real"] = probability_of_real(real_logits, config.gan_mode)
        part.losses["d_fake"] = probability_of_real(fake_logits, config.gan_mode)
        state.scaler.scale(loss_d / len(parts)).backward()
    take_step(state.optimizer_d, state.scaler, machine.processes)


def teach_generator(
    state: TrainingState, parts: list[Part], config: Config, machine: Machine
) -> None:
    """Teach G to make D say "real" to (x, fake), and to keep fake close to y: equation 4."""
    discriminator, weights = state.discriminator, loss_weights(config)
    discriminator.requires_grad_(False)  # it judges, but this loss does not teach it
    state.optimizer_g.zero_grad()
    for part in parts:
        terms: Losses = {}
        with machine.autocast:
            if config.gan_mode != "none":
                *fake_maps, fake_logits = discriminator.features(part.x, part.fake)
                terms["loss_g_gan"] = adversarial_loss(fake_logits, True, config.gan_mode)
            terms |= target_losses(part.output, part.y, config)
            if config.lambda_perceptual:
                terms["loss_perceptual"] = perceptual_loss(part.real_photo, part.fake_photo)
            if config.lambda_projected:
                logits = discriminator.projected(part.x, part.fake_photo)
                terms["loss_g_projected"] = projected_loss(logits)
            if part.real_maps:
                terms["loss_features"] = feature_loss(part.real_maps, fake_maps)
            if state.teacher is not None:
                terms |= state.teacher(part.x, part.output)
            loss_g = sum(weights[name] * term for name, term in terms.items())
        part.losses |= terms
        state.scaler.scale(loss_g / len(parts)).backward()
    take_step(state.optimizer_g, state.scaler, machine.processes)
    discriminator.requires_grad_(True)


def take_step(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, processes: Processes
) -> None:
    """Take a step down the gradients, which are first averaged over the processes."""
    processes.average(p.grad for p in optimizer.param_groups[0]["params"])  # one group each
    scaler.step(optimizer)


def batch_step(
    state: TrainingState, sides: Sides, config: Config, machine: Machine
) -> Callable[[Tensor], Losses]:
    """Return ``train_step`` for batches of the loader, as a CUDA graph where that is possible."""

    def step(batch: Tensor) -> Losses:
        x, y = normalise(batch, sides)
        # Outputs end at -1 and 1 (tanh), so targets do; scores take them uncut.
        return train_step(state, x, y.clamp(-1, 1), config, machine)

    return cuda_graphed(step, (state.optimizer_g, state.optimizer_d), config, machine)


@torch.no_grad()
def update_ema(state: TrainingState, decay: float, n_steps: int) -> None:
    """Move the average towards the weights that the generator has after ``n_steps`` of training.

    At first it forgets faster, so that it does not remember the random beginning. It takes every
    EMA_EVERY-th step alone, as to read and write all weights takes a twentieth of a step's time.
    """
    if state.average is None or n_steps % EMA_EVERY:
        return
    decay = min(decay, (1 + n_steps) / (10 + n_steps)) ** EMA_EVERY
    now, mean = list(state.generator.parameters()), list(state.average.parameters())
    get_ema_multi_avg_fn(decay)(mean, now, n_steps)  # torch's signature; it needs no count
    for kept, new in zip(state.average.buffers(), state.generator.buffers(), strict=True):
        kept.copy_(new)


def learning_rate(config: Config, epoch: int) -> float:
    """Return the rate of an epoch, counted from 0: constant, then falling linearly.

    The last epoch still learns: the rate would reach zero one epoch after it.
    """
    decayed = max(0, epoch + 1 - config.n_epochs)
    return config.lr * (1 - decayed / (config.n_epochs_decay + 1))


# --- The run ---
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
    with machine_for(config) as machine, Checkpoints(config, machine, fresh) as checkpoints:
        if checkpoints.is_finished:
            print(checkpoints.how_to_go_on())
            return
        print(f"Settings of {config.name}:\n{describe(config, origin)}")
        teacher = checkpoints.teacher  # that it is missing is better known before the data
        data = open_data(config, machine, checkpoints.sides)
        state = checkpoints.ready(new_state(config, data.sides, machine, teacher), data)
        with (
            StopRequest(machine.processes.is_first) as stop,
            Report(config, data, machine, state, stop) as report,
            checkpoints.kept(state),  # from here on whatever ends the run saves it
            training_batches(data.train, config, machine, stop.check, state.done) as batches,
        ):
            for epoch in range(state.epoch, config.n_epochs + config.n_epochs_decay):
                state.set_learning_rate(learning_rate(config, epoch))
                # Made anew each epoch, as a recorded step holds the learning rate.
                teach = batch_step(state, data.sides, config, machine)
                for batch in islice(batches, data.steps_per_epoch - state.step):
                    seed_noise(config.seed, epoch, state.step, machine.processes)
                    with state.changing():  # an error in here leaves a state not to be saved
                        losses = teach(batch)
                    state.step += 1
                    update_ema(state, config.ema_decay, epoch * data.steps_per_epoch + state.step)
                    report.add_step(state, losses)  # waits for the device each log_interval
                    checkpoints.save_if_due(state)
                report.add_epoch(state)  # validates, draws and logs what is due
                checkpoints.keep_generator(state)
                state.epoch, state.step, state.totals = epoch + 1, 0, {}
        print(
            f"Finished: pictures and scores in {report.folder} (open index.html there), "
            f"generator in {checkpoints.generator}."
        )


def main() -> None:
    """Train with the settings of ``config.py`` and the command line."""
    config, fresh = parse_command_line()
    train(config, fresh=fresh)


if __name__ == "__main__":
    run_script(main)
