"""Any picture goes in, one of its size comes out, the same bits from script and notebook."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, script
from PIL import ExifTags, Image
from torch import nn

from config import Config
from pictures.jobs import Job, find_jobs
from pictures.palettes import painted
from pictures.sides import Side, Sides
from recipes import known_sides, resolve
from run.checkpoints import save_file
from translate import Options, main, translate, translate_files, translate_jobs
from utils import CheckpointError, Facts, Translator, build_generator, load_generator

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)


def made(path: str = "generator.pt", sides: Sides | None = None, **settings: object) -> Path:
    """Save a generator with random weights, large enough to be seen in 8 bits."""
    config, _ = resolve(Config(**TINY | {"recipe": "paper"} | settings))
    torch.manual_seed(0)
    sides = sides or known_sides(config)
    generator = build_generator(config, sides)
    with torch.no_grad():
        generator.decoder[-1][1].weight *= 50
    facts = Facts(config, sides, picture_size=(64, 64)).as_saved()
    save_file({"generator": generator.state_dict()} | facts, Path(path))
    return Path(path)


def learn(translator: Translator, **facts: object) -> None:
    translator.facts = replace(translator.facts, **facts)


def seen(generator: Translator) -> list[tuple[int, ...]]:
    """Return a list that each call of the generator adds the shape of its input to."""
    shapes: list[tuple[int, ...]] = []
    generator.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    return shapes


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def by_hand(generator: Translator, picture: np.ndarray) -> np.ndarray:
    """Translate (H, W, C) uint8, sides multiples of 32, as the paper's equations say."""
    x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
    return (generator(x)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5).round().astype(np.uint8)


# --- One picture ---
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_output_is_that_of_the_generator(precision: str):
    generator = load_generator(made(precision=precision))
    output = pixels(translate(generator, Image.fromarray(NOISE), scale="own"))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert np.array_equal(output, by_hand(generator, NOISE))
    assert output.std() > 10
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    differs = translate(generator, Image.fromarray(NOISE), scale="own", precision=other)
    assert not np.array_equal(output, pixels(differs))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 31), (100, 3)])
