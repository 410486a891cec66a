"""Films and animations: pictures in and out one by one, each with its time, and sound beside them.

PyAV reads and writes them. It is imported where it is needed, see requirements-film.txt.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from machine.disk import reason_of, whole_file

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

PassOn = Callable[["Packet"], None]
NAMED = {"audio": "sound", "subtitle": "subtitles"}  # what goes along with the pictures
# Numbers of H.273: the colours that are written, those that a film does not name, and the curves
# of brightness that 8 bits do not show.
BT709, UNNAMED, HDR = 1, 2, {16: "PQ", 18: "HLG"}
SD_HEIGHT = 576  # pixels; up to that height colours that are not named are taken for BT.601
SOUND_RATE = 48_000  # samples a second, which Opus and AAC both take
ONLY_IN_MP4 = {"flac", "opus"}  # and not in MOV, whatever FFmpeg answers when it is asked


class Form(NamedTuple):
    """A kind of file: its container, and how pictures and sound are compressed for it."""

    container: str
    encoder: str
    options: dict[str, str]
    pixels: str
    sound: str = ""
    """For sound that the container cannot hold as it is; "": it holds none."""


H264 = ("libx264", {"crf": "18"}, "yuv420p", "aac")  # at which few see a difference
VP9 = ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4"}, "yuv420p", "libopus")
FORMS = {
    ".mp4": Form("mp4", *H264),
    ".mkv": Form("matroska", *H264),
    ".mov": Form("mov", *H264),
    ".webm": Form("webm", *VP9),
    ".gif": Form("gif", "gif", {}, "pal8"),
    ".webp": Form("webp", "libwebp_anim", {"quality": "90"}, "bgra"),
}


class FilmError(ValueError):
    """A film cannot be read or written; the message names it."""


class Frame(NamedTuple):
    """One picture of a film."""

    picture: Image.Image
    """As it is shown, of the film's ``size``: upright, RGB or RGBA of 8 bits."""
    pts: int
    """When it is shown, in the film's ``time_base``; later than the frame before."""
    duration: int
    """For how long, likewise; 0: not known."""


@dataclass(frozen=True)
class Film:
    """A film that is open for reading."""

    size: tuple[int, int]
    """Width and height as it is shown, in pixels."""
    time_base: Fraction
    """In seconds."""
    rate: Fraction
    """Frames a second, in the mean."""
    n_frames: int | None
    """How many there seem to be, where the file says anything of that."""
    frames: Callable[[PassOn], Iterator[Frame]]
    """Yields the frames in order, and hands over the packets of ``others`` on the way.

    Raises FilmError where the film is damaged.
    """
    aspect: Fraction | None = None
    """Width of a pixel by its height, where the file says it."""
    others: "tuple[Stream, ...]" = ()
    """Its sound and its subtitles."""
    hdr: str = ""
    """The curve of its brightness, where that is none of 8 bits."""


def is_film(path: Path) -> bool:
    """Say whether a name is that of a film or an animation."""
    return path.suffix.lower() in FORMS


# --- Reading ---
@contextmanager
def opened_film(path: Path) -> Iterator[Film]:
    """Open a film of any container that PyAV reads, or an animated WebP.

    Raises:
        FilmError: It is none, or damaged; or PyAV is not installed.
        OSError: The file cannot be read.
    """
    if find_spec("av") is None:
        raise FilmError("Films need PyAV; pip install -r requirements-film.txt")
    with open(path, "rb") as file:
        start = file.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":  # FFmpeg reads those that stand still alone
        with _explaining(path):
            image = Image.open(path)
        with image:
            yield _film_of_webp(path, image)
        return
    with _opened(path) as container:
        video = container.streams.best("video")
        if video is None:
            raise FilmError(f"{path} holds no moving pictures, only sound or data.")
        yield _film_of(path, container, video)


