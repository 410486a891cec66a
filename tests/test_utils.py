import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from PIL import Image

from config import Config
from evaluate import score_checkpoints
from machine.devices import choose_machine
from run.checkpoints import load_checkpoint
from train import train
from utils import CheckpointError, load_generator


@pytest.fixture
def run(towns: Path) -> Config:
    config = Config(dataset=str(towns), name="a", **TINY)
    train(config)
    return config


@pytest.mark.parametrize("name", ["latest.pt", "generator.pt"])
def test_load_generator_gives_the_trained_network(run: Config, name: str):
    generator = load_generator(f"checkpoints/a/{name}", device="cpu")
    assert (generator.config.crop_size, generator.config.ngf) == (32, 4)
    x = torch.rand(2, 3, 32, 64) * 2 - 1
    assert torch.equal(generator(x), generator(x))
    weights = torch.load("checkpoints/a/latest.pt", weights_only=True)["average"]
    assert all(torch.equal(generator.generator.state_dict()[key], weights[key]) for key in weights)


@pytest.mark.parametrize(("direction", "size"), [("AtoB", (64, 64)), ("BtoA", (128, 128))])
def test_the_size_of_the_inputs_is_kept(direction: str, size: tuple[int, int]):
    for letter, side in (("A", 64), ("B", 128)):
        Path(f"set/train{letter}").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (side, side)).save(f"set/train{letter}/{number}.png")
    train(Config(dataset="set", direction=direction, **TINY))
    assert load_generator("checkpoints/set/generator.pt", "cpu").facts.picture_size == size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("batch_running", False)])
def test_eval_does_what_the_checkpoint_says(run: Config, precision: str, norm: str, depends: bool):
    dropout = "always" if depends else "training"
    train(replace(run, name="b", norm=norm, dropout=dropout, n_epochs=1, n_epochs_decay=0))
    generator = load_generator("checkpoints/b/generator.pt", device="cpu")
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    x[1] *= 0.1
    with choose_machine("cpu", precision).autocast:
        first = generator(x)
        assert torch.equal(first, generator(x)) != depends  # dropout
        for module in generator.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        alone = generator(x[:1])
        assert torch.allclose(alone, generator(x)[:1], atol=1e-5) != depends
        assert torch.equal(alone, generator.eval()(x[:1]))
        assert torch.equal(alone, generator.train().eval()(x[:1]))
    assert all(torch.equal(before[k], v) for k, v in generator.state_dict().items())


def test_files_that_are_no_checkpoints(run: Config, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_generator(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pt is damaged or no checkpoint"):
        load_generator(tmp_path / "text.pt")
    whole = Path("checkpoints/a/generator.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"half\.pt is damaged"):
        load_generator(tmp_path / "half.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="does not hold a generator"):
        load_checkpoint(tmp_path / "other.pt")


def test_damage_anywhere_is_recognised(tmp_path: Path):
    path = tmp_path / "small.pt"
    torch.save({"generator": {"w": torch.arange(4.0)}, "config": {"ngf": 4}}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert load_checkpoint(path)["generator"]["w"].tolist() == [0, 1, 2, 3]
        except CheckpointError as error:
            assert "small.pt" in str(error)


def test_a_hostile_file_does_nothing(tmp_path: Path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"generator": Hostile(), "config": {}}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "hostile.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "bare.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_strangers_file_decides_nothing_about_this_machine(run: Config, tmp_path: Path):
    content = torch.load("checkpoints/a/generator.pt", weights_only=True)
    content["config"] |= {"cache_dir": str(tmp_path / "theirs"), "max_pixels": 10**12}
    torch.save(content, "theirs.pt")
    config = load_generator("theirs.pt").config
    assert (config.cache_dir, config.max_pixels) == ("data/.cache", None)
    score_checkpoints((Path("theirs.pt"),), device="cpu")
    assert not (tmp_path / "theirs").exists()


def test_settings_of_another_version_are_named(run: Config, tmp_path: Path):
    content = torch.load("checkpoints/a/generator.pt", weights_only=True)
    content["config"]["flux"] = 3
    torch.save(content, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"another version.*flux"):
        load_generator(tmp_path / "new.pt")
