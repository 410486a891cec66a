"""Weights and pictures made by rule, and the outputs of the authors' own networks for them.

The numbers in tests/reference/ were computed with junyanz/pytorch-CycleGAN-and-pix2pix (commit
9f8f61e) in float64.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "reference"
KEYS: dict[str, list[str]] = json.loads((FOLDER / "state_dict_keys.json").read_text())


def weight_by_rule(key: str, shape: torch.Size) -> Tensor:
    count = int(np.prod(shape))
    wave = np.sin(0.5 + zlib.crc32(key.encode()) % 1000 + 1.7 * np.arange(count)).reshape(shape)
    kind = key.rsplit(".", 1)[-1]
    if kind == "weight" and len(shape) == 4:
        wave = wave * 1.5 / np.sqrt(shape[0] * 4)
    elif kind in ("weight", "running_var"):
        wave = 1 + (0.2 if kind == "weight" else 0.5) * wave
    else:
        wave = 0.1 * wave
    return torch.from_numpy(wave)


def picture(n: int, channels: int, size: int, phase: float) -> Tensor:
    b, k, h, w = np.ogrid[:n, :channels, :size, :size]
    wave = np.sin(0.11 * (k + 1) * h + phase + b) * np.cos(0.07 * (k + 1) * w - b)
    return torch.from_numpy(wave)


def load_by_rule(network: nn.Module, kind: str) -> None:
    """Fill ``network`` with the rule's weights.

    The authors nest each U-Net block in the next larger one, so their order, too, is the encoder
    from the outside in, then the decoder from the inside out.
    """
    state = network.state_dict()
    for mine, key in zip(state, KEYS[kind], strict=True):
        assert mine.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1], (mine, key)
        if not key.endswith("num_batches_tracked"):
            state[mine] = weight_by_rule(key, state[mine].shape)
    network.load_state_dict(state)
