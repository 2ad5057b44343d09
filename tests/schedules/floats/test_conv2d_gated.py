"""Gated convolutions compute the open tiles and leave the closed ones what they are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d import ConvTile, pack_conv2d
from schedules.conv2d_gate import tile_gate
from schedules.conv2d_gated import default_gated_tile, gate_size, gated_conv2d
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.panels import panel_size
from schedules.quantize import round_up
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, after, convolutions, operands, reference


def check(isa, conv: Conv2d, tile: ConvTile, threads: int, shares=(0.0, 0.4, 1.0)):
    conv = replace(conv, outputs=max(conv.outputs, isa.lanes))
    x, weight, bias, residual = operands(conv)
    rng = np.random.default_rng(1)
    closed = rng.standard_normal((conv.output_size // conv.outputs, conv.outputs)).astype("float32")
    kernel = compile_kernel(isa, gated_conv2d(isa, conv, tile, threads), threads)
    exact = reference(conv, x, weight, bias, residual).reshape(closed.shape)
    approximate = after(conv, closed, residual)
    size = panel_size(isa, conv.outputs, tile.vectors)
    for share in shares:
        opened = (rng.random(gate_size(isa, conv, tile)) < share).astype("uint8")
        channels = np.zeros(closed.shape, bool)
        for panel, pixels in enumerate(opened):
            column = int(panel_column(panel, conv.outputs, size))
            channels[:, column : column + size] |= pixels[:, None].astype(bool)
        packed = pack_conv2d(isa, tile, weight, bias)
        gate, y = (opened, closed.reshape(-1)), Output((conv.output_size,), "float32")
        (y,) = call(kernel, x.reshape(-1), *packed, added(conv, residual), *gate, y, threads=threads)
        wanted = np.where(channels, exact, approximate)
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, default_gated_tile(isa, conv), threads)


@pytest.mark.parametrize("tile", [ConvTile(1, 1, 1), ConvTile(4, 3, 5), ConvTile(7, 1, 2)], ids=str)
def test_any_tile_gives_the_same(isa, tile, threads):
    check(isa, replace(SHAPES[1], outputs=57), tile, threads)


def test_panels_are_taken_a_few_kernel_rows_at_a_time(isa, threads, monkeypatch):
    conv = Conv2d(1, 40, 1, 3, 37, (17, 1), (1, 1), (8, 0, 8, 0), activation="relu", residual=True)
    # Of eight rows a quarter is taken at a time.
    monkeypatch.setattr("schedules.conv2d_tile._OUTPUT_BYTES", 8 * 4 * 3)
    monkeypatch.setattr("schedules.conv2d_gated.heavy", lambda conv: True)
    check(isa, conv, ConvTile(4, 1, 20), threads, (0.0, 0.1, 1.0))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), conv=convolutions(), threads=st.integers(1, 2), share=st.floats(0, 1))
def test_convolutions_match_numpy_at_any_shape_and_share(isa, conv, threads, share):
    check(isa, conv, default_gated_tile(isa, conv), threads, [share])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("pixels, outputs, size", [(1, 16, 16), (9, 40, 16), (37, 24, 24), (64, 19, 16)])
def test_the_gate_sums_over_the_channels_of_a_panel(isa, threads, pixels, outputs, size, residual):
    size = round_up(size, isa.lanes)
    outputs, panels = max(outputs, size), -(-max(outputs, size) // size)
    rng = np.random.default_rng(0)
    sums = rng.standard_normal((pixels, outputs)).astype("float32")
    limits = np.stack([rng.uniform(0.3, 1, outputs), rng.uniform(-1, 1, outputs), rng.uniform(0, 0.7, outputs)])
    others = rng.standard_normal((pixels, outputs)).astype("float32") if residual else np.zeros(1, "float32")
    kernel = compile_kernel(isa, tile_gate(isa, panels, pixels, outputs, size, threads, residual), threads)
    for limits_ in (limits, limits * 0, [0 * limits[0], 1 + 0 * limits[0], 2 + 0 * limits[0]]):
        limits_ = np.asarray(limits_, "float32")
        outs = Output((panels, pixels), "uint8"), Output((1,), "int32")
        opened, count = call(kernel, sums.reshape(-1), others.reshape(-1), limits_, *outs, threads=threads)
        harm = (limits_[2] * np.clip(limits_[0] * (sums + others) + limits_[1], 0, 1)) ** 2
        for panel in range(panels):
            column = int(panel_column(panel, outputs, size))
            total = harm[:, column : column + size].sum(axis=1)
            sure = np.abs(total - 1) > 1e-5
            np.testing.assert_array_equal(opened[panel][sure], (total > 1)[sure])
        assert count[0] == opened.sum()


def test_bands_of_lists_leave_no_row_to_be_computed_twice():
    conv = Conv2d(1, 28, 28, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    assert 28 % default_gated_tile(cpu.ISAS["avx2"], conv).rows == 0


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    conv = SHAPES[0]
    compile_kernel(level, gated_conv2d(level, conv, default_gated_tile(level, conv), 1))
    compile_kernel(level, tile_gate(level, 2, 20, 32, 16, 1))
