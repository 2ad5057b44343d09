"""A small network of convolutions that several test files look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tvm_dual.builder import Builder


class Blocks(nn.Module):
    """Convolutions in a row and around an addition, and a dense layer; weights of few directions.

    Each direction has the share `decay` of the one before it.
    """

    def __init__(self, decay: float = 0.7) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)
        for layer in (self.second, self.third, self.fourth):
            rows = layer.weight.data.reshape(64, -1)
            u, s, v = torch.linalg.svd(rows, full_matrices=False)
            layer.weight.data = (u * s * decay ** torch.arange(64) @ v).reshape(layer.weight.shape) * 3

    def forward(self, x):
        y = torch.relu(self.second(torch.relu(self.first(x))))
        y = torch.relu(self.fourth(torch.relu(self.third(y))) + y)
        return self.head(y.mean((2, 3)))


def blocks_builder(target: str = "native", decay: float = 0.7, **options) -> Builder:
    """Return the network for a level, calibrated on images of which a half is dark; `options` are `Builder`'s."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((40, 3, 12, 11)).astype("float32")
    images[:, :, 6:] *= 0.1
    options |= {"example_inputs": (torch.zeros(1, 3, 12, 11),), "target": target}
    return Builder(Blocks(decay).eval(), [images], **options)
