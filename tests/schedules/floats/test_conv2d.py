"""Convolutions in dense form, at shapes that fill tiles, panels and bands and that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d import ConvTile, conv2d, default_tile, pack_conv2d
from schedules.conv2d_bands import band_rows
from schedules.conv2d_gated import default_gated_tile
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_tile import rows_at_once, seen_rows
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


#: Weights that do not stay in any L2 for all tiles of a band; the last block of kernel rows is a shorter one.
HEAVY = [
    Conv2d(1, 40, 1, 3, 37, (17, 1), (1, 1), (8, 0, 8, 0), activation="relu", residual=True),
    Conv2d(2, 14, 7, 5, 21, (9, 2), (2, 1), (5, 0, 4, 1), (1, 2), "relu", True),
]


@pytest.mark.parametrize("conv", HEAVY, ids=str)
def test_panels_are_taken_a_few_kernel_rows_at_a_time(isa, conv, threads, monkeypatch):
    # Of eight rows a quarter is taken at a time.
    monkeypatch.setattr("schedules.conv2d_tile._OUTPUT_BYTES", 8 * 4 * conv.taps // conv.kernel[0])
    monkeypatch.setattr("schedules.conv2d.heavy", lambda conv: True)
    tile = ConvTile(4, 1, conv.out_height // 2)
    assert rows_at_once(conv, isa.lanes, 2) == 2
    check(isa, conv, tile, threads)


def test_panels_that_one_tile_reads_are_taken_whole():
    conv = Conv2d(1, 8, 1, 256, 512, (64, 1), padding=(31, 0, 32, 0))
    assert rows_at_once(conv, 32, 1) == 64 and rows_at_once(conv, 32, 2) < 64


def test_tiles_fill_a_band_evenly_or_a_row_if_that_spares_more_padding():
    conv = Conv2d(1, 7, 7, 512, 512, (3, 3), padding=(1, 1, 1, 1))
    tile = default_tile(cpu.ISAS["avx512"], conv)
    assert (tile.pixels, tile.rows) == (7, 7), "two of 21 rows of the kernel see padding alone"
    inside = default_tile(cpu.ISAS["avx512"], replace(conv, height=9, width=9, padding=(0,) * 4))
    assert (inside.pixels, inside.rows) == (13, 7), "49 pixels in four tiles"


def test_panels_are_wide_where_there_are_few_taps_but_not_those_of_a_gate():
    few = Conv2d(1, 28, 28, 1, 64, (3, 3), padding=(1, 1, 1, 1))
    for level, pixels in (("avx2", 2), ("avx512", 6)):
        isa = cpu.ISAS[level]
        tile = default_tile(isa, few)
        assert (tile.pixels, tile.vectors) == (pixels, 4)
        assert default_tile(isa, replace(few, inputs=2)).vectors == 2, "18 taps"
        assert default_tile(isa, replace(few, outputs=isa.lanes)).vectors == 1
        assert default_gated_tile(isa, few).vectors == 2


#: Tiles of one row each, of which some see padding alone, or nothing else.
IN_ROWS = [
    Conv2d(2, 5, 6, 3, 19, (3, 3), padding=(1, 1, 1, 1), activation="relu"),
    Conv2d(1, 4, 6, 2, 16, (3, 1), (2, 1), padding=(4, 0, 5, 0), residual=True),
    Conv2d(1, 6, 8, 4, 33, (4, 3), (1, 1), (3, 1, 2, 1), (2, 1)),
]


@pytest.mark.parametrize("conv", IN_ROWS, ids=str)
@pytest.mark.parametrize("is_heavy", [False, True])
def test_rows_of_the_kernel_that_see_padding_are_left_out(isa, conv, is_heavy, threads, monkeypatch):
    monkeypatch.setattr("schedules.conv2d.heavy", lambda conv: is_heavy)
    if is_heavy:
        monkeypatch.setattr("schedules.conv2d_tile._OUTPUT_BYTES", 8 * 4 * conv.taps // conv.kernel[0])
    check(isa, conv, ConvTile(conv.out_width // 2, 1, conv.out_height), threads)


def test_the_share_of_rows_that_see_the_image():
    conv = Conv2d(1, 7, 7, 8, 16, (3, 3), padding=(1, 1, 1, 1))
    assert seen_rows(conv) == 19 / 21 and seen_rows(replace(conv, padding=(0, 1, 0, 1))) == 1


def test_heavy_weights_are_read_for_many_rows_at_once():
    conv = Conv2d(1, 128, 1, 1024, 128, (64, 1), padding=(31, 0, 32, 0))
    assert band_rows(conv) == 128 and band_rows(replace(conv, outputs=16, kernel=(1, 1), padding=(0,) * 4)) < 128


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
