"""Convolutions with a gate for each output compute the open ones and leave the others what they are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_single import conv2d_single, default_single_tile
from schedules.knobs import SingleTile
from schedules.single_dots import pack_singles
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, after, convolutions, operands, reference


def check(isa, conv: Conv2d, tile: SingleTile, threads: int, shares=(0.0, 0.4, 1.0)):
    x, weight, bias, residual = operands(conv)
    kernel = compile_kernel(isa, conv2d_single(isa, conv, tile, threads), threads)
    exact = reference(conv, x, weight, bias, residual)
    rng = np.random.default_rng(1)
    packed = pack_singles(isa, weight, bias, conv)
    for share in shares:
        # What a row of limits opens is clearly above or below its bound.
        opened = rng.random(exact.shape) < share
        scale = rng.uniform(0.5, 2, conv.outputs)
        shown = np.where(opened, 1, -1) * rng.uniform(0.6, 3, exact.shape) * scale
        sums = (shown - (residual if conv.residual else 0)).astype("float32")
        limits = np.stack([0.5 / scale, np.full(conv.outputs, 0.5), np.full(conv.outputs, 2.0)]).astype("float32")
        outs = Output((conv.output_size,), "float32"), Output((1,), "int32")
        given_ = (x.reshape(-1), *packed, added(conv, residual), limits, sums.reshape(-1))
        y, count = call(kernel, *given_, *outs, threads=threads)
        wanted = np.where(opened, exact, after(conv, sums, residual))
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)
        assert count[0] == opened.sum()


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, default_single_tile(isa, conv), threads)


@pytest.mark.parametrize(
    "tile", [SingleTile(1, 1, 1, 99), SingleTile(2, 7, 5, 1), SingleTile(8, 30, 2, 2), SingleTile(4, 5, 3, 3)], ids=str
)
def test_any_tile_gives_the_same(isa, tile, threads):
    # Runs of 39 values, whose last vector overlaps the one before it; the last band overlaps, too.
    check(isa, Conv2d(2, 11, 9, 13, 37, (3, 3), (1, 2), (0, 2, 1, 1), (2, 1), "relu", True), tile, threads)


def test_runs_shorter_than_a_vector_are_read_to_their_end_alone(isa, threads):
    check(isa, Conv2d(1, 6, 5, 3, 20, (2, 2), (1, 1), (1, 0, 0, 1), (1, 2), "tanh"), SingleTile(4, 9, 4, 9), threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    conv=convolutions(),
    threads=st.integers(1, 2),
    share=st.floats(0, 1),
    tile=st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(1, 3)),
)
def test_convolutions_match_numpy_at_any_shape_and_share(isa, conv, threads, share, tile):
    together, pixels, vectors = tile
    rows = default_single_tile(isa, conv).rows
    check(isa, conv, SingleTile(together, pixels, rows, vectors), threads, [share])


def test_weights_that_do_not_stay_in_cache_are_fetched_ahead(isa, threads, monkeypatch):
    monkeypatch.setattr("schedules.conv2d_single._L2_BYTES", 0)
    conv = replace(SHAPES[1], inputs=19)
    check(isa, conv, default_single_tile(isa, conv), threads)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    conv = SHAPES[0]
    compile_kernel(level, conv2d_single(level, conv, default_single_tile(level, conv), 1))
