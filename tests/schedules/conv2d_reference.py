"""Convolutions to test with: random operands, and what they give in NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from schedules.conv2d_shape import Conv2d

_AFTER = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
    "silu": lambda y: y / (1 + np.exp(-y)),
    "hard_swish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    None: lambda y: y,
}

#: Whole tiles; nothing whole, gaps, uneven padding; fewer outputs than lanes; large kernels; strides that leave
#: columns unread; images of one pixel.
SHAPES = [
    Conv2d(1, 12, 12, 16, 32, (3, 3), (1, 1), (1, 1, 1, 1), activation="relu"),
    Conv2d(2, 9, 7, 5, 21, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), "relu", True),
    Conv2d(1, 5, 7, 9, 3, (1, 1), (2, 3), activation="sigmoid", residual=True),
    Conv2d(1, 70, 1, 1, 17, (64, 1), (4, 1), (31, 0, 32, 0), activation="relu6"),
    Conv2d(1, 4, 40, 2, 8, (1, 33), padding=(0, 16, 0, 16), activation="tanh"),
    Conv2d(3, 1, 1, 6, 40, (3, 3), padding=(1, 1, 1, 1)),
]


@st.composite
def convolutions(draw) -> Conv2d:
    """Draw a convolution with at least one output pixel."""
    kernel, strides, dilation = (tuple(draw(st.integers(1, n)) for _ in range(2)) for n in (4, 3, 2))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    least = [max(1, (kernel[i] - 1) * dilation[i] + 1 - padding[i] - padding[i + 2]) for i in range(2)]
    height, width = (draw(st.integers(n, n + 9)) for n in least)
    return Conv2d(
        draw(st.integers(1, 2)),
        height,
        width,
        draw(st.integers(1, 19) | st.just(32)),
        draw(st.integers(1, 40)),
        kernel,
        strides,
        padding,
        dilation,
        draw(st.sampled_from(list(_AFTER))),
        draw(st.booleans()),
    )


def operands(conv: Conv2d, zeros: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return input, of which a share is zero, weight, bias and residual; float32, channels last."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((conv.batch, conv.height, conv.width, conv.inputs))
    x *= rng.random(x.shape) >= zeros
    weight = rng.standard_normal((conv.outputs, *conv.kernel, conv.inputs)) / np.sqrt(conv.taps)
    residual = rng.standard_normal((conv.batch, conv.out_height, conv.out_width, conv.outputs))
    return tuple(a.astype("float32") for a in (x, weight, rng.standard_normal(conv.outputs), residual))


def added(conv: Conv2d, residual: np.ndarray) -> np.ndarray:
    """Return `residual` as kernels take it."""
    return residual.reshape(-1)[: conv.residual_size]


def reference(conv: Conv2d, x, weight, bias, residual) -> np.ndarray:
    """Return the convolution, ``float64 (batch, rows, columns, outputs)``."""
    top, left, bottom, right = conv.padding
    x = np.pad(x.astype("float64"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = np.zeros(residual.shape)
    for down in range(conv.kernel[0]):
        for across in range(conv.kernel[1]):
            first = (down * conv.dilation[0], across * conv.dilation[1])
            rows, columns = (
                slice(start, start + (extent - 1) * stride + 1, stride)
                for start, extent, stride in zip(first, (conv.out_height, conv.out_width), conv.strides, strict=True)
            )
            y += x[:, rows, columns] @ weight[:, down, across].T.astype("float64")
    return after(conv, y + bias, residual)


def after(conv: Conv2d, sums: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return what a convolution's sums become."""
    return _AFTER[conv.activation](sums + (residual.reshape(sums.shape) if conv.residual else 0))
