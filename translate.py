"""Translate pictures of any size, and films: ``python translate.py CHECKPOINT INPUT OUTPUT``.

In a notebook ``translate(load_generator(CHECKPOINT), picture)``: on a CPU the same, bit for bit;
for films ``translate_film(load_generator(CHECKPOINT), "film.mp4", "out.mp4")``.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from dataset import denormalise, scaled
from machine.devices import Machine, choose_machine
from machine.disk import make_folder
from machine.processes import check_alone
from machine.progress import progress
from machine.stopping import Interrupted, StopRequest, is_out_of_memory, run_script
from pictures.decode import Picture, PictureError, Reading, decode, read_picture
from pictures.encode import HOLDS, as_opened, can_hold
from pictures.film import FORMS, Film, FilmWriter, Frame, is_film, opened_film, written_film
from pictures.jobs import Job, ahead, find_jobs, left_out, save
from pictures.pairs import SQUARE, cut, resize
from pictures.palettes import numbered, share_unknown
from pictures.sides import OWN_RANGES, SCALABLE, Kind, Side, misfit, to_kind
from utils import Translator, load_generator, testing

TILE = 1024  # pixels; a multiple of what every generator takes
# So many frames of a film are translated at once where they are small: a CPU needs a third less
# time at 128 px, a sixth at 256. Larger ones gain little and take memory.
TOGETHER, TOGETHER_PIXELS = 4, 256 * 256
EXPECTED = 0.9  # of the frames that a film seems to have; some say only how long they last


class UnlikeError(ValueError):
    """A picture is of another kind than those that the generator was trained on."""


@dataclass(frozen=True)
class Options:
    """How pictures are translated.

    Args:
        scale: trained scales as the training pictures were (default), own does not scale (default
            for the authors' files), crop squeezes to crop_size (default after a training on
            pictures of many sizes). The output is scaled back.
        tile: Side in pixels of the overlapping tiles in which larger pictures are translated.
        precision: auto, fp32, bf16 or fp16; if not given, as in the training, but fp32 for outputs
            of over 8 bits: half precision has too few digits.
        alpha: keep makes the output transparent where the input is; white draws that over white.
        whole: Translate the whole of pictures that look like the pairs of the training, not only
            their input halves.
        max_pixels: Pixels of the largest picture that is read; if not given, 179 million.
    """

    scale: Literal["trained", "own", "crop"] | None = None
    tile: int = TILE
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    alpha: Literal["white", "keep"] = "white"
    whole: bool = False
    max_pixels: int | None = None


DEFAULTS = Options()


# --- Pictures ---
def translate(
    translator: Translator,
    picture: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
    *,
    seed: int | None = None,
    **options: Any,
) -> Image.Image | np.ndarray | list[Image.Image | np.ndarray]:
    """Translate a picture, or each of a list, to one of the same size.

    Args:
        translator: From ``load_generator``.
        picture: Of any size, of the kind of the training's inputs (grey and colour, 8 and 16 bits
            become the other); an array is (H, W), (H, W, channels) or (channels, H, W).
        seed: Switches dropout on (the paper's noise z) and seeds it; None: as the checkpoint says.
        **options: Fields of ``Options``.

    Returns:
        The output, or the list of outputs, of the type and in the units of the training's targets:
        a picture, or where Pillow has no such pictures an array (H, W, channels).

    Raises:
        ValueError: An option, or a picture that cannot be used.
    """
    chosen = Options(**options)
    pictures = picture if isinstance(picture, list | tuple) else [picture]
    if not all(isinstance(one, Image.Image | np.ndarray) for one in pictures):
        raise ValueError(f"translate takes pictures from PIL.Image.open or arrays, not {picture!r}")
    reading = reading_of(translator, chosen)
    decoded = [decode(one, f"picture {n}", reading) for n, one in enumerate(pictures)]
    inputs = [input_half(translator, one, chosen) for one in decoded]
    outputs = [as_opened(translate_decoded(translator, one, chosen, seed)) for one in inputs]
    return outputs if pictures is picture else outputs[0]


def reading_of(translator: Translator, options: Options) -> Reading:
    """Return how files are to be read for a generator: as those that it was trained on."""
    config, is_index = translator.config, bool(translator.sides.input.index)
    return Reading(config.alpha, is_index, config.ignore, options.max_pixels)


def input_half(translator: Translator, picture: Picture, options: Options) -> Picture:
    """Return the half to translate of a picture that looks like a pair, if such were cut."""
    facts = translator.facts
    if options.whole or not facts.side_by_side or facts.picture_size is None:
        return picture
    height, width = facts.picture_size
    found_height, found_width = picture.pixels.shape[:2]
    if abs(found_width / found_height / (2 * width / height) - 1) > SQUARE:
        return picture
    return cut(picture, half=int(facts.config.direction == "BtoA"))


def translate_decoded(
    translator: Translator, picture: Picture, options: Options, seed: int | None = None
) -> Picture:
    """Translate a picture that is decoded already, see ``translate``."""
    return translate_together(translator, [picture], options, seed)[0]


def translate_together(
    translator: Translator, pictures: Sequence[Picture], options: Options, seed: int | None = None
) -> list[Picture]:
    """Translate decoded pictures of one size in one batch, see ``translate``."""
    config, (source, target) = translator.config, translator.sides
    _check_tile(options.tile, translator.multiple)
    ready = [_scaled(_as_trained(one, source), translator, options) for one in pictures]
    padded = np.stack([_padded(pixels, translator.multiple) for pixels in ready])
    # Half precision has errors that more than 8 bits would show.
    usual = config.precision if target.dtype == "uint8" else "fp32"
    device = next(translator.parameters()).device
    machine = choose_machine(device, options.precision or usual)
    with _seeded(translator, seed):
        batch = torch.from_numpy(padded).movedim(3, 1)
        fakes = _apply(translator, batch, options.tile, machine)  # (N, channels, H, W)
    if not fakes.isfinite().all():
        raise UnlikeError("the output for it is not finite; the checkpoint is damaged")
    nearest = target.is_exact or config.nearest in ("target", "both")
    outputs = []
    for fake, picture in zip(fakes, pictures, strict=True):
        output = denormalise(_unpadded(fake, ready[0].shape), target)
        output = resize(output, picture.pixels.shape, nearest)
        outputs.append(_as_target(output, picture, target, options))
    return outputs


def _as_target(output: np.ndarray, picture: Picture, target: Side, options: Options) -> Picture:
    """Return numbers as a picture of the targets' kind, with opacity and place of the input."""
    if not target.is_plain:  # enlarging swings beyond the range, where its type does not end it
        output = output.clip(target.low, target.high).astype(output.dtype)
    if target.index:
        output = numbered(output, target.palette)[..., None]
    kept = picture.alpha if options.alpha == "keep" and _takes_opacity(target) else None
    if kept is not None:
        kept = to_kind(kept, Kind(1, output.dtype.name)).round().astype(output.dtype)
    return Picture(output, kept, target.index, picture.tags)


def _takes_opacity(side: Side) -> bool:
    """Whether a channel more in pictures of a kind would be read as their opacity."""
    return side.channels in (1, 3) and side.dtype in SCALABLE and not side.index


def _as_trained(picture: Picture, side: Side) -> np.ndarray:
    """Return the pixels of a picture as those of the training's inputs are, or say why not."""
    why = misfit(picture.kind, side.kind)
    if picture.kind.dtype != side.dtype and (side.low, side.high) != OWN_RANGES[side.dtype]:
        why = f"it has {picture.kind}; the training pictures have {side.describe()}"
    if why:
        raise UnlikeError(why)
    if side.index and (share := share_unknown(picture.pixels, side.palette)):
        known = ", ".join(side.palette)
        raise UnlikeError(
            f"{share:.1%} of its pixels have a colour that is no class of the training ({known})"
        )
    return to_kind(picture.pixels, side.kind)


def _check_tile(tile: int, multiple: int) -> None:
    if tile < 1 or tile % multiple:
        raise ValueError(
            f"tile is {tile}; this generator takes multiples of {multiple} pixels, so set it to "
            f"{multiple * max(1, tile // multiple)} or {multiple * (max(1, tile // multiple) + 1)}."
        )


def _scaled(pixels: np.ndarray, translator: Translator, options: Options) -> np.ndarray:
    """Return the picture as large as the generator is used to see it, (h, w, channels)."""
    config, trained_on = translator.config, translator.facts.picture_size
    height, width = pixels.shape[:2]
    usual = "crop" if translator.facts.mixed_sizes else "trained"
    scale = options.scale or (usual if trained_on else "own")
    if scale == "own":
        return pixels
    if scale == "crop":
        shape = (config.crop_size, config.crop_size)
    elif trained_on is None:
        raise ValueError(
            "The checkpoint does not say how large its training pictures were, so scale "
            '"trained" cannot work; set scale to "own" (as they are) or "crop".'
        )
    else:
        sides = (min(trained_on),) * 2 if config.keep_aspect else trained_on
        ratios = (config.load_size / side for side in sides)
        shape = tuple(
            max(1, round(s * ratio)) for s, ratio in zip((height, width), ratios, strict=True)
        )
    nearest = translator.sides.input.is_exact or config.nearest in ("input", "both")
    return resize(pixels, shape, nearest)


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
def _seeded(translator: Translator, seed: int | None) -> Iterator[None]:
    """Lend the generator for test-time use, with dropout on and seeded unless ``seed`` is None."""
    generator = translator.generator
    if seed is not None and not any(isinstance(m, nn.Dropout) for m in generator.modules()):
        raise ValueError("This generator has no dropout, so that all its samples are the same.")
    dropout = generator.dropout
    generator.dropout = dropout if seed is None else "always"
    try:
        with testing(translator, translator.config.seed if seed is None else seed):
            yield
    finally:
        generator.dropout = dropout
        translator.train(translator.training)


def _apply(translator: Translator, batch: Tensor, tile: int, machine: Machine) -> Tensor:
    """Return the outputs (N, channels, H, W) in [-1, 1] for numbers as in files, likewise."""
    x = scaled(batch.to(machine.device), translator.sides.input).clamp(-1, 1)
    rows, columns = (_tile_starts(side, tile) for side in x.shape[2:])
    with machine.autocast:
        if len(rows) == len(columns) == 1:
            return translator(x)
        total = x.new_zeros(len(x), translator.sides.target.channels, *x.shape[2:])
        weight = x.new_zeros(x.shape[2:])
        for top, left in product(rows, columns):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            window = _ramp(weight[place].shape[0], tile, machine.device)[:, None]
            window = window * _ramp(weight[place].shape[1], tile, machine.device)
            total[place] += translator(x[place]) * window
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
    translator: Translator, jobs: Sequence[Job], options: Options
) -> list[PictureError]:
    """Translate files; reading and writing go on beside the network.

    Args:
        translator: From ``load_generator``.
        jobs: From ``find_jobs``.
        options: How.

    Returns:
        What is wrong with each picture that could not be read, translated or written.
    """
    seen = {"cut": 0, "transparent": 0}

    def outputs(pool: Executor) -> Iterator[tuple[Path, Picture] | PictureError]:
        read = partial(read_picture, reading=reading_of(translator, options))
        pictures = zip(jobs, ahead(pool, read, [job.source for job in jobs]), strict=True)
        for job, picture in progress(pictures, desc="translating", total=len(jobs), unit="picture"):
            if isinstance(picture, PictureError):
                yield picture
                continue
            half = input_half(translator, picture, options)
            seen["cut"] += half is not picture
            seen["transparent"] += half.is_transparent
            for seed, target in job.targets.items():
                try:
                    yield target, translate_decoded(translator, half, options, seed)
                except UnlikeError as error:
                    yield PictureError({job.source: str(error)})

    with ThreadPoolExecutor() as pool:
        failed = [e for e in ahead(pool, save, outputs(pool)) if isinstance(e, PictureError)]
    _say_what_was_done(translator, seen, options)
    return failed