def test_any_size_is_padded_by_its_reflection(size: tuple[int, int]):
    generator = load_generator(made())
    picture = NOISE.repeat(2, axis=0)[: size[0], : size[1]]
    rows, columns = (-size[0] % 32, -size[1] % 32)
    around = [(rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)]
    expected = by_hand(generator, np.pad(picture, around, mode="reflect"))
    expected = expected[rows // 2 :, columns // 2 :][: size[0], : size[1]]
    output = translate(generator, Image.fromarray(picture), scale="own")
    assert np.array_equal(pixels(output), expected)


def test_padding_goes_to_what_the_network_takes_not_to_crop_size():
    generator = load_generator(made(recipe="modern", bottleneck=4))
    assert generator.multiple == 8
    shapes = seen(generator)
    translate(generator, Image.fromarray(NOISE[:33, :47]), scale="own")
    assert shapes == [(1, 3, 40, 48)]


def test_an_output_that_is_not_finite_is_refused():
    generator = load_generator(made())
    generator.generator.decoder[-1][1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        translate(generator, Image.fromarray(NOISE))
    content = torch.load(made(), weights_only=True)
    content["generator"]["decoder.4.1.bias"].fill_(float("inf"))
    torch.save(content, "broken.pt")
    with pytest.raises(CheckpointError, match=r"broken\.pt.*decoder\.4\.1\.bias holds .* NaN"):
        load_generator("broken.pt")


@pytest.mark.parametrize(
    ("scale", "settings", "shape"),
    [
        ("own", {}, (128, 192)),
        ("crop", {}, (32, 32)),
        # 36 / 64 of 128 and of 180, up to the next multiple of 32.
        (None, {}, (96, 128)),
    ],
)
def test_scales(scale: str | None, settings: dict, shape: tuple[int, int]):
    generator = load_generator(made(**settings))
    shapes = seen(generator)
    output = translate(generator, Image.new("RGB", (180, 128)), scale=scale)
    assert shapes == [(1, 3, *shape)]
    assert output.size == (180, 128)


@pytest.mark.parametrize(("keep_aspect", "shape"), [(True, (96, 96)), (False, (64, 96))])
def test_training_pictures_that_were_not_square(keep_aspect: bool, shape: tuple[int, int]):
    generator = load_generator(made(keep_aspect=keep_aspect))
    learn(generator, picture_size=(72, 36))
    shapes = seen(generator)
    translate(generator, Image.new("RGB", (96, 96)))
    # Squeezed by 36 / 72 and 36 / 36, or both by 36 / 36.
    assert shapes == [(1, 3, *shape)]


def test_what_the_checkpoint_does_not_say_is_asked_for():
    generator = load_generator(made())
    learn(generator, picture_size=None)
    shapes = seen(generator)
    translate(generator, Image.new("RGB", (64, 64)))
    assert shapes == [(1, 3, 64, 64)]
    with pytest.raises(ValueError, match=r'does not say.*set scale to "own"'):
        translate(generator, Image.new("RGB", (64, 64)), scale="trained")


def test_exif_and_alpha():
    generator = load_generator(made())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(NOISE).save("turned.png", exif=exif)
    turned = translate(generator, Image.open("turned.png"), scale="own")
    upright = Image.fromarray(np.rot90(NOISE, -1))
    assert np.array_equal(pixels(turned), pixels(translate(generator, upright, scale="own")))

    alpha = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96, 1)
    clear = Image.fromarray(np.concatenate([NOISE, alpha], axis=2))
    output = translate(generator, clear, alpha="keep")
    assert output.mode == "RGBA"
    assert np.array_equal(pixels(output)[..., 3:], alpha)
    assert np.array_equal(pixels(output)[..., :3], pixels(translate(generator, clear)))


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (Side(2), (64, 96, 2)),
        (Side(1, "float32", 0.0, 9.0), (64, 96)),
        (Side(palette={"class 1": (128, 0, 0)}, index="P"), (64, 96)),
    ],
)
def test_what_cannot_be_transparent_is_told(
    target: Side, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
):
    clear = np.dstack([NOISE, np.full((64, 96), 99, np.uint8)])
    Image.fromarray(clear).save("clear.png")
    generator = made(sides=Sides(Side(), target), labels="target" if target.index else None)
    for alpha in ("white", "keep"):
        translate_files(generator, "clear.png", Path("out.tif"), options=Options(alpha=alpha))
        assert tifffile.imread("out.tif").shape == shape
        assert "1 pictures are partly transparent and were drawn over white\n" in (
            capsys.readouterr().out
        )
    if target.channels == 2:
        with pytest.raises(ValueError, match=r"\.jpg does not hold the outputs, 2 channels"):
            translate_files(generator, "clear.png", Path("out.jpg"))


def test_16_bits_come_out_where_targets_had_them():
    sides = Sides(*[Side(1, "uint16", 0, 65535)] * 2)
    generator = load_generator(made(sides=sides, precision="bf16"))
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    output = translate(generator, Image.fromarray(deep), scale="own")
    assert output.mode == "I;16"
    x = torch.from_numpy(deep.astype(np.float32) / 32767.5 - 1)[None, None]
    expected = generator(x)[0, 0].numpy() * 32767.5 + 32767.5
    assert np.abs(pixels(output) - expected).max() <= 1, "fp32 whatever it was trained in"
    assert len(np.unique(pixels(output))) > 1000
    coarse = translate(generator, Image.fromarray(deep), scale="own", precision="bf16")
    difference = np.abs(pixels(coarse) - expected)
    assert 1 < difference.max() < 3000
    assert len(np.unique(pixels(coarse))) > 1000