@contextmanager
def _opened(path: Path) -> "Iterator[InputContainer]":
    import av

    with _explaining(path):
        # A film may be a list of addresses; none is asked.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    with container:
        yield container


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what damaged films make the libraries raise into one error that names the file.

    Raises:
        FilmError: The block raised.
    """
    try:
        yield
    except (ValueError, OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise FilmError(
            f"{path} cannot be read as a film ({_reason(error)}); expected a whole film or "
            f"animation, such as {', '.join(FORMS)}."
        ) from error


def _reason(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError) else getattr(error, "strerror", error)


def _film_of(path: Path, container: "InputContainer", video: "VideoStream") -> Film:
    video.thread_type = "AUTO"
    first = _first_frame(path)
    rate = video.average_rate or Fraction(25)
    seconds = (container.duration or 0) / 1_000_000
    aspect = video.sample_aspect_ratio or None
    others = tuple(s for s in container.streams if s.type in NAMED and s.codec_context)
    size = _shown(first).size
    return Film(
        size=size,
        time_base=video.time_base,
        rate=rate,
        n_frames=video.frames or round(seconds * rate) or None,
        frames=lambda pass_on: _frames(path, container, (video, *others), size, pass_on),
        aspect=1 / aspect if aspect and _is_on_its_side(_matrix(first)) else aspect,
        others=others,
        hdr=HDR.get(first.color_trc, ""),
    )


def _first_frame(path: Path) -> "VideoFrame":
    """Return the frame that says how a film is turned, without moving a film that is open."""
    with _opened(path) as container:
        frames = container.decode(container.streams.best("video"))
        with _explaining(path):
            first = next(frames, None)
    if first is None:
        raise FilmError(f"{path} holds no picture; is the file whole?")
    return first


def _frames(
    path: Path,
    container: "InputContainer",
    streams: "tuple[Stream, ...]",
    size: tuple[int, int],
    pass_on: PassOn,
) -> Iterator[Frame]:
    video, last = streams[0], None
    step = max(1, round(1 / (video.time_base * (video.average_rate or 25))))
    packets = container.demux(*streams)
    while True:
        with _explaining(path):  # and not what is wrong with the output, in pass_on or at the yield
            packet = next(packets, None)
            is_picture = packet is not None and packet.stream == video
            found = packet.decode() if is_picture else []
        if packet is None:
            return
        if not is_picture:
            pass_on(packet)
        for frame in found:
            pts = frame.pts
            if pts is None:  # raw streams know no times
                pts = 0 if last is None else last + step
            elif last is not None:  # cut films may go back in time, which none may be written with
                pts = max(pts, last + 1)
            last = pts
            with _explaining(path):
                picture = _shown(frame)
            # Some films change their size, as those of calls do.
            yield Frame(picture.resize(size), pts, frame.duration or 0)


def _matrix(frame: "VideoFrame") -> np.ndarray:
    """Return by what (x, y), a row, is multiplied when it is shown: (2, 2), turns and mirrors."""
    found = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    whole = np.frombuffer(bytes(found[0]), np.int32) if found else np.eye(3, dtype=np.int32)
    return whole.reshape(3, 3)[:2, :2]


def _is_on_its_side(matrix: np.ndarray) -> bool:
    return bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def _shown(frame: "VideoFrame") -> Image.Image:
    """Return a frame as players show it, upright, as phones store how they were held."""
    is_clear = any(component.is_alpha for component in frame.format.components)
    usual = "ITU709" if frame.height > SD_HEIGHT else "ITU601"
    guess = {"src_colorspace": usual} if frame.colorspace == UNNAMED else {}
    pixels = frame.to_ndarray(format="rgba" if is_clear else "rgb24", **guess)
    matrix = _matrix(frame)
    if _is_on_its_side(matrix):
        pixels, matrix = pixels.transpose(1, 0, 2), matrix[::-1]
    pixels = pixels[:, ::-1] if matrix[0, 0] < 0 else pixels
    pixels = pixels[::-1] if matrix[1, 1] < 0 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def _film_of_webp(path: Path, image: Image.Image) -> Film:
    count, times = getattr(image, "n_frames", 1), Fraction(1, 1000)

    def frames(pass_on: PassOn) -> Iterator[Frame]:
        now = 0
        for number in range(count):
            with _explaining(path):
                image.seek(number)
                picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
            duration = max(1, image.info.get("duration", 0))
            yield Frame(picture, now, duration)
            now += duration

    return Film(image.size, times, Fraction(25), count, frames)


# --- Writing ---
@contextmanager
def written_film(path: Path, film: Film) -> "Iterator[FilmWriter]":
    """Give what writes a film with the size, the times and the sound of another.

    The file has its name once the block has ended well, and until then there is none.

    Args:
        path: Its suffix, one of FORMS, says what is written.
        film: The other film.

    Raises:
        FilmError: It cannot be written.
        OSError: The folder cannot be written to.
    """
    import av

    form = FORMS[path.suffix.lower()]
    with (
        whole_file(path) as draft,
        _explaining_output(path),
        av.open(f"file:{draft}", "w", format=form.container) as container,
    ):
        writer = FilmWriter(path, container, form, film)
        yield writer
        writer.finish()


@contextmanager
def _explaining_output(path: Path) -> Iterator[None]:
    from av import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise FilmError(f"{path} cannot be written: {_reason(error)}.") from error


class FilmWriter:
    """A film that is being written.

    Args:
        path: What errors call it.
        container: PyAV's, open and still empty.
        form: How pictures and sound are compressed.
        film: The film whose size, times and sound it gets.
    """

    def __init__(self, path: Path, container: "OutputContainer", form: Form, film: Film) -> None:
        self.path, self.container, self.form, self.film = path, container, form, film
        self.n_frames = 0
        self.durations: dict[int, int] = {}  # by pts, of what the encoder still holds
        self.stream = self._new_stream()
        self.copied, self.anew = {}, {}
        self.remarks: list[str] = []
        """What of the film's sound and subtitles is changed or left out, in words."""
        for stream in film.others:
            self._add_other(stream)

    def _new_stream(self) -> "VideoStream":
        form, film = self.form, self.film
        stream = self.container.add_stream(form.encoder, rate=film.rate, options=form.options)
        stream.width, stream.height = film.size
        # H.264 cannot halve the colours of an odd side.
        is_odd = form.encoder == "libx264" and any(side % 2 for side in film.size)
        stream.pix_fmt = "yuv444p" if is_odd else form.pixels
        context = stream.codec_context
        context.time_base = film.time_base
        if film.aspect:
            context.sample_aspect_ratio = film.aspect
        if form.pixels.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream

    def _add_other(self, stream: "Stream") -> None:
        codec = stream.codec_context.codec.canonical_name
        name = f"{NAMED[stream.type]} ({codec})"
        lacking = ONLY_IN_MP4 if self.form.container == "mov" else set()
        if codec in self.container.supported_codecs - lacking:
            self.copied[stream] = self.container.add_stream_from_template(stream)
        elif stream.type == "audio" and self.form.sound:
            self.anew[stream] = self.container.add_stream(self.form.sound, rate=SOUND_RATE)
            self.remarks.append(f"its {name} was compressed anew, as {self.path.suffix} needs it")
        else:
            self.remarks.append(f"its {name} was left out, which {self.path.suffix} cannot hold")

    def add(self, picture: Image.Image, frame: Frame) -> None:
        """Write a picture in the place of a frame of the film.

        Raises:
            FilmError: It cannot be compressed or written.
        """
        video = self._compressible(picture.convert("RGB"))
        video.pts, video.duration = frame.pts, frame.duration
        video.time_base = self.film.time_base
        self.durations[frame.pts] = frame.duration
        with _explaining_output(self.path):
            self._write(self.stream.encode(video))
        self.n_frames += 1

    def _write(self, packets: "list[Packet]") -> None:
        for packet in packets:
            # Else the last picture would be shown for no time.
            packet.duration = self.durations.pop(packet.pts, 0) or packet.duration
        self.container.mux(packets)

    def _compressible(self, picture: Image.Image) -> "VideoFrame":
        from av import VideoFrame

        if self.stream.pix_fmt != "pal8":
            frame = VideoFrame.from_image(picture)
            return frame.reformat(format=self.stream.pix_fmt, dst_colorspace="ITU709")
        # Each frame has the palette that suits it, and no dots, which would flicker.
        numbered = picture.quantize(256, dither=Image.Dither.NONE)
        colours = np.array(numbered.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette = np.full((256, 4), 255, np.uint8)  # opacity, red, green, blue
        palette[: len(colours), 1:] = colours
        return VideoFrame.from_ndarray((np.asarray(numbered), palette), format="pal8")

    def pass_on(self, packet: "Packet") -> None:
        """Write a packet of the film's sound or subtitles, as it is where that can be.

        Raises:
            FilmError: It cannot be written.
        """
        with _explaining_output(self.path):
            if packet.stream in self.copied:
                if packet.dts is not None:  # what ends a stream
                    packet.stream = self.copied[packet.stream]
                    self.container.mux(packet)
            elif packet.stream in self.anew:
                for frame in packet.decode():
                    self.container.mux(self.anew[packet.stream].encode(frame))

    def finish(self) -> None:
        """Write what the encoders still hold."""
        self._write(self.stream.encode(None))
        for stream in self.anew.values():
            self.container.mux(stream.encode(None))
