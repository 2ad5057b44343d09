"""Pooling against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.bf16_vectors import BF16, of_bf16, to_bf16
from schedules.pool import MaxPool2d, max_pool2d
from tests.schedules.conftest import Output, call, compile_kernel


@pytest.mark.parametrize("dtype", ["float32", BF16])
@pytest.mark.parametrize(
    "pool",
    [
        MaxPool2d(1, 9, 8, 32, (2, 2), (2, 2)),
        MaxPool2d(2, 7, 11, 21, (3, 2), (1, 3)),
        MaxPool2d(1, 5, 1, 3, (2, 1), (2, 1)),
        MaxPool2d(1, 4, 4, 1, (4, 4), (4, 4)),
    ],
    ids=str,
)
def test_maxima_of_windows(isa, pool, dtype, threads):
    x = np.random.default_rng(0).standard_normal((pool.batch, pool.height, pool.width, pool.channels))
    x = x.astype("float32")
    given = to_bf16(x) if dtype == BF16 else x
    kernel = compile_kernel(isa, max_pool2d(isa, pool, threads, dtype), threads)
    (y,) = call(kernel, given.reshape(-1), Output((pool.output_size,), dtype), threads=threads)
    if dtype == BF16:
        x, y = of_bf16(given), of_bf16(y)
    windows = np.lib.stride_tricks.sliding_window_view(x, pool.window, axis=(1, 2))
    wanted = windows[:, :: pool.strides[0], :: pool.strides[1]].max(axis=(-1, -2))
    np.testing.assert_array_equal(y.reshape(wanted.shape), wanted)