def _say_what_was_done(translator: Translator, seen: dict[str, int], options: Options) -> None:
    if seen["cut"]:
        half = "right" if translator.config.direction == "BtoA" else "left"
        print(
            f"{seen['cut']} pictures are pairs, as in the training: their {half} halves were "
            "translated (--whole translates all of them)"
        )
    can_keep = _takes_opacity(translator.sides.target)
    if seen["transparent"] and not (can_keep and options.alpha == "keep"):
        print(
            f"{seen['transparent']} pictures are partly transparent and were drawn over white"
            + " (--alpha keep makes the outputs transparent there)" * can_keep
        )


# --- Films ---
def translate_film(
    translator: Translator, source: str | Path, output: str | Path, options: Options = DEFAULTS
) -> None:
    """Translate a film or an animation; its size, its times and its sound stay.

    Each frame is translated as if it were the only one, with the same noise: what stands still in
    the film does so in the output.

    Args:
        translator: From ``load_generator``.
        source: Any film that PyAV reads, or an animated WebP.
        output: A name that is still free, whose suffix is one of FORMS.
        options: How the frames are translated.

    Raises:
        ValueError, OSError: The film, the output or the options cannot be used. A film that is
            damaged further on is translated up to there.
        Interrupted: A signal asked to stop; the output holds what was done.
    """
    source, output = Path(source), Path(output)
    _check_film(source, output, translator.sides.target, options)
    make_folder(output.parent)
    early: Interrupted | ValueError | None = None
    with opened_film(source) as film, written_film(output, film) as writer:
        if film.hdr:
            print(f"{source} is an HDR film ({film.hdr}), whose colours look pale in 8 bits")
        try:
            _translate_frames(translator, film, writer, f"of {source}", options)
        except (Interrupted, ValueError) as error:
            if not writer.n_frames:
                raise
            early = error  # what is done is worth keeping
    _say_how_a_film_ended(source, output, writer, early)


