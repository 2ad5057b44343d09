"""Convolutions of bytes, against NumPy on the values that the bytes stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.conv2d_byte_tile import ByteTile, default_byte_tile
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, Isa, missing_flags
from schedules.words import stored_taps
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, convolutions, operands, reference

TYPES = [("float32", "float32"), ("uint8", "uint8"), ("float32", "uint8"), ("uint8", "float32")]
SOURCE, RESIDUAL = Affine(0.03, 120), Affine(0.02, 131)


def to_levels(values: np.ndarray, affine: Affine) -> np.ndarray:
    """Return values as bytes."""
    levels = values.astype("float32") * np.float32(1 / affine.scale) + np.float32(affine.zero + 0.5)
    return np.clip(levels, 0, 255).astype("uint8")


def to_values(levels: np.ndarray, affine: Affine) -> np.ndarray:
    """Return what bytes stand for."""
    return (levels.astype("float32") - affine.zero) * np.float32(affine.scale)


def check(isa: Isa, conv: Conv2d, types: tuple[str, str], threads: int, tile: ByteTile | None = None):
    byte = ByteConv(conv, *types, types[0])
    tile = tile or default_byte_tile(isa, byte)
    x, weight, bias, residual = operands(conv)
    given_x, given_residual = x, residual.reshape(-1)[: conv.residual_size]
    q = to_levels(x, SOURCE)
    if types[0] == "uint8":
        given_x, given_residual = q, to_levels(given_residual, RESIDUAL)
        residual = to_values(to_levels(residual, RESIDUAL), RESIDUAL)
    rows = stored_taps(isa, weight.reshape(len(weight), -1), conv.runs[1])
    wanted = reference(conv, to_values(q, SOURCE), rows.reshape(weight.shape), bias, residual)
    result = None
    if types[1] == "uint8":
        result = Affine(0.025, 0) if conv.activation in ("relu", "relu6", "sigmoid") else Affine(0.04, 128)
    affines = (SOURCE, result, RESIDUAL if types[0] == "uint8" else None)
    packed = pack_conv2d_int8(isa, byte, tile, weight, bias, *affines)
    kernel = compile_kernel(isa, conv2d_int8(isa, byte, tile, threads), threads)
    out = Output((conv.output_size,), types[1])
    (y,) = call(kernel, given_x.reshape(-1), *packed, given_residual, out, threads=threads)
    y = y.reshape(wanted.shape)
    if result is None:
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    else:
        found, levels = y.astype(int), to_levels(wanted, result).astype(int)
        # Sums of floats are rounded: what lies half between two levels may become either.
        assert np.abs(found - levels).max() <= 1
        assert (found != levels).mean() < 0.01 or (found != levels).sum() == 1


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_of_bytes_match_numpy(byte_level, conv, types, threads):
    check(byte_level, conv, types, threads)


@pytest.mark.parametrize("types", TYPES[:2], ids=str)
@pytest.mark.parametrize("form", ["rows", "whole", "spread"])
@pytest.mark.parametrize("pixels, tiles, vectors, rows", [(1, 1, 1, 1), (5, 2, 2, 2), (3, 1, 3, 4)])
def test_any_tile_gives_the_same(byte_level, form, types, pixels, tiles, vectors, rows):
    conv = Conv2d(2, 7, 6, 20, 57, (3, 2), padding=(1, 0, 1, 1), activation="relu", residual=True)
    check(byte_level, conv, types, 1, ByteTile(pixels, tiles if byte_level.amx else 1, vectors, rows, form))


def test_pixels_between_rows_are_overwritten(byte_level):
    # Columns 15 and 16 of the first tile's line are nobody's, and lie where the second tile's pixels are written.
    conv = Conv2d(1, 6, 15, 64, 32, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    check(
        byte_level, conv, TYPES[1], 1, ByteTile(16 if byte_level.amx else 12, 2 if byte_level.amx else 1, 2, 6, "whole")
    )


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
def test_dot_products_where_tiles_exist(types, vectors):
    if missing_flags(ISAS["amx"]):
        pytest.skip("this CPU lacks AMX")
    conv = Conv2d(1, 7, 9, 1, 70, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    check(ISAS["amx"], conv, types, 1, ByteTile(5, 1, vectors, 4, "rows", matrix=False))


@pytest.mark.parametrize("conv", [Conv2d(1, 9, 8, 64, 48, (1, 1)), Conv2d(2, 6, 6, 32, 32, (3, 2), (2, 2))], ids=str)
def test_bytes_that_need_no_copy(byte_level, conv, threads):
    byte = ByteConv(conv, "uint8", "uint8")
    assert byte.direct
    check(
        byte_level,
        conv,
        TYPES[1],
        threads,
        replace(default_byte_tile(byte_level, byte), form="rows", pixels=3, tiles=1),
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(conv=convolutions(), types=st.sampled_from(TYPES), threads=st.integers(1, 2), data=st.data())
def test_convolutions_of_bytes_match_numpy_at_any_shape(conv, types, threads, data):
    check(data.draw(st.sampled_from(RUNNABLE)), conv, types, threads)


@pytest.mark.parametrize("inputs", [16, 3])
def test_largest_bytes_and_weights_of_one_sign_do_not_overflow(byte_level, inputs):
    conv = Conv2d(1, 5, 6, inputs, 32, (3, 3), padding=(1, 1, 1, 1))
    byte, rng = ByteConv(conv, "uint8", "float32"), np.random.default_rng(0)
    tile = default_byte_tile(byte_level, byte)
    weight = (1 + 0.1 * rng.random((32, 3, 3, inputs))).astype("float32")
    weight[::2] *= -1
    rows = stored_taps(byte_level, weight.reshape(32, -1), conv.runs[1]).reshape(weight.shape)
    x, nothing = np.full((1, 5, 6, inputs), 255, "uint8"), np.zeros(32, "float32")
    packed = pack_conv2d_int8(byte_level, byte, tile, weight, nothing)
    kernel = compile_kernel(byte_level, conv2d_int8(byte_level, byte, tile, 1))
    (y,) = call(kernel, x.reshape(-1), *packed, np.zeros(1, "float32"), Output((conv.output_size,), "float32"))
    wanted = reference(conv, x.astype("float32"), rows, nothing, np.zeros((1, 5, 6, 32), "float32"))
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS.values(), ids=lambda level: level.name)
def test_every_level_compiles(isa):
    byte = ByteConv(SHAPES[0])
    compile_kernel(isa, conv2d_int8(isa, byte, default_byte_tile(isa, byte), 1))


def test_the_extremes_of_bytes_add_up_exactly(isa):
    conv = Conv2d(1, 4, 5, 200, 32, (3, 3), padding=(1, 1, 1, 1))
    byte = ByteConv(conv, "uint8", "float32", "uint8")
    tile = default_byte_tile(isa, byte)
    weight = np.where(np.arange(32)[:, None, None, None] % 2, 1.0, -1.0) * np.ones((32, 3, 3, 200), "float32")
    packed = pack_conv2d_int8(isa, byte, tile, weight.astype("float32"), np.zeros(32, "float32"), Affine(1.0))
    x = np.full(conv.input_size, 255, "uint8")
    kernel = compile_kernel(isa, conv2d_int8(isa, byte, tile, 1))
    (y,) = call(kernel, x, *packed, np.zeros(1, "uint8"), Output((conv.output_size,), "float32"))
    inside = y.reshape(4, 5, 32)[1:3, 1:4]
    np.testing.assert_allclose(inside, np.broadcast_to(255.0 * 1800 * weight[:, 0, 0, 0], inside.shape), rtol=1e-6)
