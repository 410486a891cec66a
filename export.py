"""Write a generator as ONNX, as safetensors, or as a page to draw on that runs it in a browser.

python export.py checkpoints/NAME/generator.pt OUTPUT.onnx
python export.py checkpoints/NAME/generator.pt OUTPUT.safetensors
python export.py checkpoints/NAME/generator.pt FOLDER
"""

import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from config import MAX_CROP
from dataset import normalise, to_image, validation_batches
from generator import norm_layer
from machine.disk import make_folder, whole_file
from machine.processes import check_alone
from machine.stopping import run_script
from run.sources import open_pairs, split_of
from utils import CHECKSUM, FACTS, Translator, checksum_of, load_generator
from web.drawing import write_drawing_page

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Precision = Literal["fp32", "fp16", "int8"]
# On [-1, 1], where 8 bits tell 0.008 apart: at most in fp32, in the mean in the others.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.1}
N_STARTS = 8  # pictures to start drawing from
N_PICTURES = 16  # from which the ranges of values in int8 are learned, and on which it is checked


def export(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    precision: Precision | None = None,
) -> None:
    """Write a trained generator as ONNX, as a page that runs it, or as safetensors.

    The graph takes ``input``, float32 (N, channels, H, W) in [-1, 1], H and W multiples of
    2^depth, and gives ``output``, likewise; its metadata say which range of the files' numbers
    that is. Each picture is translated as if it were alone, without dropout. The file gets its
    name once onnxruntime has computed with it what PyTorch does.

    The page is for drawing, or giving a picture, a film or a camera, and watching the output. It
    needs no server and no network: open the index.html in its folder.

    Safetensors is for giving a generator away: it holds the weights to the last bit and the
    settings, and no code can hide in it. All that reads generator.pt reads it, too.

    Args:
        checkpoint: generator.pt or latest.pt of a run, a file of safetensors, or latest_net_G.pth
            of the authors' port.
        output: File to write, NAME.onnx (over 2 GB, NAME.onnx.data beside it holds the weights)
            or NAME.safetensors, or folder of the page.
        precision: fp32 (default of a file), fp16 (of a page; half as large), or int8 (a quarter;
            it needs the pairs of the training, to see how large the values become).
    """
    output = Path(output)
    if output.suffix == ".safetensors":
        if precision not in (None, "fp32"):
            raise ValueError(
                f"Safetensors holds the weights in float32; leave out --precision {precision}."
            )
        size = write_safetensors(load_generator(checkpoint, device="cpu"), output)
        print(f"{output}: {size:.1f} MB")
        return
    export_graph(checkpoint, output, precision)