def _translate_frames(
    translator: Translator, film: Film, writer: FilmWriter, source: str, options: Options
) -> None:
    frames, at_once = film.frames(writer.pass_on), _frames_at_once(translator, film.size)
    shown = {"desc": "translating", "total": film.n_frames, "unit": "frame"}
    with StopRequest() as stop, progress(frames, **shown) as bar:
        for group in stop.watch(_grouped(bar, at_once)):
            name = f"frame {writer.n_frames + 1} {source}"
            outputs = _translated_together(translator, group, name, options)
            for frame, picture in zip(group, outputs, strict=True):
                writer.add(picture, frame)


def _frames_at_once(translator: Translator, size: tuple[int, int]) -> int:
    generator = translator.generator
    # Then a frame would depend on those beside it, and on its place among them.
    is_mixing = generator.norm == "batch" or generator.dropout == "always"
    return 1 if is_mixing or math.prod(size) > TOGETHER_PIXELS else TOGETHER


def _grouped(frames: Iterable[Frame], count: int) -> Iterator[list[Frame]]:
    frames = iter(frames)
    while group := list(islice(frames, count)):
        yield group


def _translated_together(
    translator: Translator, frames: Sequence[Frame], name: str, options: Options
) -> list[Image.Image]:
    """Translate frames of one size; an error calls the first of them ``name``."""
    reading = reading_of(translator, options)
    decoded = [decode(frame.picture, name, reading) for frame in frames]
    try:
        outputs = translate_together(translator, decoded, options)
    except UnlikeError as error:
        raise PictureError({Path(name): str(error)}) from error
    # Classes without colours are shown in those by which Pillow would paint them.
    return [as_opened(replace(one, index="P") if one.index else one) for one in outputs]


