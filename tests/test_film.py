"""A film goes in, one of its size, times and sound comes out."""

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_translate import made, run

import pictures.film
import translate
from pictures.film import FilmError, FilmWriter, Frame, opened_film, written_film
from pictures.sides import Side, Sides
from translate import Options, translate_film
from utils import Translator, load_generator

RATE = 48_000  # samples of sound a second


def picture(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A soft picture, which compression leaves nearly as it is; bright at the top left."""
    y, x = np.mgrid[1 : 0 : size[1] * 1j, 1 : 0 : size[0] * 1j]
    shade = 80 + 40 * np.sin(number / 5)
    return Image.fromarray(np.stack([200 * x * y, 180 * y, shade + 0 * x], 2).astype(np.uint8))


def film(
    path: str,
    pts: Sequence[int],
    time_base: Fraction = Fraction(1, 1000),
    *,
    size: tuple[int, int] = (32, 32),
    codec: str = "libx264",
    sound: str = "",
    turned: int = 0,
    aspect: Fraction = Fraction(1),
    curve: int = 1,
) -> Path:
    """Write a film by PyAV alone, ``turned`` counterclockwise in degrees when it is shown."""
    with av.open(path, "w") as container:
        fast = {"libx264": {"preset": "ultrafast"}, "libvpx-vp9": {"cpu-used": "8"}}
        stream = container.add_stream(codec, rate=25, options=fast[codec])
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 and codec == "libx264" else "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.colorspace = 1
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.color_trc = curve
        stream.set_display_rotation(turned)
        voice = container.add_stream(sound, rate=RATE) if sound else None
        for number, time in enumerate(pts):
            frame = av.VideoFrame.from_image(picture(number, size))
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace="ITU709")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, int(pts[-1] * time_base * RATE), 1024) if voice else ():
            wave = np.sin(np.arange(start, start + 1024) / 20) * 8000
            heard = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE, start, Fraction(1, RATE)
            container.mux(voice.encode(heard))
        if voice:
            container.mux(voice.encode(None))
    return Path(path)


def frames_of(path: Path | str) -> tuple[list[Fraction], np.ndarray]:
    """Return the times in seconds and the pictures (N, H, W, 3) that any player would show."""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
        times = [frame.pts * frame.time_base for frame in found]
        return times, np.stack([frame.to_ndarray(format="rgb24") for frame in found])


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return [(p.pts * p.time_base, bytes(p)) for p in packets if p.dts is not None]


def nearly(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 3


def negatives(numbers: Iterable[int], size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.stack([255 - np.asarray(picture(number, size)) for number in numbers])


@pytest.fixture
def negative(monkeypatch: pytest.MonkeyPatch) -> Translator:
    """A generator of soft outputs, which compression leaves nearly as they are."""
    monkeypatch.setattr(Translator, "forward", lambda self, x: -x)
    return load_generator(made())


# --- Frames, times, sound ---
def test_a_film_keeps_its_frames_times_and_sound(
    negative: Translator, capsys: pytest.CaptureFixture[str]
):
    source = film("film.mp4", [512 * n for n in range(100)], Fraction(1, 12800), sound="aac")
    assert run("generator.pt", source, "new/out.mp4") == 0
    assert "100 frames translated to new/out.mp4\n" in capsys.readouterr().out
    times, pixels = frames_of("new/out.mp4")
    assert times == frames_of(source)[0] == [Fraction(n, 25) for n in range(100)]
    assert nearly(pixels, negatives(range(100)))
    assert sound_of(Path("new/out.mp4")) == sound_of(source)
    assert len(sound_of(source)) > 180
    with av.open("new/out.mp4") as container:
        assert container.streams.video[0].average_rate == 25
        assert container.duration == 4_000_000
    assert [path.name for path in Path("new").iterdir()] == ["out.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent there")
def test_a_film_that_is_stopped_plays_up_to_there():
    source = film("film.mp4", [40 * n for n in range(100)], sound="aac")
    # A signal from outside would come at some frame or other.
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import translate, utils
add = translate.FilmWriter.add
def stopping(writer, *of_frame):
    add(writer, *of_frame)
    if writer.n_frames == 40:
        os.kill(os.getpid(), signal.SIGTERM)
translate.FilmWriter.add = stopping
utils.Translator.forward = lambda self, x: -x
translate.run_script(translate.main)
"""
    command = [sys.executable, "-c", code, made(), source, "out.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + 15, done.stderr
    assert "Stopped; out.mp4 holds the first 40 frames" in done.stderr
    assert "Traceback" not in done.stderr
    times, pixels = frames_of("out.mp4")
    assert times == [Fraction(n, 25) for n in range(40)]
    assert nearly(pixels, negatives(range(40)))
    assert 0 < len(sound_of(Path("out.mp4"))) < len(sound_of(source))
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_rates_that_vary_and_odd_sizes(negative: Translator, suffix: str):
    milliseconds = [0, 40, 50, 200, 1000, 1001]
    source = film("film.mkv", milliseconds, size=(47, 33))
    output = Path(f"out{suffix}")
    translate_film(negative, source, output)
    times, pixels = frames_of(output)
    assert times == [Fraction(time, 1000) for time in milliseconds]
    assert nearly(pixels, negatives(range(6), (47, 33)))


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_films_held_sideways_are_seen_upright(turned: int):
    source = film("film.mp4", [0, 40, 80], size=(48, 32), turned=turned)
    upright = np.rot90(np.asarray(picture(0, (48, 32))), turned // 90)
    with opened_film(source) as opened, written_film(Path("out.mp4"), opened) as writer:
        for frame in opened.frames(writer.pass_on):
            writer.add(frame.picture, frame)
        assert opened.size == upright.shape[1::-1]
    shown = frames_of("out.mp4")[1]
    assert len(shown) == 3
    assert nearly(shown[0], upright)


@pytest.mark.parametrize(("turned", "aspect"), [(0, Fraction(3, 4)), (90, Fraction(4, 3))])
def test_the_shape_of_pixels_is_kept(negative: Translator, turned: int, aspect: Fraction):
    source = film("film.mp4", [0], size=(48, 32), turned=turned, aspect=Fraction(3, 4))
    translate_film(negative, source, Path("out.mp4"))
    with av.open("out.mp4") as container:
        assert container.streams.video[0].sample_aspect_ratio == aspect


def test_sound_that_the_container_cannot_hold(
    negative: Translator, capsys: pytest.CaptureFixture[str]
):
    source = film("film.mp4", [40 * n for n in range(26)], sound="aac")
    translate_film(negative, source, Path("out.webm"))
    assert "its sound (aac) was compressed anew, as .webm needs it" in capsys.readouterr().out
    with av.open("out.webm") as container:
        assert container.streams.audio[0].codec_context.name == "opus"
        assert abs(container.duration - 1_040_000) < 50_000
    translate_film(negative, Path("out.webm"), Path("out.mov"))
    with av.open("out.mov") as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    translate_film(negative, source, Path("out.gif"))
    assert "its sound (aac) was left out" in capsys.readouterr().out


# --- Animations ---
@pytest.mark.parametrize("source", ["a.gif", "a.webp"])
@pytest.mark.parametrize("output", ["out.gif", "out.webp", "out.mp4"])
def test_animations(negative: Translator, source: str, output: str):
    durations = [40, 100, 40, 200, 70]
    first, *others = (picture(9 * number) for number in range(5))
    first.save(source, save_all=True, append_images=others, duration=durations, lossless=True)
    translate_film(negative, Path(source), Path(output))
    starts = [0, 40, 140, 180, 380]
    if output.endswith(".mp4"):
        times, pixels = frames_of(output)
        assert times == [Fraction(start, 1000) for start in starts]
    else:
        with Image.open(output) as image:
            shown, found = [], []
            for number in range(image.n_frames):
                image.seek(number)
                shown.append(np.asarray(image.convert("RGB")))
                found.append(image.info["duration"])
        assert found[:4] == durations[:4]
        assert found[4] == {"out.gif": 70, "out.webp": 95}[output]  # the others' mean
        pixels = np.stack(shown)
    assert np.abs(pixels - negatives(range(0, 45, 9)).astype(int)).mean() < 6  # 256 colours


def test_a_clear_animation_is_drawn_over_white():
    clear = [Image.new("RGBA", (32, 32), (200, 0, 0, alpha)) for alpha in (0, 255)]
    clear[0].save("a.webp", save_all=True, append_images=clear[1:], duration=50, lossless=True)
    seen = translated("a.webp", made())
    generator = load_generator("generator.pt")
    white = translate.translate(generator, Image.new("RGB", (32, 32), "white"))
    assert np.array_equal(seen[0], np.asarray(white))
    assert not np.array_equal(seen[0], seen[1])


# --- Stillness ---
def translated(source: str, checkpoint: Path) -> list[np.ndarray]:
    """Return what the frames of a film become, before they are compressed."""
    seen: list[np.ndarray] = []

    def noting(self: FilmWriter, output: Image.Image, frame: Frame) -> None:
        seen.append(np.asarray(output))
        add(self, output, frame)

    add = FilmWriter.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilmWriter, "add", noting)
        translate_film(load_generator(checkpoint), Path(source), Path("out.mp4"))
    return seen


@pytest.mark.parametrize(
    "settings", [{"dropout": "always"}, {"norm": "batch"}, {"norm": "instance"}]
)
def test_what_stands_still_does_so_in_the_output(settings: dict):
    """Wherever in a batch a frame is, its output is that of the picture alone."""
    shown = [picture(number) for number in (0, 7, 0, 3, 9, 0)]
    shown[0].save("a.webp", save_all=True, append_images=shown[1:], duration=50, lossless=True)
    seen = translated("a.webp", made(**settings))
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])
    generator = load_generator("generator.pt")
    for one, output in zip(shown, seen, strict=True):
        assert np.array_equal(output, np.asarray(translate.translate(generator, one)))


