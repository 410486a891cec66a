"""Write a generator as ONNX, or as a page to draw on that runs it in a browser.

python export.py checkpoints/NAME/generator.pt OUTPUT.onnx
python export.py checkpoints/NAME/generator.pt FOLDER
"""

import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from dataset import normalise, validation_loader
from generator import Generator, norm_layer
from machine.disk import make_folder, whole_file
from machine.stopping import run_script
from run.sources import open_pairs, split_of
from utils import load_generator
from web.drawing import write_page

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Precision = Literal["fp32", "fp16", "int8"]
# On [-1, 1], where 8 bits tell 0.008 apart: at most in fp32, in the mean in the others.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.1}
N_PICTURES = 16  # from which the ranges of values in int8 are learned, and on which it is checked


def export(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    precision: Precision | None = None,
) -> None:
    """Write a trained generator as ONNX, or as a page that runs it, for use without PyTorch.

    The graph takes ``input``, float32 (N, channels, H, W) in [-1, 1], H and W multiples of
    2^depth, and gives ``output``, likewise; its metadata say which range of the files' numbers
    that is. Each picture is translated as if it were alone, without dropout. The file gets its
    name once onnxruntime has computed with it what PyTorch does.

    The page is for drawing, or giving a picture, and watching the output. It needs no server and
    no network: open the index.html in its folder.

    Args:
        checkpoint: generator.pt or latest.pt of a run, or latest_net_G.pth of the authors' port.
        output: File to write, NAME.onnx (over 2 GB, NAME.onnx.data beside it holds the weights),
            or folder of the page.
        precision: fp32 (default of a file), fp16 (of a page; half as large), or int8 (a quarter;
            it needs the pairs of the training, to see how large the values become).
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"The export needs {', '.join(missing)}; pip install -r requirements-export.txt"
        )
    output = Path(output)
    is_page = not output.suffix
    if not is_page and output.suffix != ".onnx":
        raise ValueError(
            f"{output} does not end in .onnx; name the file to write NAME.onnx, or a folder for "
            "a page to draw on."
        )
    precision = precision or ("fp16" if is_page else "fp32")
    generator = load_generator(checkpoint, device="cpu")
    generator.dropout_at_test = False
    generator.eval()
    make_folder(output.parent)
    # A folder on the same disk, as the graph holds the name of the file with its weights.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        graph = Path(folder, output.with_suffix(".onnx").name)
        convert(generator).save(graph)
        difference = reduce(graph, generator, precision)
        if is_page:
            size = write_page(graph, generator, output, precision)
        else:
            size = publish(graph, output)
    print(f"{output}: {size:.1f} MB, {difference}")


def publish(graph: Path, output: Path) -> float:
    """Move a graph, alone in its folder but for its weights, to ``output``; return its MB."""
    size = sum(file.stat().st_size for file in graph.parent.iterdir())
    with whole_file(output) as place:
        if (data := Path(f"{graph}.data")).exists():  # before the graph that needs it
            with whole_file(output.with_name(data.name)) as data_place:
                data.replace(data_place)
        graph.replace(place)
    return size / 1e6


def convert(generator: Generator) -> ONNXProgram:
    """Convert a generator without dropout at test, its settings in the graph's metadata."""
    config = generator.config
    side = 2 ** len(generator.encoder)
    # What is traced must not be a single picture or 1x1 at the bottleneck: the exporter would
    # take the 1 for a fixed size.
    x = torch.zeros(2, generator.sides.input.channels, 2 * side, 2 * side)
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    program = torch.onnx.export(
        for_single_pictures(generator),
        (x,),
        dynamo=True,
        dynamic_shapes=({0: batch, 2: side * rows, 3: side * columns},),
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    program.model.metadata_props.update(
        config=json.dumps(asdict(config)),
        picture_size=json.dumps(generator.picture_size),
        sides=json.dumps(generator.sides.as_saved()),
        value_range=json.dumps([-1, 1]),
        size_multiple=json.dumps(side),
    )
    return program


def for_single_pictures(generator: Generator) -> Generator:
    """Return a copy that does to each picture of a batch what the generator does to it alone.

    For one picture, batch norm on the batch's statistics is instance norm. The exporter knows
    batch norm with running statistics only, and would write that without a word.
    """
    if generator.batch_norm_at_test == "running":
        return generator
    generator = copy.deepcopy(generator)
    for block in (*generator.encoder, *generator.decoder):
        if isinstance(batch_norm := block[2], nn.BatchNorm2d):
            block[2] = norm_layer("instance", batch_norm.num_features)
            block[2].weight, block[2].bias = batch_norm.weight, batch_norm.bias
    return generator


def reduce(graph: Path, generator: Generator, precision: Precision) -> str:
    """Rewrite a float32 graph in another precision, and hold it against the generator.

    Returns:
        How far its outputs are from the generator's, in words.

    Raises:
        ValueError: Farther than TOLERANCE.
    """
    if precision == "int8":
        to_int8(graph, inputs_of(generator, "train"))
        pictures = list(inputs_of(generator, "val"))
    else:
        if precision == "fp16":
            to_float16(graph)
        pictures = random_inputs(generator)
    differences = compare(graph, generator, pictures)
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


def inputs_of(generator: Generator, part: Literal["train", "val"]) -> Iterator[Tensor]:
    """Yield a few inputs of the pairs that a generator was trained on, (1, channels, H, W).

    Raises:
        ValueError, OSError: They are not here.
    """
    config, sides = generator.config, generator.sides
    chosen = getattr(split_of(config), part)[:N_PICTURES]
    pairs = open_pairs(config, chosen, augment=False, kinds=sides.kinds)
    for batch in validation_loader(pairs):
        yield normalise(batch, sides)[0]


def random_inputs(generator: Generator) -> list[Tensor]:
    """Return noise of two sizes, one and two pictures."""
    side = 2 ** len(generator.encoder)
    random = torch.Generator().manual_seed(0)
    sizes = ((1, side), (2, 2 * side))
    channels = generator.sides.input.channels
    return [torch.rand(n, channels, side, w, generator=random) * 2 - 1 for n, w in sizes]


def compare(graph: Path, generator: Generator, pictures: Sequence[Tensor]) -> Tensor:
    """Return the differences of all output values between onnxruntime and the generator.

    Args:
        graph: ONNX file.
        generator: It takes one picture at a time.
        pictures: Inputs, (N, channels, H, W) in [-1, 1] each.
    """
    import onnxruntime  # not a requirement of this project, see requirements-export.txt

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = []
    for x in pictures:
        (found,) = session.run(["output"], {"input": x.numpy()})
        with torch.inference_mode():
            expected = torch.cat([generator(picture) for picture in x.split(1)])
        differences.append((torch.from_numpy(found) - expected).abs().flatten())
    return torch.cat(differences)


def main() -> None:
    """Export the checkpoint named on the command line."""
    tyro.cli(export)


if __name__ == "__main__":
    run_script(main)
