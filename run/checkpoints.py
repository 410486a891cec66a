"""How a run is saved, goes on, and is kept from being lost: its files in ``checkpoints/NAME``."""

import hashlib
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from config import OF_THE_MACHINE, Config
from machine.devices import Machine
from machine.disk import (
    check_space,
    is_full,
    make_folder,
    move_aside,
    reason_of,
    remove_drafts,
    whole_file,
)
from machine.processes import LostProcessError, rank_zero_only
from machine.stopping import Interrupted
from pictures.sides import Sides
from run.finetune import start_from
from run.sources import Data, changes
from run.state import TrainingState
from run.teacher import saved_teacher
from utils import (
    CheckpointError,
    Facts,
    Translator,
    explaining,
    is_ours,
    load_generator,
    read_file,
)

# What may differ between a checkpoint and the command that goes on from it: how long and how fast
# to train, where things lie (what the pairs are is compared by itself), and what is shown.
CHANGEABLE = {
    *OF_THE_MACHINE,
    *("lr", "n_epochs", "n_epochs_decay", "precision", "compile", "cuda_graph", "accumulate"),
    *("recompute", "log_interval", "val_interval", "checkpoint_minutes", "keep_generators"),
    *("on_bad_picture", "dataset", "train_dir", "val_dir", "a", "b", "val_fraction"),
    "check_halves",
}
LOCK_S = 8  # a killed run's workers hold its lock too, and need up to 5 seconds to notice


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the older ones are untouched."""


class DivergedError(ValueError):
    """A loss, a score or a weight is no longer a finite number."""


class Checkpoints:
    """The files of one run, and the right to write them.

    A context, in which no other command can have the run of that name. ``latest.pt`` holds
    everything, ``previous.pt`` what that held before, ``generator.pt`` what is needed to use it.

    Args:
        config: Resolved settings.
        machine: Of the processes that share the run, the first reads and writes for all.
        fresh: Do not go on from what is there, but move it aside.

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
        ValueError: The run of that name has other settings, or its checkpoints are gone.
        OSError: Another process has this run, or the folder cannot be written to.
    """

    def __init__(self, config: Config, machine: Machine, fresh: bool = False) -> None:
        self.config, self.processes, self.fresh = config, machine.processes, fresh
        self.n_epochs = config.n_epochs + config.n_epochs_decay
        self.folder = Path("checkpoints", config.name)
        self.results = Path("evaluation", config.name)
        self.latest, self.previous = self.folder / "latest.pt", self.folder / "previous.pt"
        self.incoming = self.folder / "incoming.pt"
        self.generator = self.folder / "generator.pt"
        self.saved: dict[str, Any] | None = None
        self.whole: Path | None = None  # the newest file that is known to be whole
        self._lock = FileLock(self.folder.with_name(f".{config.name}.lock"))
        self._owner = self.folder.with_name(f".{config.name}.owner")

    # --- The right to write ---
    def __enter__(self) -> "Checkpoints":
        self.saved = self.processes.from_rank_zero(self._taken)
        return self

    def _taken(self) -> dict[str, Any] | None:
        """Take the run, so that no other command can, and return what to go on from."""
        make_folder(self.folder.parent)
        try:
            self._lock.acquire(timeout=LOCK_S)
        except Timeout:
            raise self._is_taken() from None
        try:
            if self._owner.exists() and _lives(self._owner.read_text(errors="replace")):
                raise self._is_taken()  # somebody has removed the lock of a run that goes on
            self._write_owner()
            saved = None if self.fresh else self._newest()
            if not self.fresh:
                self._check_same_run(saved)
        except BaseException:
            self.__exit__()
            raise
        return saved

    def _write_owner(self) -> None:
        try:
            self._owner.write_text(_this_process())
        except OSError as error:
            raise OSError(
                f"{self._owner} cannot be written ({reason_of(error)}); free some space, or mend "
                "the permissions."
            ) from error

    def _is_taken(self) -> OSError:
        owner = self._owner.read_text(errors="replace") if self._owner.exists() else "another one"
        return OSError(
            f"{self.config.name} is being trained by process {owner}, and one run is for one "
            "process. Wait for it, stop it, or give this run a name of its own (--name)."
        )

    def __exit__(self, *exception: object) -> None:
        if self._lock.is_locked:
            if self._owner.exists() and self._owner.read_text(errors="replace") == _this_process():
                self._owner.unlink()
            self._lock.release()

    # --- Going on ---
    def _newest(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint of the run, or None if there is none.

        What is damaged or missing before it is named on the screen.

        Raises:
            CheckpointError: There are checkpoints, but none is whole.
        """
        problems: list[str] = []
        for path in (self.incoming, self.latest, self.previous):
            if not os.path.lexists(path):
                if path == self.latest and self.previous.exists():
                    problems.append(f"{path} is gone.")
                continue
            try:
                content = load_checkpoint(path)
                _check_complete(content, path)
            except (CheckpointError, OSError) as error:  # it can also be no file, or unreadable
                problems.append(str(error))
                continue
            if problems:
                written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
                print(*problems, f"Going on from {path} instead, of {written}.", sep="\n")
            self.whole = path
            return content
        if problems:
            raise CheckpointError(
                "\n".join(problems) + "\nNo whole checkpoint is left; start over with --fresh."
            )
        return None

    def _check_same_run(self, saved: dict[str, Any] | None) -> None:
        """Refuse to go on from other settings, or to start over on top of what is left."""
        if saved is None:
            remains = [*self.folder.glob("*.pt"), *self.results.glob("metrics.csv")]
            if remains:
                raise ValueError(
                    f"{remains[0]} belongs to an earlier run, but its checkpoint {self.latest} is "
                    "gone. Bring it back, give the new run a name of its own (--name), or add "
                    "--fresh to move what is left aside and start over."
                )
            return
        with explaining(self.whole or self.latest):
            before = asdict(Facts.from_saved(saved).config)
        differences = [
            f"  {name}: {before[name]!r} in the checkpoint, {value!r} now"
            for name, value in asdict(self.config).items()
            if name not in CHANGEABLE and before[name] != value
        ]
        if differences:
            raise ValueError(
                f"{self.folder} was trained with other settings:\n"
                + "\n".join(differences)
                + "\nGo back to those, give the new run a name of its own (--name), or add --fresh "
                "to move the old run aside and start over."
            )

    @property
    def sides(self) -> Sides | None:
        """What the pictures are, as an earlier part of the run found it."""
        return None if self.saved is None else Sides.from_saved(self.saved["sides"])

    @property
    def teacher(self) -> Translator | None:
        """The generator that teaches this one, if the settings name one.

        Raises:
            ValueError, OSError: It cannot be read.
        """
        if not self.config.teacher:
            return None
        if self.saved is None:
            return load_generator(self.config.teacher, device="cpu")
        with explaining(self.whole or self.latest):
            return saved_teacher(self.saved["teacher"])

    @property
    def is_finished(self) -> bool:
        """Whether all the epochs that are asked for are done."""
        return self.saved is not None and self.saved["epoch"] >= self.n_epochs

    def how_to_go_on(self) -> str:
        """Say what to do with a run that is finished."""
        return (
            f"{self.config.name} is finished after {self.saved['epoch']} epochs: see "
            f"{self.results} and {self.folder}. To go on, raise n_epochs or n_epochs_decay; to "
            "start over, add --fresh."
        )

    def ready(self, state: TrainingState, data: Data) -> TrainingState:
        """Return ``state`` as the run left it, or as init_from has it, ready to be saved again.

        Raises:
            ValueError: The pairs are not those that the run was trained on, or the checkpoint
                holds another state.
            OSError: A folder cannot be written to, or the disk is too small for the checkpoints.
        """
        self.steps_per_epoch = data.steps_per_epoch
        self.facts, self.pairs = data.facts(self.config).as_saved(), data.identity()
        self._check_pairs_of_all()
        if self.saved is not None:
            if message := changes(self.saved["pairs"], self.pairs):
                raise ValueError(message)
            with explaining(self.whole or self.latest):
                state.load_state_dict(self.saved)
                if state.step > self.steps_per_epoch or bool(state.totals) != bool(state.step):
                    raise ValueError(f"step {state.step} of {self.steps_per_epoch}")
            self.saved = None  # its memory is needed
            print(f"Going on in epoch {state.epoch + 1} after step {state.step}.")
        elif self.config.init_from:
            print(start_from(state, self.config))
        self._make_room(state)
        self.saved_at = time.monotonic()
        return state

    def _check_pairs_of_all(self) -> None:
        """Refuse processes that see other pairs, as where each computer has a disk of its own."""
        digest = hashlib.blake2b(repr(self.pairs).encode(errors="surrogatepass")).hexdigest()
        first, *others = self.processes.gather(digest)
        if different := [rank for rank, other in enumerate(others, start=1) if other != first]:
            raise ValueError(
                f"The processes of rank {', '.join(map(str, different))} find other pairs than "
                "process 0; give all of them the same data set, on a shared disk or as copies."
            )

    @rank_zero_only
    def _make_room(self, state: TrainingState) -> None:
        if self.fresh:  # not before all that can be wrong with the new run has been looked at
            move_aside(self.folder, self.results)
        for folder in (self.results, self.folder):
            make_folder(folder)
        remove_drafts(self.results)
        remove_drafts(self.folder, stale_s=0)  # the lock says that nobody is writing them
        self._check_space(state)

    def _check_space(self, state: TrainingState) -> None:
        """Refuse to train where not even two checkpoints fit: one, and the next one's draft."""
        generator, discriminator = (
            sum(p.numel() * p.element_size() for p in network.parameters())
            for network in (state.generator, state.discriminator)
        )
        # Adam keeps two numbers for each weight; then come the average and generator.pt.
        needed = 2 * (3 * (generator + discriminator) + 2 * generator)
        there = sum(file.stat().st_size for file in self.folder.glob("*.pt"))
        check_space(self.folder, needed - there)

    # --- Saving ---
    def save(self, state: TrainingState) -> None:
        """Write ``latest.pt`` (the last one becomes ``previous.pt``) and ``generator.pt``.

        Raises:
            DivergedError: A weight is not finite; the older checkpoints stay.
            CheckpointWriteError: A file could not be written; the older ones stay.
        """
        content = state.state_dict()
        norm = torch.nn.utils.get_total_norm(_floats(content))
        finite({"the weights": norm}, self.config, state.epoch)
        save_file(content | self.facts | {"pairs": self.pairs}, self.incoming)
        self.whole = self.incoming
        try:
            if self.latest.exists():
                self.latest.replace(self.previous)
            self.incoming.replace(self.latest)
        except OSError as error:  # Windows: another program has one of them open
            raise CheckpointWriteError(
                f"{self.incoming} could not be renamed to {self.latest} ({reason_of(error)}); "
                "close the program that has it open. The same command goes on from it."
            ) from error
        self.whole = self.latest
        self._save_generator(state, self.generator)
        self.saved_at = time.monotonic()

    def _save_generator(self, state: TrainingState, path: Path) -> None:
        save_file({"generator": state.best_generator.state_dict()} | self.facts, path)

    @rank_zero_only
    def save_if_due(self, state: TrainingState) -> None:
        """Save after the first epoch and every checkpoint_minutes; a failure is only a warning."""
        minutes = (time.monotonic() - self.saved_at) / 60
        ends_first_epoch = state.epoch == 0 and state.step == self.steps_per_epoch
        if minutes < self.config.checkpoint_minutes and not ends_first_epoch:
            return
        try:
            self.save(state)
        except CheckpointWriteError as error:
            self.saved_at = time.monotonic()
            again = f"It is tried again in {self.config.checkpoint_minutes:g} minutes."
            tqdm.write(f"Warning: {error} {again}")

    @rank_zero_only
    def keep_generator(self, state: TrainingState) -> None:
        """Keep the generator of the epoch that has just ended, if it is one of those to be kept."""
        epoch = state.epoch + 1
        if self.config.keep_generators and epoch % self.config.keep_generators == 0:
            try:
                self._save_generator(state, self.folder / f"generator_{epoch:03d}.pt")
            except CheckpointWriteError as error:
                tqdm.write(f"Warning: {error}")

    @contextmanager
    def kept(self, state: TrainingState) -> Iterator[None]:
        """Save ``state`` when the block ends, whatever ends it, if not in the middle of a step.

        Raises:
            Interrupted: As in the block, and now with what to do.
        """
        try:
            yield
        except (DivergedError, CheckpointWriteError, LostProcessError):  # no state to go on from
            raise
        except Interrupted as stop:
            self.save_last(state)
            raise Interrupted(
                f"Stopped in epoch {state.epoch + 1} after step {state.step} of "
                f"{self.steps_per_epoch}. {self.latest} holds everything: give the same command "
                "to go on.",
                stop.signum,
            ) from None
        except Exception:  # a bad picture, a damaged table, memory that ran out in a validation
            if state.is_whole:
                self.save_last(state)
            raise
        self.save_last(state)

    @rank_zero_only
    def save_last(self, state: TrainingState) -> None:
        """Save at any price: in place of an older file, or the generator alone, elsewhere.

        Raises:
            CheckpointWriteError: The disk is full; the message says what was saved all the same.
        """
        try:
            return self.save(state)
        except CheckpointWriteError as error:
            if not is_full(error.__cause__):
                raise
        # Only one of both is surely whole, which must stay; the other makes room.
        other = self.latest if self.whole == self.previous else self.previous
        other.unlink(missing_ok=True)
        try:
            return self.save(state)
        except CheckpointWriteError as error:
            name = f"{self.config.name}_generator_{state.epoch:03d}.pt"
            for folder in (self.folder, Path.home(), Path(tempfile.gettempdir())):
                try:
                    self._save_generator(state, folder / name)
                except CheckpointWriteError:
                    continue
                raise CheckpointWriteError(
                    f"{error} The generator as it is now is saved as {folder / name}."
                ) from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, tensors on the CPU; code hidden in the file is not run.

    Raises:
        CheckpointError: The file is damaged, or no checkpoint of this project.
        OSError: It does not exist or cannot be read.
    """
    content = read_file(path)
    if not is_ours(content):
        raise CheckpointError(
            f"{path} is no checkpoint of this project: it does not hold a generator and its config."
        )
    return content


def _check_complete(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that a run cannot go on from, such as a copy of generator.pt.

    Raises:
        CheckpointError: It lacks a part, or does not say how far the run is.
    """
    names = {field.name for field in (*fields(TrainingState), *fields(Facts))}
    if lacking := sorted((names | {"pairs"}) - content.keys()):
        raise CheckpointError(
            f"{path} lacks {', '.join(lacking)}, so that no run can go on from it."
        )
    pairs = content["pairs"]
    is_identity = isinstance(pairs, dict) and pairs.keys() == {"train", "val"}
    if not (is_identity and all(isinstance(part, dict) and part for part in pairs.values())):
        raise CheckpointError(f"{path} cannot be used: it does not say what the pairs are.")
    for name in ("epoch", "step"):
        if type(content[name]) is not int or content[name] < 0:
            raise CheckpointError(f"{path} cannot be used: {name} is {content[name]!r}.")