def test_classes_are_shown_by_their_colours():
    sides = Sides(Side(), Side(palette={"class 1": (128, 0, 0)}, index="L"))
    film("film.mp4", [0, 40])
    (first, _) = translated("film.mp4", made(sides=sides, labels="target"))
    assert (first == 1).all()
    assert nearly(frames_of("out.mp4")[1][0], np.full((32, 32, 3), (128, 0, 0)))


# --- What goes wrong ---
def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]):
    source = film("film.mp4", [0, 40])
    whole = source.read_bytes()
    generator = load_generator(made())
    Path("link.mp4").symlink_to("film.mp4")
    for output in ("film.mp4", "link.mp4", "./film.mp4"):
        with pytest.raises(OSError, match="exists, and films are not written over; remove it"):
            translate_film(generator, source, Path(output))
    assert source.read_bytes() == whole
    assert run("generator.pt", source, "link.mp4", "--skip-existing") == 0
    assert "link.mp4 exists; film.mp4 is left out" in capsys.readouterr().out


def test_what_was_done_before_a_fault_is_kept(
    negative: Translator, monkeypatch: pytest.MonkeyPatch
):
    source, shown, seen = film("film.mp4", [40 * n for n in range(9)]), pictures.film._shown, []

    def failing(frame: av.VideoFrame) -> Image.Image:
        seen.append(frame)
        if len(seen) == 6:  # the first tells how the film is turned
            raise av.InvalidDataError(1, "damaged")
        return shown(frame)

    monkeypatch.setattr(pictures.film, "_shown", failing)
    with pytest.raises(
        ValueError, match=r"film.mp4 cannot .* \(damaged\).*\nout.mp4 holds the first 4 fr"
    ):
        translate_film(negative, source, Path("out.mp4"))
    assert nearly(frames_of("out.mp4")[1], negatives(range(4)))


