"""Convolutions of bf16, against NumPy on the values that bf16 stands for; images of bytes beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.bf16_vectors import BF16, of_bf16, to_bf16
from schedules.conv2d_byte_tile import ByteTile, byte_tiles, default_byte_tile
from schedules.conv2d_int8 import conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, missing_flags
from schedules.quantize import quantize_rows
from tests.schedules.conftest import Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, convolutions, operands, reference
from tests.schedules.test_conv2d_int8 import RESIDUAL, SOURCE, Affine, to_levels, to_values

AMX = ISAS["amx"]
pytestmark = pytest.mark.skipif(bool(missing_flags(AMX)), reason="this CPU lacks AMX, which bf16 is computed with")
#: Types of input, result and image to be added.
TYPES = [("float32",) * 3, (BF16,) * 3, ("float32", BF16, "float32"), (BF16, "float32", "uint8"), (BF16, "uint8", BF16)]


def given_as(values: np.ndarray, kind: str, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Return values as an image of a type, and what that stands for."""
    if kind == "uint8":
        levels = to_levels(values, affine)
        return levels, to_values(levels, affine)
    return (to_bf16(values), of_bf16(to_bf16(values))) if kind == BF16 else (values, values)


def check(conv: Conv2d, types: tuple[str, str, str], threads: int, tile: ByteTile | None = None, numbers: str = BF16):
    byte = ByteConv(conv, *types, numbers)
    tile = tile or default_byte_tile(AMX, byte)
    x, weight, bias, residual = operands(conv)
    given_x, x = given_as(x, types[0], SOURCE)
    given_residual, residual = given_as(residual, types[2], RESIDUAL)
    result = None
    if types[1] == "uint8":
        result = Affine(0.025, 0) if conv.activation in ("relu", "relu6", "sigmoid") else Affine(0.04, 128)
    packed = pack_conv2d_int8(AMX, byte, tile, weight, bias, SOURCE, result, RESIDUAL if types[2] == "uint8" else None)
    if numbers == BF16:
        x, weight = of_bf16(to_bf16(x)), of_bf16(to_bf16(weight))
    else:
        x = to_values(to_levels(x, SOURCE), SOURCE)
        weight = quantize_rows(weight.reshape(len(weight), -1)).dequantized().reshape(weight.shape)
    wanted = reference(conv, x, weight, bias, residual)
    kernel = compile_kernel(AMX, conv2d_int8(AMX, byte, tile, threads), threads)
    given = given_residual.reshape(-1)[: conv.residual_size]
    (y,) = call(kernel, given_x.reshape(-1), *packed, given, Output((conv.output_size,), types[1]), threads=threads)
    y = y.reshape(wanted.shape)
    if types[1] == "float32":
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    elif types[1] == BF16:
        # Sums are added in another order; what lies half between two values may become either.
        np.testing.assert_allclose(of_bf16(y), wanted, rtol=2**-7, atol=1e-4)
        assert (y != to_bf16(wanted)).mean() < 0.02 or (y != to_bf16(wanted)).sum() <= 2
    else:
        found, levels = y.astype(int), to_levels(wanted, result).astype(int)
        assert np.abs(found - levels).max() <= 1
        assert (found != levels).mean() < 0.01 or (found != levels).sum() <= 2


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_convolutions_of_bf16_match_numpy(conv, types, threads):
    check(conv, types, threads)


@pytest.mark.parametrize("types", TYPES[:2], ids=str)
@pytest.mark.parametrize("form", ["rows", "whole", "spread"])
@pytest.mark.parametrize("pixels, tiles, vectors, rows", [(1, 1, 1, 1), (5, 2, 2, 2), (3, 1, 3, 4)])
def test_any_tile_gives_the_same(form, types, pixels, tiles, vectors, rows):
    conv = Conv2d(2, 7, 6, 20, 57, (3, 2), padding=(1, 0, 1, 1), activation="relu", residual=True)
    check(conv, types, 1, ByteTile(pixels, tiles, vectors, rows, form))


@pytest.mark.parametrize("types", TYPES[:2], ids=str)
@pytest.mark.parametrize("conv", [Conv2d(1, 9, 8, 64, 48, (1, 1)), Conv2d(2, 6, 6, 32, 32, (3, 2), (2, 2))], ids=str)
def test_images_without_padding(conv, types, threads):
    assert ByteConv(conv, BF16, numbers=BF16).direct and not ByteConv(conv, numbers=BF16).direct
    check(conv, types, threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(conv=convolutions(), types=st.sampled_from(TYPES), threads=st.integers(1, 2))
def test_convolutions_of_bf16_match_numpy_at_any_shape(conv, types, threads):
    check(conv, types, threads)


@pytest.mark.parametrize("types", [(BF16, "uint8", BF16), ("uint8", BF16, "uint8"), (BF16, BF16, "float32")], ids=str)
@pytest.mark.parametrize("conv", SHAPES[:3], ids=str)
def test_convolutions_of_bytes_read_and_write_bf16(conv, types, threads):
    check(conv, types, threads, numbers="uint8")


def test_what_steps_read_beyond_the_image_counts_nothing():
    # 3 taps of 20 channels fill two steps but for four values; those of the last pixel lie behind the copy of the
    # image, where memory holds what a larger convolution, whose image is no number anywhere, left there.
    conv = Conv2d(1, 3, 3, 20, 16, (3, 3), padding=(1, 1, 1, 1))
    byte = ByteConv(replace(conv, height=9), numbers=BF16)
    tile = ByteTile(3, 1, 1, 9, "rows")
    packed = pack_conv2d_int8(AMX, byte, tile, *operands(byte.conv)[1:3])
    before = compile_kernel(AMX, conv2d_int8(AMX, byte, tile, 1))
    nothing = np.full(byte.conv.input_size, np.nan, "float32")
    for form in ("rows", "whole", "spread"):
        out = Output((byte.conv.output_size,), "float32")
        before(*map(tvm.runtime.tensor, (nothing, *packed, np.zeros(1, "float32"), np.zeros(out.shape, "float32"))))
        check(conv, TYPES[0], 1, ByteTile(3, 1, 1, 3, form))


def test_without_tiles_there_is_no_bf16():
    assert not byte_tiles(ISAS["avx512_vnni"], ByteConv(SHAPES[0], numbers=BF16))


def test_rounding_is_to_nearest_ties_to_even():
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 0.0, -0.0, np.inf], "float32")
    np.testing.assert_array_equal(of_bf16(to_bf16(ties)), [1, 1 + 2**-6, -1, 1 + 2**-7, 0, 0, np.inf])
    ties = ties[:-1]
    conv = Conv2d(1, 1, 6, 1, 32, (1, 1))
    byte = ByteConv(conv, "float32", BF16, numbers=BF16)
    tile = default_byte_tile(AMX, byte)
    packed = pack_conv2d_int8(AMX, byte, tile, np.ones((32, 1, 1, 1), "float32"), np.zeros(32, "float32"))
    kernel = compile_kernel(AMX, conv2d_int8(AMX, byte, tile, 1))
    (y,) = call(kernel, ties, *packed, np.zeros(1, "float32"), Output((conv.output_size,), BF16))
    np.testing.assert_array_equal(of_bf16(y.reshape(6, 32)), of_bf16(to_bf16(ties))[:, None].repeat(32, 1))