def test_outputs_are_what_the_targets_were():
    """Photo in, heights in metres out; classes in by number, grey of 12 bits out; and so on."""
    heights = Sides(Side(), Side(1, "float32", -20.0, 80.0))
    generator = load_generator(made(sides=heights, precision="bf16"))
    output = translate(generator, Image.fromarray(NOISE), scale="own")
    assert (output.dtype, output.shape) == (np.float32, (64, 96, 1))
    x = torch.from_numpy(NOISE.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
    expected = generator(x)[0, 0].numpy() * 50 + 30
    assert np.allclose(output[..., 0], expected, atol=1e-4)

    bands = Sides(Side(5, "int16", -3000, 3000), Side(1, "uint16", 0, 4095))
    generator = load_generator(made(sides=bands))
    output = translate(generator, RNG.integers(-3000, 3000, (64, 96, 5), dtype=np.int16))
    assert output.mode == "I;16"
    assert 0 < pixels(output).max() <= 4095
    with pytest.raises(ValueError, match="pictures have 5 channels of int16, -3000 to 3000"):
        translate(generator, np.zeros((64, 96, 5), np.float32))


def test_8_bits_are_not_taken_for_12():
    generator = load_generator(made(sides=Sides(Side(1, "uint16", 0, 4095), Side())))
    with pytest.raises(ValueError, match="training pictures have 1 channel of uint16, 0 to 4095"):
        translate(generator, Image.new("L", (64, 64)))
    generator = load_generator(made(sides=Sides(Side(1, "uint16", 0, 65535), Side())))
    grey = NOISE[..., 0]
    deep = translate(generator, Image.fromarray(grey.astype(np.uint16) * 257))
    assert np.array_equal(pixels(translate(generator, Image.fromarray(grey))), pixels(deep))


def test_classes_come_out_by_their_numbers():
    palette = {f"class {n}": tuple(painted(np.array([[n]]))[0, 0].tolist()) for n in (3, 7, 200)}
    sides = Sides(Side(), Side(palette=palette, index="P", is_exact=True))
    output = translate(load_generator(made(sides=sides, labels="target")), Image.fromarray(NOISE))
    assert (output.mode, output.size) == ("P", (96, 64))
    assert set(np.unique(pixels(output))) <= {3, 7, 200}
    given = load_generator(made(sides=Sides(sides.target, Side()), labels="input"))
    translate(given, np.full((64, 96), 200))
    with pytest.raises(
        ValueError,
        match=r"100\.0% of its pixels have a colour that is no class .* \(class 3, class 7",
    ):
        translate(given, np.full((64, 96), 4))
    sides = Sides(Side(), replace(sides.target, index="L"))
    output = translate(load_generator(made(sides=sides, labels="target")), Image.fromarray(NOISE))
    assert output.mode == "L"
    assert set(np.unique(pixels(output))) <= {3, 7, 200}


def test_pairs_are_cut_where_the_training_cut_them(capsys: pytest.CaptureFixture[str]):
    generator = load_generator(made(direction="BtoA"))
    learn(generator, side_by_side=True)
    pair = np.concatenate([NOISE[:, :64], NOISE[:, 32:]], axis=1)
    right = translate(generator, Image.fromarray(pair[:, 64:]))
    assert np.array_equal(pixels(translate(generator, Image.fromarray(pair))), pixels(right))
    assert translate(generator, Image.fromarray(pair), whole=True).size == (128, 64)
    Image.fromarray(pair).save("pair.png")
    translate_jobs(generator, find_jobs("pair.png", Path("out.png")), Options())
    assert "1 pictures are pairs" in capsys.readouterr().out
    assert np.array_equal(pixels(Image.open("out.png")), pixels(right))


def test_after_a_training_on_many_sizes_pictures_are_squeezed():
    generator = load_generator(made())
    learn(generator, mixed_sizes=True)
    shapes = seen(generator)
    translate(generator, Image.new("RGB", (180, 128)))
    assert shapes == [(1, 3, 32, 32)]


def test_a_place_on_earth_goes_from_input_to_output():
    place = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
        (34735, 3, 4, (1, 1, 0, 0), True),
    ]
    tifffile.imwrite("photo.tif", NOISE, photometric="rgb", extratags=place)
    sides = Sides(Side(), Side(1, "float32", 0.0, 80.0))
    assert run(made(sides=sides), "photo.tif", "out") == 0
    with tifffile.TiffFile("out/photo.tif") as file:
        tags = file.pages[0].tags
        assert [tags[code].value for code, *_ in place] == [value for *_, value, _ in place]
        assert (file.pages[0].dtype, file.pages[0].shape) == (np.float32, (64, 96))
    with pytest.raises(ValueError, match=r"\.png does not hold .*1 channel of float32; use \.tif"):
        translate_files(made(sides=sides), "photo.tif", Path("out.png"))


# --- Tiles ---
def test_no_seam_between_tiles():
    # Nothing but a norm, which sees another mean in each tile: the worst that tiles can differ.
    generator = load_generator(made())
    learn(generator, picture_size=None)
    generator.forward = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Tanh())
    shapes = seen(generator)
    ramp = np.linspace(40, 200, 512)[None, :, None] + np.linspace(0, 40, 320)[:, None, None]
    smooth = (ramp + RNG.integers(0, 3, (320, 512, 3))).astype(np.uint8)
    output = pixels(translate(generator, Image.fromarray(smooth), scale="own", tile=128))
    assert set(shapes) == {(1, 3, 128, 128)}
    for axis, starts in ((0, (0, 96, 192)), (1, (0, 96, 192, 288, 384))):
        steps = np.abs(np.diff(output.astype(float), axis=axis)).mean(axis=(1 - axis, 2))
        borders = [b - 1 for start in starts for b in (start, start + 128) if 0 < b <= len(steps)]
        inside = np.delete(steps, borders)
        assert steps[borders].max() <= 1.5 * np.percentile(inside, 99)