def test_a_film_that_was_cut_short(capsys: pytest.CaptureFixture[str]):
    source = film("film.mkv", [40 * n for n in range(60)], sound="aac")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    try:
        translate_film(load_generator(made()), source, Path("out.mp4"))
    except ValueError as error:
        said = str(error)
    else:
        said = capsys.readouterr().out
    assert re.search(
        r"film.mkv (seems to be of 6\d frames; is the file whole|cannot be read)", said
    )
    assert 10 < len(frames_of("out.mp4")[0]) < 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("film.mp4", b"no film at all" * 99, r"film.mp4 cannot be read as a film \(Invalid data"),
        ("film.mp4", b"", r"film.mp4 cannot be read as a film"),
        ("film.webp", b"RIFF\0\0\0\0WEBPVP8 " + bytes(99), "film.webp cannot be read as a film"),
        ("film.mp4", None, "film.mp4 is no file; expected a film"),
    ],
)
def test_what_is_no_film(name: str, content: bytes | None, message: str):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises((FilmError, OSError), match=message):
        translate_film(load_generator(made()), Path(name), Path("out.mp4"))
    assert not Path("out.mp4").exists()


def test_sound_alone_is_no_film():
    with av.open("sound.mp4", "w") as container:
        voice = container.add_stream("aac", rate=RATE)
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        heard.sample_rate = RATE
        container.mux([*voice.encode(heard), *voice.encode(None)])
    with pytest.raises(FilmError, match=r"sound\.mp4 holds no moving pictures"):
        translate_film(load_generator(made()), Path("sound.mp4"), Path("out.mp4"))


def test_colours_that_8_bits_do_not_hold_are_told(
    negative: Translator, capsys: pytest.CaptureFixture[str]
):
    translate_film(negative, film("film.mp4", [0], curve=16), Path("out.mp4"))
    assert "film.mp4 is an HDR film (PQ), whose colours look pale" in capsys.readouterr().out


def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch):
    source = film("film.mp4", [0])
    generator = load_generator(made())
    for output in ("out.avi", "out", "out.png"):
        with pytest.raises(ValueError, match=rf"{output} cannot hold a film; end it in .mp4, .mkv"):
            translate_film(generator, source, Path(output))
    with pytest.raises(ValueError, match="drawn over white; leave out --alpha keep"):
        translate_film(generator, source, Path("out.mp4"), Options(alpha="keep"))
    for more in (["--samples", "2"], ["--suffix", ".png"]):
        with pytest.raises(ValueError, match="A film has one output"):
            run("generator.pt", source, "out.mp4", *more)
    heights = made("heights.pt", Sides(Side(), Side(1, "float32", 0.0, 9.0)))
    with pytest.raises(
        ValueError, match="8 bits of grey or colour, but the outputs are 1 channel of f"
    ):
        run(heights, source, "out.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(pictures.film, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-film\.txt"):
        run("generator.pt", source, "out.mp4")
    assert not list(Path().glob("out*"))
