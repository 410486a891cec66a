import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, script
from test_authors import unet
from torch import Tensor, nn

import export
from config import Config
from recipes import known_sides, resolve
from utils import Facts, build_generator, load_generator


def checkpoint(**settings: object) -> Path:
    """A generator in which every weight and statistic counts."""
    config = resolve(Config(name="a", **TINY | settings))[0]
    torch.manual_seed(0)
    generator = build_generator(config, known_sides(config))
    for key, tensor in generator.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 4:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.normal_(float(key.endswith("weight")), 0.3)
    facts = Facts(config, known_sides(config)).as_saved()
    torch.save({"generator": generator.state_dict()} | facts, "generator.pt")
    return Path("generator.pt")


def onnx_outputs(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def test_the_script_writes_a_graph_with_free_sizes_and_the_settings():
    path = checkpoint(input_nc=1, dropout="always", direction="BtoA")
    done = script("export.py", str(path), "out/towns.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out/towns.onnx: 0.1 MB, equal to PyTorch to ")
    assert len(done.stdout.splitlines()) == 1
    assert [file.name for file in Path("out").iterdir()] == ["towns.onnx"]

    model = onnx.load("out/towns.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("input", "output")
    sizes = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, "8*rows", "8*columns"]
    told = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert (told["value_range"], told["size_multiple"]) == ([-1, 1], 8)
    assert (told["config"]["direction"], told["config"]["ngf"]) == ("BtoA", 4)

    x = torch.rand(3, 1, 96, 32) * 2 - 1
    found = onnx_outputs(Path("out/towns.onnx"), x)
    generator = load_generator(path, device="cpu")
    generator.generator.dropout = "none"
    generator.eval()
    torch.testing.assert_close(found, generator(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["batch", "batch_running"])
def test_batch_norm(norm: str):
    path = checkpoint(norm=norm)
    export.export(path, Path("a.onnx"))
    operators = {node.op_type for node in onnx.load("a.onnx").graph.node}
    assert ("InstanceNormalization" in operators) == (norm == "batch")

    generator = load_generator(path, device="cpu")
    x = torch.rand(2, 3, 64, 32) * 2 - 1
    x[1] *= 0.1
    alone = torch.cat([generator(x[:1]), generator(x[1:])])
    torch.testing.assert_close(onnx_outputs(Path("a.onnx"), x), alone, atol=1e-4, rtol=0)


def test_a_generator_of_the_authors():
    network = unet(5, 2, "batch").train()
    torch.save(network.state_dict(), "latest_net_G.pth")
    export.export("latest_net_G.pth", "a.onnx")
    x = torch.rand(1, 3, 32, 64) * 2 - 1
    torch.testing.assert_close(onnx_outputs(Path("a.onnx"), x), network(x), atol=1e-4, rtol=0)


def test_weights_over_2_gb_stand_beside_the_graph(monkeypatch: pytest.MonkeyPatch):
    convert = export.convert

    class Large:
        def __init__(self, generator: nn.Module):
            self.program = convert(generator)

        def save(self, path: Path) -> None:
            self.program.save(path, external_data=True)

    monkeypatch.setattr(export, "convert", Large)
    path = checkpoint()
    export.export(path, "out/a.onnx")
    assert {file.name for file in Path("out").iterdir()} == {"a.onnx", "a.onnx.data"}
    x = torch.rand(1, 3, 32, 32)
    expected = load_generator(path, device="cpu")(x)
    torch.testing.assert_close(onnx_outputs(Path("out/a.onnx"), x), expected, atol=1e-4, rtol=0)


def test_a_wrong_graph_does_not_get_the_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "for_single_pictures", lambda generator: generator)
    Path("a.onnx").write_text("as it was")
    with pytest.raises(ValueError, match=r"a\.onnx was not written: .* differ .* by up to \d"):
        export.export(checkpoint(norm="batch"), Path("a.onnx"))
    assert Path("a.onnx").read_text() == "as it was"
    assert {file.name for file in Path().iterdir()} == {"a.onnx", "generator.pt"}


@pytest.mark.parametrize(("precision", "size"), [("fp16", 0.6), ("int8", 0.4)])
def test_smaller_graphs_say_what_it_costs(
    precision: str, size: float, towns: Path, capsys: pytest.CaptureFixture[str]
):
    path = checkpoint(dataset=str(towns), ngf=32)
    export.export(path, Path("whole.onnx"))
    export.export(path, Path("less.onnx"), precision)
    assert Path("less.onnx").stat().st_size < size * Path("whole.onnx").stat().st_size
    told = re.search(
        rf"in {precision}, which .* by ([\d.]+) of 255 .*, ([\d.]+) at most",
        capsys.readouterr().out,
    )
    mean, most = map(float, told.groups())
    assert 0 < mean < most

    generator = load_generator(path, device="cpu")
    x = torch.cat(list(export.inputs_of(generator, "val")))
    difference = (onnx_outputs(Path("less.onnx"), x) - onnx_outputs(Path("whole.onnx"), x)).abs()
    assert 0 < 127.5 * difference.mean() < 4
    model = onnx.load("less.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "size_multiple" in {prop.key for prop in model.metadata_props}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: patch.setitem(sys.modules, "onnxruntime", None), "needs onnxruntime; pip"),
        (
            lambda patch: patch.setattr(export, "PACKAGES", ("onnx", "onnxscrypt")),
            "onnxscrypt; pip",
        ),
    ],
)
def test_missing_packages_are_named(
    change: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
):
    change(monkeypatch)
    with pytest.raises(ValueError, match=message):
        export.export(checkpoint(), Path("a.onnx"))


def test_outputs_with_another_ending_are_refused():
    with pytest.raises(ValueError, match=r"model\.pt does not end in \.onnx"):
        export.export(checkpoint(), Path("model.pt"))