def test_tiles_that_the_generator_cannot_take():
    with pytest.raises(ValueError, match=r"tile is 100; .*multiples of 32 .* 96 or 128"):
        translate(load_generator(made()), Image.new("RGB", (8, 8)), tile=100)


# --- Noise, batches ---
def test_samples_are_seeded_and_leave_no_trace():
    generator = load_generator(made())
    picture = Image.fromarray(NOISE)
    plain = pixels(translate(generator, picture))
    state = torch.get_rng_state()
    first, second, again = (pixels(translate(generator, picture, seed=s)) for s in (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert np.array_equal(plain, pixels(translate(generator, picture)))
    with pytest.raises(ValueError, match="no dropout"):
        translate(load_generator(made(dropout="none")), picture, seed=0)


@pytest.mark.parametrize("settings", [{}, {"norm": "batch"}, {"dropout": "always"}])
def test_a_list_gives_the_bits_of_single_pictures(settings: dict):
    generator = load_generator(made(**settings))
    pictures = [Image.fromarray(NOISE[:, start : start + 64]) for start in (0, 16, 32)]
    together = translate(generator, pictures)
    for picture, output in zip(pictures, together, strict=True):
        assert np.array_equal(pixels(translate(generator, picture)), pixels(output))


# --- Files ---
def run(*arguments: object) -> int:
    """Run the script in this process, which saves importing torch each time."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["translate.py", *map(str, arguments)])
        main()
    return int(stopped.value.code)


@pytest.fixture
def photos() -> Path:
    folder = Path("photos")
    for number, name in enumerate(("a.JPG", "b.png", "sub/Häuser.tif", "sub/deep/d.webp")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(NOISE).rotate(90 * number, expand=True)
        picture.resize((40 + 9 * number, 64)).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_gives_what_the_notebook_gives(photos: Path):
    result = script("translate.py", made(), photos, "out")
    assert result.returncode == 0, result.stderr
    outputs = {p.relative_to("out").as_posix() for p in Path("out").rglob("*.*")}
    assert outputs == {"a.png", "b.png", "sub/Häuser.png", "sub/deep/d.png"}
    generator = load_generator(made())
    for path in sorted(p for p in photos.rglob("*.*") if p.suffix != ".txt"):
        output = Path("out") / path.relative_to(photos).with_suffix(".png")
        expected = translate(generator, Image.open(path))
        assert np.array_equal(pixels(Image.open(output)), pixels(expected)), path


def test_a_bad_picture_is_named_and_the_rest_goes_on(
    photos: Path, capsys: pytest.CaptureFixture[str]
):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:500])
    (photos / "empty.jpg").touch()
    assert run(made(), photos, "out") == 1
    message = capsys.readouterr().err
    assert "2 could not be translated" in message
    assert "b.png: it cannot be decoded" in message
    assert "empty.jpg: an empty file" in message
    assert len([p for p in Path("out").rglob("*") if p.is_file()]) == 3


def test_existing_outputs_are_skipped(photos: Path, capsys: pytest.CaptureFixture[str]):
    Path("out").mkdir()
    Path("out/a.png").write_text("mine")
    assert run(made(), photos, "out", "--skip-existing") == 0
    assert Path("out/a.png").read_text() == "mine"
    assert "1 of 4 pictures" in capsys.readouterr().out
    assert Path("out/b.png").exists()
    assert run(made(), photos, "out", "--skip-existing") == 0
    assert run(made(), photos, "out") == 0
    assert Image.open("out/a.png").size == (40, 64)


def test_one_picture_is_skipped_too(photos: Path):
    for _ in range(2):
        assert run(made(), photos / "b.png", "o.png", "--skip-existing") == 0
    assert Path("o.png").is_file()
    for _ in range(2):
        assert run(made(), photos / "b.png", "s.png", "--skip-existing", "--samples", "2") == 0
    assert {p.name for p in Path().glob("s*.png")} == {"s_1.png", "s_2.png"}


def test_outputs_below_the_inputs_are_no_inputs(photos: Path):
    for _ in range(2):
        assert run(made(), photos, photos / "out", "--skip-existing") == 0
    assert len([p for p in Path("photos/out").rglob("*") if p.is_file()]) == 4
    with pytest.raises(ValueError, match="would lie among the pictures in photos"):
        find_jobs("photos/a.JPG", photos)
    assert len(find_jobs("photos", Path())) == 4 + 4


def test_an_output_that_cannot_be_written(photos: Path, capsys: pytest.CaptureFixture[str]):
    Path("out/a.png").mkdir(parents=True)
    assert run(made(), photos, "out") == 1
    assert "a.png: it cannot be written (Is a directory)" in capsys.readouterr().err
    assert Path("out/b.png").is_file()
    assert not list(Path("out").glob(".*"))


def test_one_picture_and_its_samples(photos: Path, capsys: pytest.CaptureFixture[str]):
    assert run(made(), photos / "b.png", "one/b.jpg", "--samples", "2") == 0
    assert sorted(p.name for p in Path("one").iterdir()) == ["b_1.jpg", "b_2.jpg"]
    assert capsys.readouterr().out.count("JPEG changes pixels") == 1
    assert run(made(), photos / "b.png", "many", "--samples", "2") == 0
    generator = load_generator(made())
    for seed, name in enumerate(("b_1.png", "b_2.png")):
        expected = translate(generator, Image.open(photos / "b.png"), seed=seed)
        assert np.array_equal(pixels(Image.open(f"many/{name}")), pixels(expected))


def test_jpeg_takes_transparent_and_deep_pictures():
    Image.new("LA", (40, 40)).save("clear.png")
    assert run(made(output_nc=1), "clear.png", "clear.jpg", "--alpha", "keep") == 0
    sides = Sides(Side(), Side(1, "uint16", 0, 65535))
    assert run(made(sides=sides), "clear.png", "deep.jpg") == 0
    assert [Image.open(f"{n}.jpg").mode for n in ("clear", "deep")] == ["L", "L"]


def test_patterns(photos: Path):
    assert find_jobs("photos/sub/**/*.*", Path("out")) == [
        Job(photos / "sub/Häuser.tif", {None: Path("out/Häuser.png")}),
        Job(photos / "sub/deep/d.webp", {None: Path("out/deep/d.png")}),
    ]
    shutil.move(photos / "sub", photos / "[sub]")
    jobs = find_jobs("photos/[sub]", Path("out"), suffix=".tif")
    assert [job.targets[None] for job in jobs] == [Path("out/deep/d.tif"), Path("out/Häuser.tif")]


def test_nothing_is_overwritten(photos: Path):
    shutil.copy(photos / "a.JPG", photos / "b.JPG")
    with pytest.raises(ValueError, match=r"b\.png.*would be that of .*b\.") as caught:
        find_jobs("photos", Path("out"))
    assert "a.JPG" not in str(caught.value)
    Image.new("RGB", (32, 32)).save(photos / "B.tif")
    with pytest.raises(ValueError, match=r"b\.png, from .*b\.png, would be that of .*B\.tif"):
        find_jobs("photos/[Bb].[pt]*", Path("out"))
    with pytest.raises(ValueError, match=r"would overwrite photos.b\.png"):
        find_jobs("photos/*.png", photos)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("photo", "photo does not exist .*did you mean photos"),
        ("photos/*.gif", r"photos/\*\.gif holds no pictures; expected \.png"),
        ("photos/notes.txt", "notes.txt: not a PNG"),
    ],
)
def test_a_wrong_source(
    photos: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
):
    if source.endswith(".txt"):
        assert run(made(), source, "out") == 1
        assert message in capsys.readouterr().err
    else:
        with pytest.raises((ValueError, OSError), match=message):
            find_jobs(source, Path("out"))


def test_settings_and_pictures_that_cannot_be(photos: Path):
    with pytest.raises(ValueError, match="samples is -1"):
        translate_files(made(), "photos", Path("out"), samples=-1)
    with pytest.raises(ValueError, match=r"PIL.Image.open or arrays, not 'photos/a.JPG'"):
        translate(load_generator(made()), "photos/a.JPG")
    with pytest.raises(ValueError, match="it has 1 channel of float32; expected 3 channels of u"):
        translate(load_generator(made()), [Image.new("L", (9, 9)), Image.new("F", (9, 9))])


def test_an_output_of_no_known_format(photos: Path):
    with pytest.raises(ValueError, match=r"b\.bmp cannot be written; end it in \.png"):
        find_jobs("photos/b.png", Path("b.bmp"))
