"""Checkpoints and their generators, device and random state, and how scripts stop."""

import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from authors import import_generator
from config import Config, plain_name
from generator import Generator

T = TypeVar("T")


# --- Device, precision, random state ---
def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    found = ["cpu"]
    found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device({"cpu": "cpu", "mps": "mps"}.get(found[-1], "cuda:0"))
    wanted = {"cuda": "cuda:0", "mps:0": "mps"}.get(name, name)
    if wanted not in found:
        raise ValueError(f"device is {name!r}; this machine has {', '.join(found)} (or auto).")
    return torch.device(wanted)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type in which autocast computes: float32 means that it is off.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware has it (emulated
            bf16 is slower than float32), else fp16 on CUDA, else fp32.
        device: Where the networks are.
    """
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in named:
        return named[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def pick_autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context for forward passes in that precision; it does nothing for float32."""
    dtype = pick_dtype(precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_tf32(precision: str) -> None:
    """Let CUDA round the inputs of float32 products to 19 bits, unless ``precision`` is fp32."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def compile_networks(*networks: nn.Module, device: torch.device) -> None:
    """Let torch.compile write faster kernels for ``networks``; names and weights stay as they are.

    Raises:
        ValueError: This machine has no compiler for ``device``.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # each backend raises its own
        raise ValueError(
            f"compile is on, but torch.compile fails here ({str(error).strip().splitlines()[0]}); "
            "install a C++ compiler (for CUDA, triton), or leave compile off."
        ) from error
    for network in networks:
        network.compile()


def keep_freed_memory() -> None:
    """Let Linux's C library keep large freed blocks, for the next step or picture to use.

    It gives each back to the system otherwise, and a step at 128 px on a CPU then spends a fifth
    of its time on 50,000 page faults, translating eight pictures at 256 px three quarters. Other
    C libraries are left as they are.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            m_trim_threshold, m_mmap_threshold = -1, -3  # as in glibc's malloc.h
            libc.mallopt(m_mmap_threshold, 2**30)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def get_rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global generators that a run on ``device`` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what ``get_rng_state`` returned; a device that it does not name keeps its state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def configure_for_test(generator: nn.Module, config: Config) -> None:
    """Switch ``generator`` to its behaviour at test time, which two settings decide."""
    generator.eval()
    for module in generator.modules():
        if isinstance(module, nn.Dropout):
            module.train(config.dropout_at_test)
        elif isinstance(module, nn.BatchNorm2d) and config.batch_norm_at_test == "batch":
            # Training mode computes the batch's own statistics; not tracking them keeps the
            # running ones as training left them.
            module.train()
            module.track_running_stats = False


@contextmanager
def testing(generator: nn.Module, config: Config, device: torch.device) -> Iterator[None]:
    """Lend ``generator`` for test-time use, then hand it back to the training unchanged.

    Nothing inside touches the random state of the training, and dropout at test, where it is on,
    draws the same noise every time.
    """
    rng_state = get_rng_state(device)
    torch.manual_seed(config.seed)
    configure_for_test(generator, config)
    try:
        with torch.inference_mode():
            yield
    finally:
        generator.train()
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = True
        set_rng_state(rng_state, device)


# --- Checkpoints ---
GENERATOR_KEYS = ("generator", "config", "picture_size")


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint of this project."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the older ones are untouched."""


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that no moment leaves a half-written file at ``path``.

    Raises:
        CheckpointWriteError: It could not be written; what stood at ``path`` is as before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointWriteError(
            f"{path} could not be written: {error}. Older checkpoints are untouched; free some "
            "space or mend the permissions, then give the same command to go on from them."
        ) from error
    os.replace(temporary, path)


def save_checkpoint(content: dict[str, Any], folder: Path) -> None:
    """Write ``latest.pt`` (the last one becomes ``previous.pt``) and ``generator.pt``.

    Args:
        content: The training state by name, with the GENERATOR_KEYS among the names; tensors and
            plain data only.
        folder: ``checkpoints/NAME``.

    Raises:
        CheckpointWriteError: A file could not be written; the older ones are untouched.
    """
    incoming, latest = folder / "incoming.pt", folder / "latest.pt"
    save_file(content, incoming)
    if latest.exists():
        os.replace(latest, folder / "previous.pt")
    os.replace(incoming, latest)
    save_file({key: content[key] for key in GENERATOR_KEYS}, folder / "generator.pt")


def _read(path: Path) -> Any:
    """Return what torch saved in a file, tensors on the CPU; code hidden in the file is not run."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a checkpoint, such as checkpoints/NAME/generator.pt."
        )
    with open(path, "rb") as file:
        try:
            # torch itself does not compare the checksums that it writes; before 1.6 it wrote none.
            if file.read(4) == b"PK\x03\x04" and (damaged := zipfile.ZipFile(file).testzip()):
                raise ValueError(f"the checksum of {damaged} does not match")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damage makes the readers raise nearly anything
            raise CheckpointError(f"{path} {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """Say in one sentence what is wrong with a file; torch's own advice is to run its code."""
    if code := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return (
            f"holds code ({code[1]}), as a whole pickled network does, and it is not run; expected "
            "weights alone: save the network's state_dict() instead."
        )
    reason = str(error).partition(". ")[0]
    return f"is damaged or no checkpoint ({type(error).__name__}: {reason})."


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and {"generator", "config"} <= content.keys()


def load_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; code hidden in the file is not run.

    Raises:
        CheckpointError: The file is damaged, or no checkpoint of this project.
        OSError: It does not exist or cannot be read.
    """
    content = _read(path)
    if not _is_ours(content):
        raise CheckpointError(
            f"{path} is no checkpoint of this project: it does not hold a generator and its config."
        )
    return content


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint in ``checkpoints/NAME``, or None if there is none.

    A damaged ``latest.pt`` is named on the screen, and ``previous.pt`` used instead.

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
    """
    damage: list[str] = []
    for path in (folder / "latest.pt", folder / "previous.pt"):
        if not path.exists():
            continue
        try:
            content = load_file(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for message in damage:
            print(f"{message}\nGoing on from {path} instead.")
        return content
    if damage:
        raise CheckpointError(
            "\n".join(damage) + "\nNo whole checkpoint is left; start over with --fresh."
        )
    return None


def build_generator(config: Config) -> Generator:
    """Return the generator that a resolved ``config`` describes, freshly initialised."""
    return Generator(
        config.input_nc,
        config.output_nc,
        crop_size=config.crop_size,
        ngf=config.ngf,
        norm=config.norm,
        dropout=config.dropout,
    )


def config_from(content: dict[str, Any], path: Path) -> Config:
    """Return the Config that a checkpoint was trained with.

    Raises:
        CheckpointError: It holds settings that this version does not have.
    """
    unknown = content["config"].keys() - {field.name for field in fields(Config)}
    if unknown:
        raise CheckpointError(
            f"{path} was made by another version of this project: it has the settings "
            f"{', '.join(sorted(unknown))}, which this version does not know."
        )
    return Config(**content["config"])


def load_generator(path: str | Path, device: str | torch.device = "auto") -> Generator:
    """Return a trained generator, ready to translate.

    Args:
        path: ``generator.pt`` or ``latest.pt`` of a run, or ``latest_net_G.pth`` of the authors'
            PyTorch port.
        device: Where to put it; "auto" is CUDA, else Apple's MPS, else the CPU.

    Returns:
        The module, configured for test, its settings as ``generator.config``, and as
        ``generator.picture_size`` the height and width of its training pictures (None where the
        file does not say). It takes (N, input_nc, H, W) in [-1, 1], H and W divisible by crop_size.

    Raises:
        CheckpointError: The file is damaged or holds no such generator.
        OSError: It does not exist or cannot be read.
        ValueError: This machine has no such device.
    """
    path = Path(path)
    content = _read(path)
    if _is_ours(content):
        config = config_from(content, path)
        generator = build_generator(config)
        generator.load_state_dict(content["generator"])
        generator.picture_size = content.get("picture_size")
    else:
        generator, config = _import(content, path)
        generator.picture_size = None
    configure_for_test(generator, config)
    generator.config = config
    return generator.requires_grad_(False).to(pick_device(str(device)))


def _import(content: Any, path: Path) -> tuple[Generator, Config]:
    """Build a generator that the authors' code saved, with its settings."""
    try:
        # The authors' files all have the same name, in the folder of their run.
        return import_generator(content, name=plain_name(path.absolute().parent.name))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def make_folder(folder: Path) -> Path:
    """Make ``folder`` where it is missing, and see that files can be written there.

    Raises:
        OSError: They cannot, which is better known before the training than after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}); start in a folder of your own, or "
            "mend its permissions."
        ) from error


def move_aside(*folders: Path) -> None:
    """Rename the ``folders`` that exist to NAME.old1, or the next number that is free for all."""
    number = 1
    while any(folder.with_name(f"{folder.name}.old{number}").exists() for folder in folders):
        number += 1
    for folder in folders:
        if folder.exists():
            aside = folder.rename(folder.with_name(f"{folder.name}.old{number}"))
            print(f"{folder} is now {aside}.")


# --- How scripts stop ---
class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM asked the run to stop.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Turns Ctrl-C or SIGTERM into a request; a second Ctrl-C stops at once.

    A context: outside it, and in threads that cannot take signals, they act as ever.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # Only a person presses twice; `timeout` sends SIGTERM twice within microseconds.
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        print("\nStopping after this step (Ctrl-C again: at once).", file=sys.stderr)

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.signum is not None:
            raise Interrupted("stopped", self.signum)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``, checking before each."""
        for item in items:
            self.check()
            yield item


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Say whether memory ran out; only some devices have a class of their own for that."""
    # The last is what torch says of a worker; systems that are short of memory kill one.
    signs = ("out of memory", "allocate memory", "not enough memory", "by signal: Killed")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``: a user's mistake ends in its message and exit code 2."""
    try:
        main()
    except KeyboardInterrupt as stop:
        message = str(stop) or "Stopped at once; what was written before is as it was."
        print(message, file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "Lower batch_size, then crop_size, then ngf, or num_workers."
        print(f"{error or 'Out of memory.'}\n{advice}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
