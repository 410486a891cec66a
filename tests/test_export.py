import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, script
from PIL import Image
from safetensors.torch import save_file
from test_authors import unet
from torch import Tensor, nn

import export
from config import Config
from recipes import known_sides, resolve
from train import train
from translate import translate_files
from utils import CheckpointError, Facts, Translator, build_generator, load_generator


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
    assert re.match(r"out/towns\.onnx: 0\.\d MB, equal to PyTorch to ", done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert [file.name for file in Path("out").iterdir()] == ["towns.onnx"]

    model = onnx.load("out/towns.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("input", "output")
    sizes = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, "4*rows", "4*columns"]
    told = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert (told["value_range"], told["size_multiple"]) == ([-1, 1], 4)
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
    with pytest.raises(ValueError, match=r"model\.pt does not end in \.onnx.*NAME\.safetensors"):
        export.export(checkpoint(), Path("model.pt"))


# --- Safetensors ---
def bits(translator: Translator, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return translator(x)


@pytest.mark.parametrize(
    "settings",
    [{"norm": "batch_running"}, {"dropout": "always", "direction": "BtoA"}, {"dataset": "towns"}],
)
def test_safetensors_are_the_generator_to_the_last_bit(settings: dict, towns: Path):
    path = checkpoint(**settings)
    export.export(path, "new/a.safetensors")
    assert [file.name for file in Path("new").iterdir()] == ["a.safetensors"]
    before, after = (load_generator(p, device="cpu") for p in (path, "new/a.safetensors"))
    assert after.facts == before.facts
    x = torch.rand(1, 3, 32, 64) * 2 - 1
    assert torch.equal(bits(after, x), bits(before, x))


def test_whatever_reads_generators_reads_safetensors(towns: Path):
    config = Config(dataset=str(towns), name="a", **TINY | {"n_epochs": 1, "n_epochs_decay": 0})
    train(config)
    export.export(Path("checkpoints/a/generator.pt"), Path("a.safetensors"))
    more = {"init_from": "a.safetensors", "teacher": "a.safetensors", "lr": 1e-9}
    train(replace(config, name="b", **more))
    ours, theirs = (
        load_generator(f, "cpu") for f in ("checkpoints/b/generator.pt", "a.safetensors")
    )
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    Image.new("RGB", (32, 32), "green").save("x.png")
    for name in ("a.safetensors", "checkpoints/a/generator.pt"):
        translate_files(name, "x.png", Path(f"{Path(name).suffix}.png"), device="cpu")
    assert Path(".safetensors.png").read_bytes() == Path(".pt.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], r"is damaged or no checkpoint \(Safetenso"),
        (lambda content: content[:20], r"is damaged or no checkpoint \("),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "checksum of its weights does n"),
        (lambda content: content.replace(b'ngf\\": 4', b'ngf\\": 5'), "weights|shape"),
        (lambda content: content.replace(b'ngf\\": 4', b'ngf\\"; 4'), "is damaged or no check"),
    ],
)
def test_damaged_safetensors(change: Callable[[bytes], bytes], message: str):
    export.export(checkpoint(), Path("a.safetensors"))
    whole = Path("a.safetensors").read_bytes()
    Path("a.safetensors").write_bytes(change(whole))
    assert change(whole) != whole
    with pytest.raises(CheckpointError, match=rf"^a\.safetensors.*{message}") as caught:
        load_generator("a.safetensors")
    assert "\n" not in str(caught.value)


def test_foreign_safetensors():
    save_file({"weight": torch.zeros(3)}, "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"^other\.safetensors: this is .*; expected generator"
    ):
        load_generator("other.safetensors")
    torch.save(unet(5, 2, "batch").state_dict(), "latest_net_G.pth")
    with pytest.raises(ValueError, match="authors' port have no settings"):
        export.export("latest_net_G.pth", "a.safetensors")
    with pytest.raises(ValueError, match="leave out --precision fp16"):
        export.export(checkpoint(), "a.safetensors", "fp16")
    assert not Path("a.safetensors").exists()
