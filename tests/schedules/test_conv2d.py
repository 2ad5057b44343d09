"""Convolutions in dense form, at shapes that fill tiles, panels and bands and that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d import ConvTile, conv2d, default_tile, pack_conv2d
from schedules.conv2d_shape import Conv2d
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, convolutions, operands, reference


def check(isa, conv: Conv2d, tile: ConvTile, threads: int):
    x, weight, bias, residual = operands(conv)
    kernel = compile_kernel(isa, conv2d(isa, conv, tile, threads), threads)
    packed = pack_conv2d(isa, tile, weight, bias)
    (y,) = call(
        kernel, x.reshape(-1), *packed, added(conv, residual), Output((conv.output_size,), "float32"), threads=threads
    )
    wanted = reference(conv, x, weight, bias, residual)
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, default_tile(isa, conv), threads)


@pytest.mark.parametrize("tile", [ConvTile(1, 1, 1), ConvTile(4, 3, 5), ConvTile(7, 1, 2)], ids=str)
def test_any_tile_gives_the_same(isa, tile, threads):
    check(isa, replace(SHAPES[1], outputs=57), tile, threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), conv=convolutions(), threads=st.integers(1, 2))
def test_convolutions_match_numpy_at_any_shape(isa, conv, threads):
    check(isa, conv, default_tile(isa, conv), threads)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    compile_kernel(level, conv2d(level, SHAPES[0], default_tile(level, SHAPES[0]), 1))


def test_bands_are_chosen_that_leave_no_row_to_be_computed_twice():
    conv = Conv2d(1, 56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    assert 56 % default_tile(cpu.ISAS["avx2"], conv).rows == 0
