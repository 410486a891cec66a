"""Translate pictures of any size: ``python translate.py CHECKPOINT INPUT OUTPUT``.

In a notebook ``translate(load_generator(CHECKPOINT), picture)``: on a CPU the same, bit for bit.
"""

import math
import sys
from collections import defaultdict
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
from tqdm.auto import tqdm

from config import Config
from dataset import denormalise, normalise
from devices import Machine, choose_machine
from disk import make_folder
from generator import Generator
from pictures.decode import Decoded, PictureError, decode, image_of
from pictures.jobs import FORMATS, Job, ahead, find_jobs, read, save
from pictures.pairs import resize, to_channels
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
    images = [picture] if isinstance(picture, Image.Image) else picture
    if not all(isinstance(image, Image.Image) for image in images):
        raise ValueError(f"translate takes pictures from PIL.Image.open, not {picture!r}.")
    decoded = [decode(image, f"picture {number}") for number, image in enumerate(images)]
    options = {"scale": scale, "tile": tile, "seed": seed, "precision": precision}
    outputs = translate_decoded(generator, decoded, **options)
    return outputs[0] if isinstance(picture, Image.Image) else outputs


def translate_decoded(
    generator: Generator,
    pictures: Sequence[Decoded],
    *,
    scale: Scale | None = None,
    tile: int = TILE,
    seed: int | None = None,
    precision: Precision | None = None,
) -> list[Image.Image]:
    """Translate pictures, see ``translate``; on a GPU, those of one padded size together."""
    config = generator.config
    multiple = config.crop_size
    _check_tile(tile, multiple)
    scaled = [_scaled(picture.pixels, generator, scale) for picture in pictures]
    padded = [_padded(pixels, multiple) for pixels in scaled]
    outputs: list[Image.Image | None] = [None] * len(pictures)
    for group in _alike(padded, together=_is_independent(generator, seed)):
        batch = np.stack([padded[index] for index in group])
        # Half precision has errors that 16 bits would show.
        usual = "fp32" if _depth(batch, config) == np.uint16 else config.precision
        machine = choose_machine(next(generator.parameters()).device, precision or usual)
        with _seeded(generator, seed):
            fakes = _apply(generator, torch.from_numpy(batch).movedim(3, 1), tile, machine)
        for index, fake in zip(group, fakes, strict=True):
            unpadded = _unpadded(fake, scaled[index].shape)
            outputs[index] = _finished(unpadded, pictures[index], config)
    return outputs


def _finished(fake: Tensor, picture: Decoded, config: Config) -> Image.Image:
    """Turn an output (C, h, w) into a picture of the size and depth of the one it came from."""
    is_label = config.nearest in ("target", "both")
    output = denormalise(fake, _depth(picture.pixels, config))
    output = resize(output, picture.pixels.shape, is_label)
    if picture.alpha is not None:
        output = np.concatenate([output, picture.alpha], axis=2)
    return image_of(output)


def _depth(pixels: np.ndarray, config: Config) -> np.dtype:
    """Return the type of the output's pixels: no format here holds colours of 16 bits."""
    return pixels.dtype if config.output_nc == 1 else np.dtype(np.uint8)


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


def _alike(padded: list[np.ndarray], *, together: bool) -> list[list[int]]:
    """Return the indices of the pictures that can be translated as one batch, for each batch."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, pixels in enumerate(padded):
        groups[(pixels.dtype, pixels.shape) if together else index].append(index)
    return list(groups.values())


def _is_independent(generator: Generator, seed: int | None) -> bool:
    """Say whether an output does not depend on what else is in the batch."""
    # The CPU's kernels round differently by batch size, and gain little from a larger one.
    on_cpu = next(generator.parameters()).device.type == "cpu"
    shared = generator.config.norm == "batch" and generator.batch_norm_at_test == "batch"
    return not (on_cpu or shared or generator.dropout_at_test or seed is not None)


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
def translate_jobs(
    generator: Generator, jobs: Sequence[Job], *, batch_size: int = 8, **options: Any
) -> list[PictureError]:
    """Translate files; reading and writing go on beside the network.

    Args:
        generator: From ``load_generator``.
        jobs: From ``find_jobs``.
        batch_size: Pictures a batch, on a GPU.
        **options: ``scale``, ``tile`` and ``precision`` of ``translate``.

    Returns:
        What is wrong with each picture that could not be read or written.
    """
    if not _is_independent(generator, seed=next((s for job in jobs for s in job.targets), None)):
        batch_size = 1  # together they would only wait for each other

    def outputs(pool: Executor) -> Iterator[tuple[Path, Image.Image] | PictureError]:
        batch: list[tuple[Job, Decoded]] = []
        pictures = zip(jobs, ahead(pool, read, jobs), strict=True)
        bar = tqdm(pictures, desc="translating", total=len(jobs), unit="picture")
        for count, (job, picture) in enumerate(bar, start=1):
            if isinstance(picture, PictureError):
                yield picture
            else:
                batch.append((job, picture))
            if batch and (len(batch) == batch_size or count == len(jobs)):
                yield from _translate_batch(generator, batch, **options)
                batch = []

    with ThreadPoolExecutor() as pool:
        saved = ahead(pool, save, outputs(pool))
        return [error for error in saved if isinstance(error, PictureError)]


def _translate_batch(
    generator: Generator, batch: list[tuple[Job, Decoded]], **options: Any
) -> Iterator[tuple[Path, Image.Image]]:
    jobs, pictures = zip(*batch, strict=True)
    for seed in jobs[0].targets:
        images = translate_decoded(generator, pictures, seed=seed, **options)
        yield from zip((job.targets[seed] for job in jobs), images, strict=True)


# --- The script ---
def translate_files(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    scale: Scale | None = None,
    tile: int = TILE,
    samples: int = 0,
    batch_size: int = 8,
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
        batch_size: Pictures a batch, on a GPU.
        suffix: Format of the outputs in a folder.
        skip_existing: Leave out pictures whose outputs exist.
        precision: auto, fp32, bf16 or fp16, as in the training where it is not given; outputs with
            16 bits are then made in fp32.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.

    Returns:
        How many pictures could not be translated.

    Raises:
        ValueError, OSError: A checkpoint, setting or path that cannot be used.
    """
    if batch_size < 1 or samples < 0:
        raise ValueError(
            f"batch_size is {batch_size} and samples {samples}; give 1 or more, and 0 or more."
        )
    generator = load_generator(checkpoint, device)
    jobs = found = find_jobs(source, output, suffix=suffix, samples=samples)
    if skip_existing:
        jobs = [job for job in found if not all(path.exists() for path in job.targets.values())]
        print(f"{len(found) - len(jobs)} of {len(found)} pictures are translated already")
    if not jobs:
        return 0
    targets = [path for job in jobs for path in job.targets.values()]
    make_folder(output if len(jobs) != 1 else targets[0].parent)
    if any(FORMATS[path.suffix.lower()] == "JPEG" for path in targets):
        print("JPEG changes pixels and drops transparency; PNG (--suffix .png) keeps both.")
    options = {"scale": scale, "tile": tile, "precision": precision}
    failed = translate_jobs(generator, jobs, batch_size=batch_size, **options)
    print(f"{len(jobs) - len(failed)} pictures translated to {output}")
    if failed:
        lines = [f"{len(failed)} could not be translated:", *map(str, failed)]
        print("\n".join(lines), file=sys.stderr)
    return len(failed)


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
            "The memory does not hold this; lower --batch-size, then --tile, and add "
            "--skip-existing to go on."
        ) from error
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_script(main)