def export_graph(checkpoint: Path, output: Path, precision: Precision | None = None) -> None:
    """Write a generator as ONNX, or where ``output`` has no suffix as a page, see ``export``."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"The export needs {', '.join(missing)}; pip install -r requirements-export.txt"
        )
    is_page = not output.suffix
    if not is_page and output.suffix != ".onnx":
        raise ValueError(
            f"{output} does not end in .onnx; name the file to write NAME.onnx or "
            "NAME.safetensors, or a folder for a page to draw on."
        )
    precision = precision or ("fp16" if is_page else "fp32")
    translator = load_generator(checkpoint, device="cpu")
    translator.generator.dropout = "none"
    translator.eval()
    make_folder(output.parent)
    # A folder on the same disk, as the graph holds the name of the file with its weights.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        graph = Path(folder, output.with_suffix(".onnx").name)
        convert(translator).save(graph)
        difference = reduce(graph, translator, precision)
        if is_page:
            inputs = starts(translator)
            first = output_of(translator, inputs[0]) if inputs else None
            size = write_drawing_page(
                graph,
                translator.facts,
                [to_image(x) for x in inputs],
                output=first,
                folder=output,
                precision=precision,
            )
        else:
            size = publish(graph, output)
    what = f"{size:.1f} MB and the runtime" if is_page else f"{size:.1f} MB"
    print(f"{output}: {what}, {difference}")


def write_safetensors(translator: Translator, output: Path) -> float:
    """Write a generator on the CPU, its settings in the file's metadata; return its MB.

    Raises:
        ValueError: It is from the authors' code, whose files tell no settings.
        OSError: The file cannot be written.
    """
    if translator.config.dataset == "unknown":
        raise ValueError(
            "Generators of the authors' port have no settings to write; use their file as it is."
        )
    weights = {n: tensor.contiguous() for n, tensor in translator.generator.state_dict().items()}
    facts = json.dumps(translator.facts.as_saved())
    metadata = {"format": "pt", FACTS: facts, CHECKSUM: checksum_of(weights)}
    content = safetensors.torch.save(weights, metadata)
    with whole_file(output) as draft:
        draft.write_bytes(content)
    return len(content) / 1e6


def publish(graph: Path, output: Path) -> float:
    """Move a graph, alone in its folder but for its weights, to ``output``; return its MB."""
    size = sum(file.stat().st_size for file in graph.parent.iterdir())
    with whole_file(output) as place:
        if (data := Path(f"{graph}.data")).exists():  # before the graph that needs it
            with whole_file(output.with_name(data.name)) as data_place:
                data.replace(data_place)
        graph.replace(place)
    return size / 1e6


def convert(translator: Translator) -> ONNXProgram:
    """Convert a generator without dropout at test, its settings in the graph's metadata."""
    side = translator.multiple
    # What is traced must not be a single picture or 1x1 at the bottleneck: the exporter would
    # take the 1 for a fixed size.
    x = torch.zeros(2, translator.sides.input.channels, 2 * side, 2 * side)
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    program = torch.onnx.export(
        for_single_pictures(translator),
        (x,),
        dynamo=True,
        dynamic_shapes=({0: batch, 2: side * rows, 3: side * columns},),
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    facts = translator.facts.as_saved()
    program.model.metadata_props.update(
        {name: json.dumps(facts[name]) for name in ("config", "picture_size", "sides")},
        value_range=json.dumps([-1, 1]),
        size_multiple=json.dumps(side),
    )
    return program


def for_single_pictures(translator: Translator) -> Translator:
    """Return a copy that does to each picture of a batch what the generator does to it alone.

    For one picture, batch norm on the batch's statistics is instance norm. The exporter knows
    batch norm with running statistics only, and would write that without a word.
    """
    if translator.generator.norm != "batch":
        return translator
    translator = copy.deepcopy(translator)
    for block in (*translator.generator.encoder, *translator.generator.decoder):
        if isinstance(batch_norm := block[2], nn.BatchNorm2d):
            block[2] = norm_layer("instance", batch_norm.num_features)
            block[2].weight, block[2].bias = batch_norm.weight, batch_norm.bias
    return translator


def reduce(graph: Path, translator: Translator, precision: Precision) -> str:
    """Rewrite a float32 graph in another precision, and hold it against the generator.

    Returns:
        How far its outputs are from the generator's, in words.

    Raises:
        ValueError: Farther than TOLERANCE.
    """
    if precision == "int8":
        to_int8(graph, inputs_of(translator, "train"))
        pictures = list(inputs_of(translator, "val"))
    else:
        if precision == "fp16":
            to_float16(graph)
        pictures = random_inputs(translator)
    differences = output_differences(graph, translator, pictures)
    most, mean = differences.max().item(), differences.mean().item()  # NaN, if one is
    found = most if precision == "fp32" else mean
    if not found <= TOLERANCE[precision]:
        raise ValueError(
            f"{graph.name} was not written: onnxruntime's outputs differ from PyTorch's by up to "
            f"{most:.1g}, in the mean by {mean:.1g}, too much for {precision}; try other versions "
            "of " + ", ".join(("torch", *PACKAGES))
        )
    if precision == "fp32":
        return f"equal to PyTorch to {most:.1g}"
    return (
        f"in {precision}, which changes the outputs by {mean * 127.5:.2g} of 255 levels in the "
        f"mean, {most * 127.5:.2g} at most"
    )


def to_float16(graph: Path) -> None:
    """Rewrite a graph to compute in float16; inputs and outputs remain float32."""
    import onnx  # not a requirement of this project, see requirements-export.txt
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), graph)


