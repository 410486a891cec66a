"""Write a generator as ONNX: ``python export.py checkpoints/NAME/generator.pt OUTPUT.onnx``."""

import copy
import json
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn
from torch.onnx import ONNXProgram

from disk import make_folder, whole_file
from generator import Generator, norm_layer
from scripts import run_script
from utils import load_generator

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # on [-1, 1]; 8 bits tell 0.008 apart


def export(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
) -> None:
    """Write a trained generator as ONNX, for use without PyTorch.

    The graph takes ``input``, float32 (N, channels, H, W) in [-1, 1], H and W multiples of
    2^depth, and gives ``output``, likewise; its metadata say which range of the files' numbers
    that is. Each picture is translated as
    if it were alone, without dropout. The file gets its name once onnxruntime has computed with
    it what PyTorch does.

    Args:
        checkpoint: generator.pt or latest.pt of a run, or latest_net_G.pth of the authors' port.
        output: File to write, NAME.onnx (over 2 GB, NAME.onnx.data beside it holds the weights).
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"The export needs {', '.join(missing)}; pip install -r requirements-export.txt"
        )
    output = Path(output)
    if output.suffix != ".onnx":
        raise ValueError(f"{output} does not end in .onnx; name the file to write NAME.onnx.")
    generator = load_generator(checkpoint, device="cpu")
    generator.dropout_at_test = False
    generator.eval()
    make_folder(output.parent)
    # A folder on the same disk, as the graph holds the name of the file with its weights.
    own_folder = tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent)
    with whole_file(output) as place, own_folder as folder:
        draft = Path(folder, output.name)
        convert(generator).save(draft)
        difference = check(draft, generator)
        size = sum(file.stat().st_size for file in draft.parent.iterdir())
        if (data := Path(f"{draft}.data")).exists():  # before the graph that needs it
            with whole_file(output.with_name(data.name)) as data_place:
                data.replace(data_place)
        draft.replace(place)
    print(f"{output}: {size / 1e6:.1f} MB, equal to PyTorch to {difference:.1g}")


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


def check(path: Path, generator: Generator) -> float:
    """Hold a graph in onnxruntime against the generator, which takes one picture at a time.

    Returns:
        The largest difference of a value in [-1, 1], over random pictures of two sizes.

    Raises:
        ValueError: It is above TOLERANCE.
    """
    import onnxruntime  # not a requirement of this project, see requirements-export.txt

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    side = 2 ** len(generator.encoder)
    random = torch.Generator().manual_seed(0)
    differences = []
    for count, width in ((1, side), (2, 2 * side)):
        x = torch.rand(count, generator.sides.input.channels, side, width, generator=random) * 2 - 1
        (found,) = session.run(["output"], {"input": x.numpy()})
        with torch.inference_mode():
            expected = torch.cat([generator(picture) for picture in x.split(1)])
        differences.append((torch.from_numpy(found) - expected).abs().max())
    difference = torch.stack(differences).max().item()  # NaN, if either is
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{path.name} was not written: onnxruntime's outputs differ from PyTorch's by up to "
            f"{difference:.1g}, and {TOLERANCE:g} was expected at most; try other versions of "
            + ", ".join(("torch", *PACKAGES))
        )
    return difference


def main() -> None:
    """Export the checkpoint named on the command line."""
    tyro.cli(export)


if __name__ == "__main__":
    run_script(main)