def _this_process() -> str:
    return f"{os.getpid()} on {platform.node()}{_started(os.getpid())}"


def _started(pid: int) -> str:
    """Say when a process of this computer started, where the system tells: numbers are reused."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return f", started at {after_name.split()[19]}"
    except (OSError, IndexError):
        return ""


def _lives(owner: str) -> bool:
    """Say whether the process that wrote ``owner`` is surely alive, and another than this one."""
    pid, _, rest = owner.partition(" ")
    is_here = rest.startswith(f"on {platform.node()},") and pid.isdecimal()
    return is_here and int(pid) != os.getpid() and owner.endswith(_started(int(pid)) or "?")


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that no moment leaves a half-written file at ``path``.

    Raises:
        CheckpointWriteError: It could not be written; what stood at ``path`` is as before.
    """
    try:
        with whole_file(path) as draft:
            torch.save(content, draft)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise CheckpointWriteError(
            f"{path} could not be written: {reason_of(error)}. Older checkpoints are untouched; "
            "free some space or mend the permissions, then give the same command to go on."
        ) from error


def _floats(content: Any) -> Iterator[Tensor]:
    """Yield every tensor of fractions in a nest of dicts and lists."""
    if isinstance(content, Tensor):
        if content.is_floating_point():
            yield content
    elif isinstance(content, Mapping | list | tuple):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from _floats(part)


def finite(values: Mapping[str, Tensor | float], config: Config, epoch: int) -> dict[str, float]:
    """Read ``values``, losses or scores by name, waiting for the device once.

    Args:
        values: Scalars.
        config: Settings of the run.
        epoch: Counted from 0.

    Raises:
        DivergedError: One is not a finite number; the message says how to go on.
    """
    scalars = [torch.as_tensor(value).float() for value in values.values()]
    read = dict(zip(values, torch.stack(scalars).tolist(), strict=True))
    broken = [name for name, value in read.items() if not math.isfinite(value)]
    if broken:
        latest = Path("checkpoints", config.name, "latest.pt")
        good = f"{latest} is from before that: go on from it" if latest.exists() else "Start again"
        raise DivergedError(
            f"{' and '.join(broken)} became infinite or NaN in epoch {epoch + 1}. {good} with a "
            "lower --lr (half of it), or with --precision fp32."
        )
    return read