def _check_film(source: Path, output: Path, side: Side, options: Options) -> None:
    """Refuse what cannot become a film, or would write over something."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} is no file; expected a film to translate to {output}.")
    if not is_film(output):
        raise ValueError(f"{output} cannot hold a film; end it in {', '.join(FORMS)}.")
    if os.path.lexists(output):
        raise FileExistsError(f"{output} exists, and films are not written over; remove it first.")
    kind = Kind(side.channels, side.dtype, side.index)
    if not side.index and (side.dtype != "uint8" or side.channels not in (1, 3)):
        raise ValueError(
            f"A film holds 8 bits of grey or colour, but the outputs are {kind}; save the frames "
            "as pictures and translate those."
        )
    if options.alpha == "keep":
        raise ValueError("Films are drawn over white; leave out --alpha keep.")


def _say_how_a_film_ended(
    source: Path, output: Path, writer: FilmWriter, early: Interrupted | ValueError | None
) -> None:
    for remark in writer.remarks:
        print(f"{source}: {remark}")
    if early is None:
        print(f"{writer.n_frames} frames translated to {output}")
        expected = writer.film.n_frames or 0
        if writer.n_frames < EXPECTED * expected:
            print(f"{source} seems to be of {expected} frames; is the file whole?")
        return
    held = f"{output} holds the first {writer.n_frames} frames"
    if isinstance(early, Interrupted):
        raise Interrupted(f"Stopped; {held}. Remove it to start over.", early.signum)
    raise ValueError(f"{early}\n{held}.") from early


# --- The script ---
def translate_files(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    options: Annotated[Options, tyro.conf.arg(name="")] = DEFAULTS,
    samples: int = 0,
    suffix: Literal[".png", ".tif", ".npy", ".jpg"] | None = None,
    skip_existing: bool = False,
    device: str = "auto",
) -> int:
    """Translate a picture, a folder of pictures, those that a quoted pattern names, or a film.

    Args:
        checkpoint: generator.pt of a run, a file of safetensors from export.py, or
            latest_net_G.pth of the authors' PyTorch port.
        source: A picture, a folder (the tree below it is kept), a pattern ("photos/*.jpg"), or a
            film (.mp4, .mkv, .mov, .webm, .gif, .webp).
        output: File for one picture or film, folder for several pictures.
        options: How pictures are translated.
        samples: Outputs a picture, with dropout on (the paper's noise z) and seeded; 0: one, plain.
        suffix: Format of the outputs in a folder; if not given, .png where that holds them.
        skip_existing: Leave out pictures, or the film, whose outputs exist.
        device: auto (CUDA, else Apple MPS, else CPU), or cpu, cuda, cuda:1, mps.

    Returns:
        How many pictures could not be translated.
    """
    translator = load_generator(checkpoint, device)
    if _means_film(source, output):
        if samples or suffix:
            raise ValueError(
                "A film has one output, whose name you give; leave out --samples and --suffix."
            )
        if skip_existing and output.exists():
            print(f"{output} exists; {source} is left out")
        else:
            translate_film(translator, source, output, options)
        return 0
    suffix = suffix or _usual_suffix(translator.sides.target)
    jobs = _jobs_left(source, output, suffix, samples, skip_existing)
    _check_formats(jobs, translator.sides.target)
    failed = translate_jobs(translator, jobs, options)
    print(f"{len(jobs) - len(failed)} pictures translated to {output}")
    if failed:
        print(f"{len(failed)} could not be translated:", *failed, sep="\n", file=sys.stderr)
    return len(failed)


def _means_film(source: str, output: Path) -> bool:
    # A WebP may be a picture; then the output is none that moves.
    is_one = is_film(Path(source)) and Path(source).suffix.lower() != ".webp"
    return is_film(output) or (is_one and os.path.isfile(source))


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
    return jobs


def _usual_suffix(side: Side) -> str:
    return ".png" if side.index or _takes_opacity(side) else ".tif"


def _check_formats(jobs: Sequence[Job], side: Side) -> None:
    """Refuse formats that cannot hold the outputs, and say what JPEG loses."""
    dtype, channels = side.dtype, 1 if side.index else side.channels
    suffixes = {path.suffix for job in jobs for path in job.targets.values()}
    for suffix in suffixes:
        if not can_hold(suffix, dtype, channels):
            kind = Kind(channels, dtype)
            raise ValueError(f"{suffix} does not hold the outputs, {kind}; use .tif or .npy.")
    if any(HOLDS[suffix.lower()][0] == "JPEG" for suffix in suffixes):
        print("JPEG changes pixels and drops transparency; PNG (--suffix .png) keeps both.")


def main() -> None:
    """Translate what the command line names; exit with 1 if a picture was left out."""
    check_alone("translate.py")
    try:
        failed = tyro.cli(translate_files, config=(tyro.conf.OmitArgPrefixes,))
    except Interrupted:  # in a film, which says itself what is left of it
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Stopped; every output that exists is whole. Add --skip-existing to go on."
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "Out of memory; lower --tile, and add --skip-existing to go on."
        ) from error
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_script(main)
