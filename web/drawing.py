"""The page on which a generator runs in a browser: its files, and the runtime they need."""

import base64
import gzip
import hashlib
import json
import tarfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from machine.disk import make_folder, whole_file
from pictures.download import DownloadError, opened, reason
from pictures.pairs import SQUARE
from pictures.sheet import data_address
from pictures.sides import Sides

PAGE = Path(__file__).with_name("draw")
SCRIPTS = ("page", "paper", "pictures", "camera", "generator", "output", "save", "draw")
FILES = ("index.html", "draw.css", *(f"{name}.js" for name in SCRIPTS))
PIECE = 2**20  # letters of base64 in a file: small enough to show how far the loading is

# onnxruntime-web as npm publishes it: of its builds, the one that knows WebGPU and plain CPUs.
VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PARTS = {
    "library": "ort.webgpu.min.js",
    "module": "ort-wasm-simd-threaded.asyncify.mjs",
    "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
}


class Facts(Protocol):
    """What a page is told of a generator, as ``utils.Facts`` has it."""

    config: Any
    """Its settings: name, crop_size, direction and keep_aspect."""
    sides: Sides
    """What it takes and gives."""
    picture_size: tuple[int, int] | None
    """Height and width of the pictures of the training, where they are known."""
    side_by_side: bool
    """Whether these were halves of side-by-side pictures."""


def fetch_runtime(folder: Path = Path("data")) -> Path:
    """Return the archive of onnxruntime-web, fetched into ``folder`` unless it is there.

    Raises:
        DownloadError: It could not be fetched; the message says how to do it by hand.
        ValueError: What is there is not that archive.
    """
    archive = folder / ADDRESS.rpartition("/")[2]
    if not archive.exists():
        make_folder(folder)
        try:
            with opened(ADDRESS, folder) as file, whole_file(archive) as draft:
                draft.write_bytes(file.read())
        except (OSError, ValueError, HTTPException) as error:
            raise DownloadError(
                f"onnxruntime-web, which runs the page, could not be fetched from {ADDRESS}: "
                f"{reason(error)}. Try again, or save that file as {archive}."
            ) from error
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != SHA512:
        raise ValueError(
            f"{archive} is not the file that npm publishes (its SHA-512 is {found}, expected "
            f"{SHA512}); remove it, to have it fetched again."
        )
    return archive


def write_drawing_page(
    graph: Path,
    facts: Facts,
    starts: Sequence[Image.Image],
    *,
    output: Image.Image | None,
    folder: Path,
    precision: str,
) -> float:
    """Write the page that runs a graph of ``export.py``; its index.html opens from the folder.

    Args:
        graph: ONNX file of a generator, with its weights inside.
        facts: What there is to know of that.
        starts: Inputs to start from, square; label pictures at twice crop_size, to be drawn on.
        output: What the generator makes of the first of them, to be seen while the page loads.
        folder: Where to; files of an earlier page are replaced.
        precision: Of the graph: fp32, fp16 or int8, which not every graphics card has.

    Returns:
        The size of the page in MB, without the runtime.

    Raises:
        ValueError: The generator does not take and give grey or colour pictures.
        OSError: The runtime cannot be fetched, or the folder not be written to.
    """
    config, sides = facts.config, facts.sides
    if not all(side.is_plain and side.channels in (1, 3) for side in sides):
        raise ValueError(
            f"A page shows pictures of 8 bits, grey or in colour, and this generator turns "
            f"{sides.input.describe()} into {sides.target.describe()}; write NAME.onnx instead."
        )
    with tarfile.open(fetch_runtime()) as archive:
        parts = {
            part: archive.extractfile(f"package/dist/{name}").read() for part, name in PARTS.items()
        }
    parts["graph"] = graph.read_bytes()
    packed = {part: _packed(content) for part, content in parts.items()}
    model = {
        "name": config.name,
        "side": config.crop_size,
        "inputs": sides.input.channels,
        "outputs": sides.target.channels,
        "precision": precision,
        "palette": sides.input.palette,
        "pair": _pair(facts),
        "keepAspect": config.keep_aspect,
        "aspect": _aspect(facts),
        "starts": [data_address(picture, "WEBP", lossless=True) for picture in starts],
        "output": output and data_address(output, "WEBP", quality=90),
        "parts": {part: len(pieces) for part, pieces in packed.items()},
        "size": sum(len(piece) for pieces in packed.values() for piece in pieces),
    }
    texts = {name: (PAGE / name).read_text(encoding="utf-8") for name in FILES}
    texts["model.js"] = f"const MODEL = {json.dumps(model)};\n"
    texts |= {
        f"parts/{part}-{number}.js": f'PARTS[{json.dumps(f"{part}-{number}")}] = "{piece}";\n'
        for part, pieces in packed.items()
        for number, piece in enumerate(pieces)
    }
    _replace(folder, texts)
    runtime = tuple(f"parts/{part}-" for part in PARTS)
    return sum(len(text) for name, text in texts.items() if not name.startswith(runtime)) / 1e6


def _replace(folder: Path, texts: dict[str, str]) -> None:
    """Write the files of a page, and remove what an earlier one has in parts beyond them."""
    make_folder(folder / "parts")
    for name, text in texts.items():
        with whole_file(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    for file in folder.glob("parts/*-*.js"):
        if f"parts/{file.name}" not in texts:
            file.unlink()


def _aspect(facts: Facts) -> float:
    """Return the width over the height of what the training squeezed into a square."""
    if facts.picture_size is None or facts.config.keep_aspect:
        return 1
    height, width = facts.picture_size
    return width / height


def _pair(facts: Facts) -> dict[str, float] | None:
    """Return how the page knows pairs of the training by their shape, and which half is theirs."""
    if not facts.side_by_side or facts.picture_size is None:
        return None
    height, width = facts.picture_size
    half = int(facts.config.direction == "BtoA")
    return {"aspect": 2 * width / height, "tolerance": SQUARE, "half": half}


def _packed(content: bytes) -> list[str]:
    text = base64.b64encode(gzip.compress(content)).decode()
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
