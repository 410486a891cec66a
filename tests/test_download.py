import errno
import functools
import gzip
import http.server
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from pictures import download
from pictures.download import KAGGLE, DownloadError, fetch

PAIRS = ("maps/train/1.jpg", "maps/train/2.jpg", "maps/val/1.jpg")
ADVICE = (KAGGLE, "data/maps", "--dataset", "--mirror", "maps.tar.gz")
BYTES = random.Random(0).randbytes(50_000)  # so that a cut falls where it is meant to


def tar_gz(*members: str | tarfile.TarInfo, content: bytes = BYTES, blocks: int = 20) -> bytes:
    """An archive of plain files, or of members as given; ``blocks`` 0 leaves out the end mark."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
        end = tar.offset
    return gzip.compress(packed.getvalue()[:end] + bytes(blocks * 512), mtime=0)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def claiming(kind: bytes = tarfile.REGTYPE, **fields: int) -> bytes:
    """An archive whose second member claims a size or a time."""
    info = member("maps/2.jpg", kind)
    for name, value in fields.items():
        setattr(info, name, value)
    first = gzip.decompress(tar_gz("maps/1.jpg", blocks=0))
    return gzip.compress(first + info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), mtime=0)


class Server(http.server.ThreadingHTTPServer):
    """Answers /base/maps.tar.gz with ``body``; ``during`` runs halfway through it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.body = tar_gz(*PAIRS)
        self.length: int | None = -1
        """-1 for the true one, None to leave it out."""
        self.during: Callable[[], object] = lambda: None
        self.asked: list[str] = []

    @property
    def mirror(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/base"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        if self.path != "/base/maps.tar.gz":
            self.send_error(404)
            return
        self.send_response(200)
        if server.length is not None:
            n_bytes = len(server.body) if server.length < 0 else server.length
            self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
        half = len(server.body) // 2
        self.wfile.write(server.body[:half])
        server.during()
        self.wfile.write(server.body[half:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.handle_error = lambda *arguments: None  # a client that hangs up is meant to
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


def unpacked() -> list[str]:
    return sorted(p.relative_to("data/maps").as_posix() for p in Path("data/maps").rglob("*.jpg"))


def refused(mirror: str, *parts: str, error: type[BaseException] = DownloadError) -> str:
    """Fetch maps in vain: one message with the address, why and what to do; nothing is left."""
    with pytest.raises(error) as caught:
        fetch("maps", mirror=mirror)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{mirror}/maps.tar.gz:" in message
    for part in (*ADVICE, *parts):
        assert part in message, (part, message)
    assert not Path("data").exists() or not os.listdir("data")
    return message


# --- Success ---
@pytest.mark.parametrize("length", [-1, None])
def test_fetched_from_an_address(
    server: Server,
    length: int | None,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    server.length = length
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # else a line a minute
    half_made: list[str] = []
    server.during = lambda: half_made.extend(os.listdir("data"))
    assert fetch("maps", mirror=f"{server.mirror}/") == Path("data/maps")
    assert unpacked() == ["train/1.jpg", "train/2.jpg", "val/1.jpg"]
    assert Path("data/maps/val/1.jpg").read_bytes() == BYTES
    assert os.listdir("data") == ["maps"]
    assert server.asked == ["/base/maps.tar.gz"]
    assert "maps" not in half_made
    assert re.search(r"maps\.tar\.gz: .*1\d\dk", capsys.readouterr().err)


def test_fetched_from_a_folder_of_archives(tmp_path: Path):
    archive = tmp_path / "archives" / "maps.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(tar_gz(*PAIRS))
    assert fetch("maps", mirror=str(archive.parent)) == Path("data/maps")
    assert len(unpacked()) == 3
    assert archive.exists()
    assert os.listdir("data") == ["maps"]


@pytest.mark.parametrize(
    ("members", "files"),
    [
        (["train/1.jpg", "val/1.jpg"], ["train/1.jpg", "val/1.jpg"]),
        (["other/train/1.jpg"], ["other/train/1.jpg"]),
        (["maps/train/1.jpg", "readme.txt"], ["maps/train/1.jpg"]),
        ([member("./", tarfile.DIRTYPE), "./maps/train/1.jpg"], ["train/1.jpg"]),
    ],
)
def test_other_shapes_stay_as_they_are(server: Server, members: list, files: list[str]):
    server.body = tar_gz(*members)
    fetch("maps", mirror=server.mirror)
    assert unpacked() == files


def test_what_exists_is_not_fetched_again(server: Server):
    Path("data/maps").mkdir(parents=True)
    assert fetch("maps", mirror=server.mirror) == Path("data/maps")
    assert not server.asked


def test_a_folder_is_readable_by_others(server: Server):
    fetch("maps", mirror=server.mirror)
    umask = os.umask(0o022)
    os.umask(umask)
    for folder in (Path("data/maps"), Path("data/maps/train")):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


# --- The server ---
def test_not_found(server: Server):
    refused(f"{server.mirror}/elsewhere", "404 Not Found")


def test_no_server():
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        refused(f"http://127.0.0.1:{taken.getsockname()[1]}", "connection failed", "refused")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (socket.gaierror(-2, "Name or service not known"), "connection failed ([Errno -2] Name"),
        (TimeoutError("timed out"), "sent nothing for 30 seconds"),
    ],
)
def test_no_network(error: OSError, why: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    refused("http://pairs.invalid", why)


def test_a_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    done = threading.Event()
    server.during = functools.partial(done.wait, 5)
    began = time.monotonic()
    try:
        refused(server.mirror, "sent nothing for 0.2 seconds")
    finally:
        done.set()
    assert time.monotonic() - began < 2


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        refused(f"http://127.0.0.1:{deaf.getsockname()[1]}", "sent nothing for 0.2 seconds")


def test_cut_short_by_the_connection(server: Server):
    whole = len(server.body)
    server.length = whole + 1000
    refused(server.mirror, f"connection broke after {whole} of {whole + 1000} bytes")


def test_cut_short_where_no_length_is_known(server: Server):
    server.body, server.length = server.body[:-30], None
    refused(server.mirror, "damaged or cut short")


@pytest.mark.parametrize("address", ["http://[", "http://127.0.0.1:x", "nowhere/at/all"])
def test_an_address_that_makes_no_sense(address: str):
    refused(address)


# --- The archive ---
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\n<!DOCTYPE html><html>Moved</html>", "a web page"),
        (b"PK\x03\x04" + BYTES, "a zip file"),
        (b"", "begins with b''"),
        (gzip.compress(b"no tar at all" * 100, mtime=0), "damaged or cut short"),
        (tar_gz(*PAIRS)[:100_000], "damaged or cut short"),
        (tar_gz(*PAIRS)[:-8] + bytes(8), "damaged or cut short"),  # its checksum
        (tar_gz(*PAIRS, blocks=0), "damaged or cut short"),
        (
            gzip.compress(gzip.decompress(tar_gz("1.jpg", blocks=0)) + b"?" * 1024, mtime=0),
            "damaged or cut short",
        ),
        (claiming(size=-512), "damaged or cut short"),
        (claiming(size=2**62), "damaged or cut short"),
        (claiming(tarfile.GNUTYPE_LONGNAME, size=-512), "damaged or cut short"),
        (claiming(tarfile.GNUTYPE_LONGNAME, size=2**62), "damaged or cut short"),
        (claiming(mtime=2**70), "damaged or cut short"),
        (tar_gz("maps/readme.txt"), "no pictures"),
        (tar_gz(member("maps/1.jpg", tarfile.DIRTYPE)), "no pictures"),
        (tar_gz(), "no pictures"),
    ],
)
def test_a_wrong_archive(server: Server, body: bytes, why: str):
    server.body = body
    refused(server.mirror, why)


@pytest.mark.parametrize(
    "hostile",
    [
        member("/tmp/pix2pix_evil.jpg"),
        member("../evil.jpg"),
        member("maps/../../evil.jpg"),
        member("..\\evil.jpg"),
        member("maps\\1.jpg"),
        member("C:/evil.jpg"),
        member("C:evil.jpg"),
        member("\\\\server\\share\\evil.jpg"),
        member("maps/link", tarfile.SYMTYPE, "1.jpg"),
        member("maps/link", tarfile.LNKTYPE, "maps/train/1.jpg"),
        member("maps/device", tarfile.CHRTYPE),
        member("maps/device", tarfile.BLKTYPE),
        member("maps/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_a_hostile_member_stops_all(
    server: Server, hostile: tarfile.TarInfo, monkeypatch: pytest.MonkeyPatch
):
    def unpack(*arguments: object, **options: object) -> None:
        pytest.fail("unpacked before all was checked")

    monkeypatch.setattr(tarfile.TarFile, "extractall", unpack)
    server.body = tar_gz(*PAIRS, hostile)
    refused(server.mirror, repr(hostile.name))


def test_the_data_filter_is_on(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "_check_members", lambda members: None)
    server.body = tar_gz(*PAIRS, member("../evil.jpg"))
    refused(server.mirror, "outside")


# --- The disk ---
def test_too_little_space_is_said_before_the_download(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    server.length = 60_000  # 120 kB with what is in it
    refused(server.mirror, "data needs 0.00 GB and 0.00 GB are free")


def test_too_little_space_for_what_is_in_it(server: Server, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    server.body = tar_gz(*PAIRS, content=bytes(2_000_000))
    assert len(server.body) < 50_000
    refused(server.mirror, "data needs 0.01 GB")


@pytest.mark.parametrize("call", ["open", "extract"])
def test_a_full_disk(server: Server, call: str, monkeypatch: pytest.MonkeyPatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.BytesIO):
        def write(self, chunk: bytes) -> int:
            raise full

    def fail(*arguments: object, **options: object) -> None:
        raise full

    if call == "open":
        monkeypatch.setattr(download.tempfile, "TemporaryFile", lambda dir: FullFile())
    else:
        monkeypatch.setattr(tarfile, "copyfileobj", fail)
    refused(server.mirror, "no space left on the disk")


@pytest.mark.parametrize("name", ["mkdir", "rename"])
def test_no_permission(server: Server, name: str, monkeypatch: pytest.MonkeyPatch):
    def forbid(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, name, forbid)
    refused(server.mirror, "Permission denied (data")


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_way(server: Server, link: bool):
    Path("data").mkdir()
    if link:
        Path("data/maps").symlink_to("gone")
    else:
        Path("data/maps").write_text("a file")
    with pytest.raises(DownloadError, match="data/maps exists but is not a folder"):
        fetch("maps", mirror=server.mirror)
    assert os.listdir("data") == ["maps"]
    assert not server.asked


# --- Stopped, killed, two at once ---
def start_fetching(server: Server) -> subprocess.Popen:
    """Fetch maps in a process of its own, as two users of one folder would."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as typed
    code += f"from pictures.download import fetch; fetch('maps', mirror={server.mirror!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_while_fetching(server: Server):
    # In a process of its own: a KeyboardInterrupt inside tqdm's lock would leave it locked here.
    halfway, done = threading.Event(), threading.Event()
    server.during = lambda: (halfway.set(), done.wait(60))
    run = start_fetching(server)
    try:
        assert halfway.wait(60)
        run.send_signal(signal.SIGINT)
        message = run.communicate(timeout=60)[1]
    finally:
        done.set()
        run.kill()
    for part in (*ADVICE, f"{server.mirror}/maps.tar.gz:", "KeyboardInterrupt", "interrupted"):
        assert part in message
    assert not os.listdir("data")


def test_ctrl_c_while_unpacking(server: Server, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile, "copyfileobj", interrupt)
    refused(server.mirror, "it was interrupted", error=KeyboardInterrupt)


def test_what_a_killed_run_left_is_no_hindrance(server: Server):
    own = f".{zlib.crc32(b'maps'):08x}"
    old, fresh, busy = (f"{own}-{end}.part" for end in ("1-a", "1-b", "2-c"))
    theirs = ".0123abcd-1-a.part"
    for name, hours in ((old, 25), (fresh, 0), (busy, 25), (theirs, 25)):
        folder = Path("data", name)
        folder.mkdir(parents=True)
        (folder / "maps.tar.gz").write_bytes(b"half")
        past = time.time() - hours * 3600
        os.utime(folder / "maps.tar.gz", None if name == busy else (past, past))
        os.utime(folder, (past, past))
    fetch("maps", mirror=server.mirror)
    assert sorted(os.listdir("data")) == sorted([busy, fresh, theirs, "maps"])


def test_two_at_once(server: Server):
    both = threading.Barrier(2)
    server.during = functools.partial(both.wait, 60)
    runs = [start_fetching(server) for _ in range(2)]
    try:
        assert [run.communicate(timeout=90) and run.returncode for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
    assert len(server.asked) == 2
    assert len(unpacked()) == 3
    assert os.listdir("data") == ["maps"]


def test_the_loser_keeps_the_winners_folder(server: Server):
    def win() -> None:
        Path("data/maps/train").mkdir(parents=True)
        Path("data/maps/train/winner.jpg").touch()

    server.during = win
    assert fetch("maps", mirror=server.mirror) == Path("data/maps")
    assert unpacked() == ["train/winner.jpg"]
    assert os.listdir("data") == ["maps"]


# --- What is fetched at all ---
@pytest.mark.parametrize("name", ["towns", "../maps", "horse2zebra", ""])
def test_only_the_data_sets_of_the_paper(server: Server, name: str):
    with pytest.raises(ValueError, match="one of facades, maps"):
        fetch(name, mirror=server.mirror)
    assert not server.asked
    assert not Path("data").exists()


def test_a_home_that_is_not_there_ends_in_the_message(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"~nobody9/archives/facades\.tar\.gz"):
        fetch("facades", mirror="~nobody9/archives", data_dir=tmp_path)
