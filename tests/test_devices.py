from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from config import Config
from machine.devices import EAGER_STEPS, Machine, cuda_graphed, own_device, pick_device
from machine.processes import Processes


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"cuda:77.*this machine has cpu"):
        pick_device("cuda:77")


@pytest.mark.parametrize(
    ("n_cards", "visible", "expected"),
    [(4, None, "cuda:3"), (1, "3", "cuda:0"), (1, None, None)],  # None: refused
)
def test_each_process_takes_its_card_also_where_it_sees_no_other(
    n_cards: int, visible: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_cards)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fourth = Processes(rank=3, count=4, local_rank=3)
    if expected is None:
        with pytest.raises(ValueError, match="cuda:3"):
            own_device(torch.device("cuda:0"), fourth)
    else:
        assert str(own_device(torch.device("cuda:0"), fourth)) == expected


def test_a_step_is_recorded_once_and_played_back_on_each_batch(monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []
    played: list[float] = []
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])

    class Graph:
        def replay(self) -> None:
            played.append(seen[-1].item())

    def step(batch: Tensor) -> bool:
        seen.append(batch)
        return adam.param_groups[0]["capturable"]

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", nullcontext)
    machine = Machine(torch.device("cuda"), torch.float32)
    act = cuda_graphed(step, [adam], Config(), machine)
    could_be_recorded = [act(torch.tensor(float(number))) for number in range(7)]
    assert len(seen) == EAGER_STEPS + 1
    assert could_be_recorded == [False] * 3 + [True] * 4
    assert played == [3, 4, 5, 6]
    assert not adam.param_groups[0]["capturable"]
