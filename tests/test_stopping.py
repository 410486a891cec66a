import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY

from config import Config
from machine.stopping import POLITE, Interrupted, StopRequest, run_script
from run import state
from train import train


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Stopped at once"),
        (Interrupted("stopped in epoch 3", 15), 143, "stopped in epoch 3"),
        (ValueError("crop_size is 7"), 2, "crop_size is 7"),
        (OSError("disk full"), 2, "disk full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "Lower num_workers"),
        (MemoryError(), 2, "Lower num_workers"),
    ],
)
def test_a_script_ends_in_one_message_and_its_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has another shell")
@pytest.mark.parametrize(
    ("redirected", "code"), [("2>&-", 2), (">&- 2>&-", 2), ("| true", 0)], ids=str
)
def test_a_script_whose_output_is_shut_ends_as_ever(redirected: str, code: int):
    lines = (
        "import sys; from machine.stopping import StopRequest, run_script",
        "def main():",
        "    StopRequest().__enter__()._note(15, None)",
        "    [print('line', flush=True) for _ in range(99999)]",
        "    raise ValueError('a mistake')",
        "run_script(main)",
    )
    Path("script.py").write_text("\n".join(lines))
    command = f"{sys.executable} script.py {redirected}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run(["sh", "-c", command], check=False, **options)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("name", POLITE)
def test_every_polite_signal_is_a_request(name: str):
    signum = getattr(signal, name)
    before = signal.signal(signum, signal.SIG_DFL)  # pytest itself may run under nohup
    try:
        with StopRequest() as stop:
            stop.check()
            os.kill(os.getpid(), signum)
            with pytest.raises(Interrupted) as raised:
                stop.check()
        assert raised.value.exit_code == 128 + signum
        assert signal.getsignal(signum) == signal.SIG_DFL
    finally:
        signal.signal(signum, before)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal")
def test_under_nohup_a_closed_terminal_is_ignored(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent there")
def test_a_stop_frees_the_networks_at_once(towns: Path, monkeypatch: pytest.MonkeyPatch):
    generators = []
    build, check = state.build_generator, StopRequest.check

    def noting(*arguments: object) -> torch.nn.Module:
        generator = build(*arguments)
        generators.append(weakref.ref(generator))
        return generator

    def stopping(self: StopRequest) -> None:
        self.signum = signal.SIGINT
        check(self)

    monkeypatch.setattr(state, "build_generator", noting)
    monkeypatch.setattr(StopRequest, "check", stopping)
    with pytest.raises(Interrupted, match="same command") as stopped:
        train(Config(dataset=str(towns), name="a", **TINY))
    assert generators
    assert not any(generator() for generator in generators)
    assert stopped.value.exit_code == 130


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_name_can_be_printed(encoding: str):
    program = "from machine.stopping import run_script; import os; "
    program += r"run_script(lambda: print('\u4e2d', 'é', os.fsdecode(b'\xff')))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u4e2d" in done.stdout and rb"\udcff" in done.stdout