def to_int8(graph: Path, inputs: Iterator[Tensor]) -> None:
    """Rewrite a graph to convolve in int8, scaled by the values that ``inputs`` lead to."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, object] | None:
            x = next(inputs, None)
            return None if x is None else {"input": x.numpy()}

    # The norms between them and the sums need the range of floats.
    kinds = ["Conv", "ConvTranspose"]
    options = {"op_types_to_quantize": kinds, "per_channel": True, "quant_format": QuantFormat.QDQ}
    quantize_static(graph, graph, Reader(), **options)


def inputs_of(translator: Translator, part: Literal["train", "val"]) -> Iterator[Tensor]:
    """Yield a few inputs of the pairs that a generator was trained on, (1, channels, H, W).

    Raises:
        ValueError, OSError: They are not here.
    """
    config, sides = translator.config, translator.sides
    chosen = getattr(split_of(config), part)[:N_PICTURES]
    pairs = open_pairs(config, chosen, augment=False, kinds=sides.kinds)
    for batch in validation_batches(pairs):
        yield normalise(batch, sides)[0]


def starts(translator: Translator) -> list[Tensor]:
    """Return a few validation inputs to start drawing from; label pictures at twice the size.

    Each is (channels, H, W) in [-1, 1]. There are none where the pictures of the training are not
    at hand.
    """
    config, sides = translator.config, translator.sides
    if not any(Path(place, config.dataset).is_dir() for place in ("", "data")):
        print(f"Data set {config.dataset} was not found; the page has no pictures to start from.")
        return []
    if sides.input.palette:
        side = min(2 * config.crop_size, MAX_CROP)
        config = replace(config, load_size=side, crop_size=side, nearest="both")
    pairs = open_pairs(config, split_of(config).val[:N_STARTS], augment=False, kinds=sides.kinds)
    return [normalise(batch, sides)[0][0] for batch in validation_batches(pairs)]


def output_of(translator: Translator, start: Tensor) -> Image.Image:
    """Return what a generator makes of one of ``starts``, scaled to crop_size as the page does."""
    with torch.inference_mode():
        x = nn.functional.interpolate(start[None], size=translator.config.crop_size, mode="area")
        return to_image(translator(x)[0])


def random_inputs(translator: Translator) -> list[Tensor]:
    """Return noise of two sizes, one and two pictures."""
    side = translator.multiple
    random = torch.Generator().manual_seed(0)
    sizes = ((1, side), (2, 2 * side))
    channels = translator.sides.input.channels
    return [torch.rand(n, channels, side, w, generator=random) * 2 - 1 for n, w in sizes]


def output_differences(graph: Path, translator: Translator, pictures: Sequence[Tensor]) -> Tensor:
    """Return the differences of all output values between onnxruntime and the generator.

    Args:
        graph: ONNX file.
        translator: It takes one picture at a time.
        pictures: Inputs, (N, channels, H, W) in [-1, 1] each.
    """
    import onnxruntime  # not a requirement of this project, see requirements-export.txt

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = []
    for x in pictures:
        (found,) = session.run(["output"], {"input": x.numpy()})
        with torch.inference_mode():
            expected = torch.cat([translator(picture) for picture in x.split(1)])
        differences.append((torch.from_numpy(found) - expected).abs().flatten())
    return torch.cat(differences)


def main() -> None:
    """Export the checkpoint named on the command line."""
    check_alone("export.py")
    tyro.cli(export)


if __name__ == "__main__":
    run_script(main)
