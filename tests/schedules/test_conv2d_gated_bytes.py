"""Gated convolutions of bytes and of bf16: open tiles are those of the dense kernel, closed ones what predicts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.bf16_vectors import BF16, of_bf16, to_bf16
from schedules.conv2d_byte_tile import default_byte_tile
from schedules.conv2d_gated import gate_panels
from schedules.conv2d_gated_bytes import gated_conv2d_bytes
from schedules.conv2d_gated_tiles import default_gated_tiles, spread_conv
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, Isa, missing_flags
from schedules.words import stored_taps
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, after, convolutions, operands, reference
from tests.schedules.test_conv2d_bf16 import given_as
from tests.schedules.test_conv2d_int8 import RESIDUAL, SOURCE, to_levels, to_values

AMX = ISAS["amx"]
#: Scale and zero point of the few channels.
LEVELS = Affine(0.01, 128)
#: Types of input, result and image to be added.
BYTES = [("uint8", "uint8", "uint8"), ("float32", "float32", "float32"), ("uint8", BF16, "float32")]
HALVES = [(BF16, BF16, BF16), ("float32", "uint8", "uint8"), (BF16, "float32", BF16)]
#: Steps that are copied by fours, threes, twos and one by one; pixels that are no multiple of 16; several bands.
LARGER = [
    Conv2d(1, 7, 9, 64, 64, (3, 3), padding=(1, 1, 1, 1), activation="relu"),
    Conv2d(2, 5, 11, 128, 40, (1, 1), (2, 1), activation="relu6", residual=True),
    Conv2d(1, 6, 6, 256, 80, (3, 3), (2, 2), (1, 1, 1, 1), activation=None),
    Conv2d(1, 9, 5, 33, 96, (2, 2), activation="sigmoid"),
]


def limits_of(outputs: int, kind: str) -> np.ndarray:
    """Return limits that open no tile, all of them, or some."""
    if kind != "some":
        return np.stack([np.zeros(outputs), np.ones(outputs), np.full(outputs, 2.0 * (kind == "all"))])
    rng = np.random.default_rng(5)
    harm = rng.uniform(0.2, 0.6, outputs) * (32 / max(16, min(outputs, 32))) ** 0.5
    return np.stack([rng.uniform(0.3, 1, outputs), rng.uniform(-0.5, 0.8, outputs), harm])


def check(isa: Isa, conv: Conv2d, types, numbers: str, threads: int, gates=("none", "some", "all"), few: int = 16):
    conv = replace(conv, outputs=max(conv.outputs, 16))
    byte = ByteConv(conv, *types, numbers)
    spread, outputs, pixels = spread_conv(byte, few), conv.outputs, conv.output_size // conv.outputs
    x, weight, bias, residual = operands(conv)
    given_x, x = given_as(x, types[0], SOURCE)
    given_residual, residual = given_as(residual, types[2], RESIDUAL)
    rng = np.random.default_rng(2)
    z, rows = rng.standard_normal((pixels, few)), rng.standard_normal((outputs, 1, 1, few)).astype("float32")
    rows, rows_bias = rows / np.sqrt(few).astype("float32"), rng.standard_normal(outputs).astype("float32")
    given_z, z = given_as(z.astype("float32"), numbers, LEVELS)
    result = None
    if types[1] == "uint8":
        result = Affine(0.025, 0) if conv.activation in ("relu", "relu6", "sigmoid") else Affine(0.04, 128)
    added, none = (RESIDUAL if types[2] == "uint8" else None), given_residual.reshape(-1)[: conv.residual_size]
    tiles = default_gated_tiles(isa, byte, few)
    thin = pack_conv2d_int8(isa, spread, tiles.spread, rows, rows_bias, LEVELS, result, added)
    big = pack_conv2d_int8(isa, byte, tiles.open, weight, bias, SOURCE, result, added)
    if numbers == BF16:
        x, weight, rows = (of_bf16(to_bf16(values)) for values in (x, weight, rows))
    else:
        x = to_values(to_levels(x, SOURCE), SOURCE)
        weight = stored_taps(isa, weight.reshape(outputs, -1), conv.runs[1]).reshape(weight.shape)
        rows = stored_taps(isa, rows.reshape(outputs, -1), few)
    exact = reference(conv, x, weight, bias, residual).reshape(pixels, outputs)
    sums = z @ rows.reshape(outputs, few).T + rows_bias
    seen = sums + (residual.reshape(sums.shape) if conv.residual else 0)
    closed = after(conv, sums, residual)
    kernel = compile_kernel(isa, gated_conv2d_bytes(isa, byte, few, tiles, threads), threads)
    tile = default_byte_tile(isa, byte)
    dense = compile_kernel(isa, conv2d_int8(isa, byte, tile, 1))
    packed = pack_conv2d_int8(
        isa, byte, tile, bias=bias, weight=operands(conv)[1], source=SOURCE, result=result, residual=added
    )
    out = Output((conv.output_size,), types[1])
    (whole,) = call(dense, given_x.reshape(-1), *packed, none, out)
    for gate in gates:
        limits = limits_of(outputs, gate).astype("float32")
        given = (given_x.reshape(-1), given_z.reshape(-1), *thin, limits, *big, none)
        y, count = call(kernel, *given, out, Output((1,), "int32"), threads=threads)
        harms = (limits[2] * np.clip(limits[0] * seen + limits[1], 0, 1)) ** 2
        is_open, sure, opened = np.zeros(seen.shape, bool), np.ones(seen.shape, bool), []
        for panel in gate_panels(isa, conv):
            total = harms[:, panel].sum(axis=1)
            is_open[:, panel] |= (total > 1)[:, None]
            sure[:, panel] &= (np.abs(total - 1) > 1e-4)[:, None]
            opened.append(total > 1)
        assert abs(int(count[0]) - np.sum(opened)) <= (~sure).any(axis=1).sum()
        assert gate != "none" or count[0] == 0
        if gate == "all":
            assert count[0] == np.size(opened)
            if types[1] != BF16 and numbers != BF16:
                np.testing.assert_array_equal(y, whole)
        compare(y.reshape(seen.shape)[sure], np.where(is_open, exact, closed)[sure], types[1], result)
    return opened


def compare(found: np.ndarray, wanted: np.ndarray, kind: str, result: Affine | None) -> None:
    if kind == "float32":
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    elif kind == BF16:
        np.testing.assert_allclose(of_bf16(found), wanted, rtol=2**-7, atol=1e-4)
    else:
        found, levels = found.astype(int), to_levels(wanted, result).astype(int)
        assert np.abs(found - levels).max(initial=0) <= 1
        assert (found != levels).mean() < 0.01 or (found != levels).sum() <= 2


@pytest.mark.parametrize("types", BYTES, ids=str)
@pytest.mark.parametrize("conv", [*SHAPES, *LARGER], ids=str)
def test_gated_convolutions_of_bytes_match_numpy(byte_level, conv, types, threads):
    if BF16 in types and not byte_level.amx:
        pytest.skip(f"{byte_level.name} has no bf16")
    check(byte_level, conv, types, "uint8", threads)


@pytest.mark.parametrize("types", HALVES, ids=str)
@pytest.mark.parametrize("conv", [SHAPES[1], *LARGER], ids=str)
@pytest.mark.skipif(bool(missing_flags(AMX)), reason="this CPU lacks AMX")
def test_gated_convolutions_of_bf16_match_numpy(conv, types, threads):
    check(AMX, conv, types, BF16, threads)


@pytest.mark.parametrize("isa", [isa for isa in ISAS.values() if not isa.amx], ids=lambda isa: isa.name)
def test_every_level_compiles(isa):
    byte = ByteConv(LARGER[0], "uint8", "uint8", "uint8")
    compile_kernel(isa, gated_conv2d_bytes(isa, byte, 16, default_gated_tiles(isa, byte, 16), 1))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    conv=convolutions(),
    numbers=st.sampled_from(["uint8", BF16]),
    threads=st.integers(1, 2),
    few=st.sampled_from([16, 80]),
)
def test_gated_convolutions_match_numpy_at_any_shape(isa, conv, numbers, threads, few):
    numbers = numbers if isa.amx else "uint8"
    check(isa, conv, (BYTES if numbers == "uint8" else HALVES)[0], numbers, threads, ["some"], few)
