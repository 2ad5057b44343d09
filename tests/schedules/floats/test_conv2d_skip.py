"""Convolutions that skip zeros equal the dense ones, at any share of zeros."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.conv2d import conv2d, default_tile, pack_conv2d
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import conv2d_skip, default_skip_tile, input_lists, pack_conv2d_skip
from schedules.conv2d_walk import across, groups, runs
from schedules.knobs import SkipTile
from schedules.nonzero_rows import RowLists, output_lists
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, convolutions, operands, reference


def check(isa, conv: Conv2d, tile: SkipTile, threads: int, shares=(0.0, 0.8, 1.0)):
    kernel = compile_kernel(isa, conv2d_skip(isa, conv, tile, threads), threads)
    for zeros in shares:
        x, weight, bias, residual = operands(conv, zeros)
        packed = pack_conv2d_skip(isa, conv, tile, weight, bias)
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


@pytest.mark.parametrize("tile", [SkipTile(1, 1), SkipTile(2, 2), SkipTile(4, 4)], ids=str)
def test_any_tile_gives_the_same(isa, tile, threads):
    check(isa, SHAPES[1], tile, threads)


@pytest.mark.parametrize(
    ("conv", "loops"),
    [
        (Conv2d(1, 40, 1, 20, 19, (16, 1), padding=(7, 0, 8, 0)), [4]),
        (Conv2d(1, 70, 1, 3, 19, (64, 1), (4, 1), (30, 0, 30, 0)), [4]),
        (Conv2d(1, 2, 30, 5, 19, (1, 11), padding=(0, 5, 0, 5)), [1, 2]),
    ],
    ids=str,
)
def test_long_kernels_are_loops_of_walks(isa, conv, loops):
    tile = replace(default_skip_tile(isa, conv), outputs=4)
    flat = across(conv)
    assert [times for _, times in runs(groups(flat, tile.outputs), flat.strides[1])] == loops
    check(isa, conv, tile, 1)


@pytest.mark.parametrize(
    ("inputs", "kernel", "avx2", "avx512"),
    [
        (64, 3, (3, 4), (3, 4)),
        (128, 3, (1, 8), (1, 4)),
        (256, 3, (1, 4), (1, 8)),
        (512, 3, (1, 8), (1, 8)),
        (256, 1, (1, 4), (1, 8)),
        (256, 5, (3, 4), (3, 4)),
    ],
)
def test_weights_of_a_walk_stay_in_the_first_cache_where_they_can(inputs, kernel, avx2, avx512):
    conv = Conv2d(1, 14, 14, inputs, 256, (kernel,) * 2, padding=(kernel // 2,) * 4)
    for level, (outputs, vectors) in (("avx2", avx2), ("avx512", avx512)):
        assert default_skip_tile(cpu.ISAS[level], conv) == SkipTile(outputs, vectors)


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
    packed = pack_conv2d_skip(isa, conv, tile, weight, np.zeros(1, "float32"))
    kernel = compile_kernel(isa, conv2d_skip(isa, conv, tile, 1))
    (y,) = call(kernel, x.reshape(-1), *packed, np.zeros(1, "float32"), Output((conv.output_size,), "float32"))
    np.testing.assert_allclose(y, -2 + np.float32(1e-45) * np.float32(1e38), rtol=1e-6)


def listed(layout: RowLists, image: np.ndarray) -> np.ndarray:
    """Return an image as lists, each value and its place written behind the one before it."""
    lists = np.zeros((layout.rows, layout.block), "float32")
    for block, row in zip(lists, image.reshape(layout.rows, layout.width, layout.channels), strict=True):
        pixels, channels = np.nonzero(row)
        ends = np.searchsorted(pixels, np.arange(layout.width + 1)).astype("int32")
        block[: layout.width + 1] = ends.view("float32")
        block[layout.values :][: len(pixels)] = row[pixels, channels]
        places = pixels * layout.channels + channels
        block[layout.places :][: len(pixels)] = places.astype("int32").view("float32")
    return lists.reshape(-1)


def unlisted(layout: RowLists, lists: np.ndarray) -> np.ndarray:
    """Return lists as an image, ``(rows, width, channels)``."""
    image = np.zeros((layout.rows, layout.width, layout.channels), "float32")
    for block, row in zip(lists.reshape(layout.rows, layout.block), image, strict=True):
        begins = block[: layout.width + 1].view("int32")
        places = block[layout.places :].view("int32")
        for pixel, (first, last) in enumerate(itertools.pairwise(begins)):
            row[pixel, places[first:last] - pixel * layout.channels] = block[layout.values :][first:last]
    return image


#: Images of several columns: those of one lie down, and so would their lists.
WIDE = [conv for conv in SHAPES if conv.out_width > 1]


@pytest.mark.parametrize("writes", [False, True], ids=["to an image", "to lists"])
@pytest.mark.parametrize("reads", [False, True], ids=["from an image", "from lists"])
@pytest.mark.parametrize("conv", WIDE, ids=str)
def test_lists_take_the_place_of_images(isa, conv, reads, writes, threads):
    conv = replace(conv, residual=False)
    tile, layout = default_skip_tile(isa, conv), output_lists(conv)
    kernel = compile_kernel(isa, conv2d_skip(isa, conv, tile, threads, writes, reads), threads)
    for zeros in (0.0, 0.8, 1.0):
        x, weight, bias, residual = operands(conv, zeros)
        given = listed(input_lists(conv), x) if reads else x.reshape(-1)
        packed = pack_conv2d_skip(isa, conv, tile, weight, bias)
        result = Output((layout.size if writes else conv.output_size,), "float32")
        (y,) = call(kernel, given, *packed, np.zeros(1, "float32"), result, threads=threads)
        wanted = reference(conv, x, weight, bias, residual)
        y = unlisted(layout, y) if writes else y
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", WIDE, ids=str)
def test_dense_convolutions_write_lists(isa, conv, threads):
    conv = replace(conv, residual=False)
    tile, layout = default_tile(isa, conv), output_lists(conv)
    kernel = compile_kernel(isa, conv2d(isa, conv, tile, threads, True), threads)
    x, weight, bias, residual = operands(conv)
    result = Output((layout.size,), "float32")
    packed = pack_conv2d(isa, tile, weight, bias)
    (y,) = call(kernel, x.reshape(-1), *packed, np.zeros(1, "float32"), result, threads=threads)
    wanted = reference(conv, x, weight, bias, residual)
    np.testing.assert_allclose(unlisted(layout, y).reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)
    if conv.activation == "relu":
        assert (
            y.reshape(layout.rows, -1)[0, layout.width : layout.width + 1].view("int32")[0]
            < layout.width * conv.outputs
        )


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    compile_kernel(level, conv2d_skip(level, SHAPES[0], default_skip_tile(level, SHAPES[0]), 1))
