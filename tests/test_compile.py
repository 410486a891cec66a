"""Compiled networks learn the same; a machine that cannot compile says so."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TINY
from torch._dynamo.utils import counters

from config import Config
from machine.devices import Machine
from recipes import known_sides, resolve
from run.state import new_state
from train import train_step

FP32 = Machine(torch.device("cpu"), torch.float32)


def losses(config: Config) -> torch.Tensor:
    """Return the losses of three steps on the same random pictures."""
    state = new_state(config, known_sides(config), FP32)
    x, y = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    steps = [train_step(state, x, y, config, FP32) for _ in range(3)]
    return torch.tensor([list(step.values()) for step in steps])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_have_the_same_losses(backend: str, monkeypatch: pytest.MonkeyPatch):
    # With kernels in C++ it takes a minute; the graphs are the same without.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    # Compiled dropout draws other numbers.
    config = replace(resolve(Config(**TINY))[0], dropout="none", n_layers_d=1)
    plain = losses(config)
    counters.clear()
    assert torch.allclose(losses(replace(config, compile=True)), plain, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] >= 2


def test_no_compiler(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        ValueError, match=r"torch.compile fails here \(no C\+\+ compiler\); install"
    ):
        FP32.compile(torch.nn.Identity(), "forward")
