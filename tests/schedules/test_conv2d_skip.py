"""Convolutions that skip zeros equal the dense ones, at any share of zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import SkipTile, conv2d_skip, default_skip_tile, pack_conv2d_skip
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, convolutions, operands, reference


def check(isa, conv: Conv2d, tile: SkipTile, threads: int, shares=(0.0, 0.8, 1.0)):
    kernel = compile_kernel(isa, conv2d_skip(isa, conv, tile, threads), threads)
    for zeros in shares:
        x, weight, bias, residual = operands(conv, zeros)
        packed = pack_conv2d_skip(isa, tile, weight, bias)
        (y,) = call(
            kernel,
            x.reshape(-1),
            *packed,
            added(conv, residual),
            Output((conv.output_size,), "float32"),
            threads=threads,
        )
        wanted = reference(conv, x, weight, bias, residual)
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, default_skip_tile(isa, conv), threads)


@pytest.mark.parametrize("tile", [SkipTile(1, 1), SkipTile(3, 2), SkipTile(4, 4)], ids=str)
def test_any_tile_gives_the_same(isa, tile, threads):
    check(isa, SHAPES[1], tile, threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), conv=convolutions(), threads=st.integers(1, 2), zeros=st.floats(0, 1))
def test_convolutions_match_numpy_at_any_shape_and_share(isa, conv, threads, zeros):
    check(isa, conv, default_skip_tile(isa, conv), threads, [zeros])


def test_the_smallest_and_negative_values_count_as_nonzero_and_negative_zero_does_not(isa):
    conv = Conv2d(1, 1, 16, 16, 1, (1, 1))
    x = np.zeros((1, 1, 16, 16), "float32")
    x[0, 0, :, 3], x[0, 0, :, 5], x[0, 0, :, 7] = -2, np.float32(1e-45), -0.0
    weight = np.ones((1, 1, 1, 16), "float32")
    # What is not listed is not multiplied, so that a weight of infinity shows what is.
    weight[..., 7] = np.inf
    weight[..., 5] = np.float32(1e38)
    tile = default_skip_tile(isa, conv)
    packed = pack_conv2d_skip(isa, tile, weight, np.zeros(1, "float32"))
    kernel = compile_kernel(isa, conv2d_skip(isa, conv, tile, 1))
    (y,) = call(kernel, x.reshape(-1), *packed, np.zeros(1, "float32"), Output((conv.output_size,), "float32"))
    np.testing.assert_allclose(y, -2 + np.float32(1e-45) * np.float32(1e38), rtol=1e-6)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    compile_kernel(level, conv2d_skip(level, SHAPES[0], default_skip_tile(level, SHAPES[0]), 1))
