"""Translate pictures of any size: ``python translate.py CHECKPOINT INPUT OUTPUT``.

In a notebook ``translate(load_generator(CHECKPOINT), picture)``: on a CPU the same, bit for bit.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from dataset import denormalise, normalise
from devices import Machine, choose_machine
from disk import make_folder
from generator import Generator
from pictures.decode import Decoded, PictureError, decode, image_of
from pictures.jobs import FORMATS, Job, ahead, find_jobs, left_out, read, save
from pictures.pairs import resize, to_channels
from progress import progress
from scripts import is_out_of_memory, run_script
from utils import load_generator, testing

Scale = Literal["trained", "own", "crop"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TILE = 1024  # pixels; a multiple of every crop_size


# --- Pictures ---
def translate(
    generator: Generator,
    picture: Image.Image | Sequence[Image.Image],
    *,
    scale: Scale | None = None,
    tile: int = TILE,
    seed: int | None = None,
    precision: Precision | None = None,
) -> Image.Image | list[Image.Image]:
    """Translate a picture, or each of a list, to one of the same size.

    Args:
        generator: From ``load_generator``.
        picture: Of any size and mode; turned upright by its EXIF orientation.
        scale: "trained" scales it as the training pictures were, which is the default where the
            checkpoint says how; "own" leaves it as it is; "crop" squeezes it to crop_size. The
            output is scaled back.
        tile: Side in pixels of the overlapping tiles in which larger pictures are translated.
        seed: Switches dropout on (the paper's noise z) and seeds it; None: as the checkpoint says.
        precision: Of the network; None: fp32 for outputs with 16 bits, else as in the training.

    Returns:
        The output, or the list of outputs; grey ones of 16-bit pictures have 16 bits too, and
        what was transparent is so again.

    Raises:
        ValueError: A setting, or a picture that cannot be used.
    """
    pictures = picture if isinstance(picture, list | tuple) else [picture]
    if not all(isinstance(one, Image.Image) for one in pictures):
        raise ValueError(f"translate takes pictures from PIL.Image.open, not {picture!r}.")
    options = {"scale": scale, "tile": tile, "seed": seed, "precision": precision}
    decoded = [decode(one, f"picture {number}") for number, one in enumerate(pictures)]
    outputs = [translate_decoded(generator, one, **options) for one in decoded]
    return outputs if pictures is picture else outputs[0]


def translate_decoded(
    generator: Generator,
    picture: Decoded,
    *,
    scale: Scale | None = None,
    tile: int = TILE,
    seed: int | None = None,
    precision: Precision | None = None,
) -> Image.Image:
    """Translate a picture that is decoded already, see ``translate``."""
    config = generator.config
    _check_tile(tile, config.crop_size)
    scaled = _scaled(picture.pixels, generator, scale)
    padded = torch.from_numpy(_padded(scaled, config.crop_size)).movedim(2, 0)[None]
    # No format here holds colours of 16 bits.
    depth = scaled.dtype if config.output_nc == 1 else np.dtype(np.uint8)
    # Half precision has errors that 16 bits would show.
    usual = "fp32" if depth == np.uint16 else config.precision
    machine = choose_machine(next(generator.parameters()).device, precision or usual)
    with _seeded(generator, seed):
        fake = _apply(generator, padded, tile, machine)[0]  # (output_nc, H, W)
    output = denormalise(_unpadded(fake, scaled.shape), depth)
    output = resize(output, picture.pixels.shape, config.nearest in ("target", "both"))
    if picture.alpha is not None:
        output = np.concatenate([output, picture.alpha], axis=2)
    return image_of(output)


def _check_tile(tile: int, multiple: int) -> None:
    if tile < 1 or tile % multiple:
        raise ValueError(
            f"tile is {tile}; this generator takes multiples of {multiple} pixels, so set it to "
            f"{multiple * max(1, tile // multiple)} or {multiple * (max(1, tile // multiple) + 1)}."
        )


def _scaled(pixels: np.ndarray, generator: Generator, scale: Scale | None) -> np.ndarray:
    """Return the picture as the generator is used to see it, (h, w, input_nc)."""
    config, trained_on = generator.config, generator.picture_size
    height, width = pixels.shape[:2]
    pixels = to_channels(pixels, config.input_nc)
    scale = scale or ("trained" if trained_on else "own")
    if scale == "own":
        return pixels
    if scale == "crop":
        shape = (config.crop_size, config.crop_size)
    elif trained_on is None:
        raise ValueError(
            "The checkpoint does not say what size its training pictures had, so other pictures "
            'cannot be scaled as those were; set scale to "own" (as they are) or to "crop".'
        )
    else:
        sides = (min(trained_on),) * 2 if config.keep_aspect else trained_on
        ratios = (config.load_size / side for side in sides)
        shape = tuple(
            max(1, round(s * ratio)) for s, ratio in zip((height, width), ratios, strict=True)
        )
    return resize(pixels, shape, config.nearest in ("input", "both"))


def _padded(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Continue the picture by its reflection, on all sides, up to a multiple of pixels."""
    missing = [-side % multiple for side in pixels.shape[:2]]
    around = [(more // 2, more - more // 2) for more in missing]
    return np.pad(pixels, [*around, (0, 0)], mode="reflect")


def _unpadded(fake: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cut off what ``_padded`` put around a picture of that (height, width, ...)."""
    top, left = ((whole - side) // 2 for whole, side in zip(fake.shape[1:], shape, strict=False))
    return fake[:, top : top + shape[0], left : left + shape[1]]


@contextmanager
def _seeded(generator: Generator, seed: int | None) -> Iterator[None]:
    """Lend the generator for test-time use, with dropout on and seeded unless ``seed`` is None."""
    if seed is not None and not any(isinstance(m, nn.Dropout) for m in generator.modules()):
        raise ValueError("This generator has no dropout, so that all its samples are the same.")
    dropout_at_test = generator.dropout_at_test
    generator.dropout_at_test = dropout_at_test or seed is not None
    try:
        with testing(generator, generator.config.seed if seed is None else seed):
            yield
    finally:
        generator.dropout_at_test = dropout_at_test
        generator.train(generator.training)


def _apply(generator: Generator, batch: Tensor, tile: int, machine: Machine) -> Tensor:
    """Return the outputs (N, output_nc, H, W) in [-1, 1] for integers (N, input_nc, H, W)."""
    x = normalise(batch.to(machine.device), generator.config.input_nc)[0]
    rows, columns = (_tile_starts(side, tile) for side in x.shape[2:])
    with machine.autocast:
        if len(rows) == len(columns) == 1:
            return generator(x)
        total = x.new_zeros(len(x), generator.config.output_nc, *x.shape[2:])
        weight = x.new_zeros(x.shape[2:])
        for top, left in product(rows, columns):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            window = _ramp(weight[place].shape[0], tile, machine.device)[:, None]
            window = window * _ramp(weight[place].shape[1], tile, machine.device)
            total[place] += generator(x[place]) * window
            weight[place] += window
        return total / weight


def _tile_starts(side: int, tile: int) -> list[int]:
    """Spread as few tiles as overlap by a quarter or more evenly over a side, in pixels."""
    if side <= tile:
        return [0]
    count = math.ceil((side - tile // 4) / (tile - tile // 4))
    return [round(start) for start in np.linspace(0, side - tile, count)]


def _ramp(length: int, tile: int, device: torch.device) -> Tensor:
    """Return the weights along a side of a tile: 1, falling smoothly to 0 at both ends."""
    inside = torch.arange(1, length + 1, device=device)
    distance = torch.minimum(inside, inside.flip(0)).clamp(max=tile // 4) / (tile // 4)
    return (distance * math.pi / 2).sin().square()


# --- Files ---
def translate_jobs(generator: Generator, jobs: Sequence[Job], **options: Any) -> list[PictureError]:
    """Translate files; reading and writing go on beside the network.

    Args:
        generator: From ``load_generator``.
        jobs: From ``find_jobs``.
        **options: ``scale``, ``tile`` and ``precision`` of ``translate``.

    Returns:
        What is wrong with each picture that could not be read or written.
    """

    def outputs(pool: Executor) -> Iterator[tuple[Path, Image.Image] | PictureError]:
        pictures = zip(jobs, ahead(pool, read, jobs), strict=True)
        for job, picture in progress(pictures, desc="translating", total=len(jobs), unit="picture"):
            if isinstance(picture, PictureError):
                yield picture
                continue
            for seed, target in job.targets.items():
                yield target, translate_decoded(generator, picture, seed=seed, **options)

    with ThreadPoolExecutor() as pool:
        saved = ahead(pool, save, outputs(pool))
        return [error for error in saved if isinstance(error, PictureError)]


# --- The script ---
def translate_files(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    scale: Scale | None = None,
    tile: int = TILE,
    samples: int = 0,
    suffix: Literal[".png", ".tif", ".jpg"] = ".png",
    skip_existing: bool = False,
    precision: Precision | None = None,
    device: str = "auto",
) -> int:
    """Translate a picture, a folder of pictures, or those that a quoted pattern names.

    Args:
        checkpoint: generator.pt of a run, or latest_net_G.pth of the authors' PyTorch port.
        source: A picture, a folder (the tree below it is kept), or a pattern ("photos/*.jpg").
        output: File for one picture, folder for several.
        scale: trained scales as the training pictures were (default), own does not scale (default
            for the authors' files), crop squeezes to crop_size; the output is scaled back.
        tile: Larger pictures are translated in overlapping tiles of this side, in pixels.
        samples: Outputs a picture, with dropout on (the paper's noise z) and seeded; 0: one, plain.
        suffix: Format of the outputs in a folder.
        skip_existing: Leave out pictures whose outputs exist.
        precision: auto, fp32, bf16 or fp16; if not given, as in the training, and fp32 for 16 bits.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.

    Returns:
        How many pictures could not be translated.
    """
    generator = load_generator(checkpoint, device)
    jobs = _jobs_left(source, output, suffix, samples, skip_existing)
    options = {"scale": scale, "tile": tile, "precision": precision}
    failed = translate_jobs(generator, jobs, **options)
    print(f"{len(jobs) - len(failed)} pictures translated to {output}")
    if failed:
        print(f"{len(failed)} could not be translated:", *failed, sep="\n", file=sys.stderr)
    return len(failed)


def _jobs_left(
    source: str, output: Path, suffix: str, samples: int, skip_existing: bool
) -> list[Job]:
    """Return what there is to do, and see that it can be written."""
    if samples < 0:
        raise ValueError(f"samples is {samples}; give 0 (one output, without noise) or more.")
    jobs = found = find_jobs(source, output, suffix=suffix, samples=samples)
    if left := left_out(source, output, found):
        print(left)
    if skip_existing:
        jobs = [job for job in found if not all(path.exists() for path in job.targets.values())]
        print(f"{len(found) - len(jobs)} of {len(found)} pictures are translated already")
    targets = [path for job in jobs for path in job.targets.values()]
    if targets:
        make_folder(targets[0].parent if len(jobs) == 1 else output)
    if any(FORMATS[path.suffix.lower()] == "JPEG" for path in targets):
        print("JPEG changes pixels and drops transparency; PNG (--suffix .png) keeps both.")
    return jobs


def main() -> None:
    """Translate what the command line names; exit with 1 if a picture was left out."""
    try:
        failed = tyro.cli(translate_files)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Stopped; every output that exists is whole. Add --skip-existing to go on."
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "The memory does not hold this; lower --tile, and add --skip-existing to go on."
        ) from error
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_script(main)
