"""Convolutions of bytes band by band, against the same ones one after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules.bf16_vectors import BF16, of_bf16, to_bf16
from schedules.byte_chain import ByteChain, can_chain
from schedules.chain_operands import pack_chain
from schedules.conv2d_byte_tile import default_byte_tile
from schedules.conv2d_chain import conv2d_chain
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, Isa, missing_flags
from schedules.pool import MaxPool2d, max_pool2d
from tests.schedules.conftest import Output, call, compile_kernel

AFFINES, RESULT = [Affine(0.03, 120), Affine(0.02, 3), Affine(0.04, 100), Affine(0.03, 0)], Affine(0.02, 5)


def convolution(width: int, inputs: int, outputs: int, kernel, padding, activation="relu", height=23) -> Conv2d:
    return Conv2d(1, height, width, inputs, outputs, kernel, padding=padding, activation=activation)


#: DNSMOS's first layers, narrow; kernels and padding of every kind, outputs no multiple of a vector; one row at a time.
CASES = {
    "pooled": ([(13, 1, 48, (3, 3), (1, 1, 1, 1)), (13, 48, 32, (3, 3), (1, 1, 1, 1))], (2, 2), "float32", "uint8"),
    "uneven": (
        [
            (9, 5, 21, (4, 2), (1, 0, 2, 1)),
            (9, 21, 37, (1, 1), (0, 0, 0, 0), "tanh"),
            (9, 37, 16, (2, 5), (0, 3, 1, 1), None),
        ],
        (3, 1),
        "uint8",
        "float32",
    ),
    "plain": (
        [(17, 64, 64, (3, 3), (1, 1, 1, 1)), (17, 64, 32, (3, 3), (1, 1, 1, 1), "relu6")],
        None,
        "uint8",
        "uint8",
    ),
    "narrow": ([(1, 20, 16, (3, 1), (2, 0, 0, 0)), (1, 16, 16, (3, 1), (0, 0, 2, 0))], None, "float32", "uint8"),
}


def case(name: str, room: int = 1 << 20) -> ByteChain:
    layers, window, source, result = CASES[name]
    convs = [convolution(*layer) for layer in layers]
    sources, results = [source, *["uint8"] * (len(convs) - 1)], ["uint8"] * (len(convs) - 1) + [result]
    pool = window and MaxPool2d(1, convs[-1].height, convs[-1].width, convs[-1].outputs, window, window)
    kinds = zip(convs, sources, results, sources, strict=True)
    return ByteChain(tuple(ByteConv(*each) for each in kinds), pool, room)


#: The same, each convolution on bytes or on bf16.
MIXED = {
    "pooled": ((BF16, BF16), BF16),
    "uneven": ((BF16, "uint8", BF16), "float32"),
    "plain": (("uint8", BF16), "uint8"),
    "narrow": ((BF16, BF16), "float32"),
}


def mixed(name: str, room: int) -> ByteChain:
    chain, (numbers, result) = case(name, room), MIXED[name]
    first = "float32" if chain.first.source == "float32" else numbers[0]
    kinds = zip(chain.convs, (first, *numbers[1:]), (*numbers[1:], result), numbers, strict=True)
    return replace(
        chain, convs=tuple(ByteConv(byte.conv, source, to, source, each) for byte, source, to, each in kinds)
    )


def one_by_one(isa: Isa, chain: ByteChain, x, weights, biases, affines, result) -> np.ndarray:
    for byte, weight, bias, source, target in zip(
        chain.convs, weights, biases, affines, [*affines[1:], result], strict=True
    ):
        tile = default_byte_tile(isa, byte)
        packed = pack_conv2d_int8(isa, byte, tile, weight, bias, source, target)
        kernel = compile_kernel(isa, conv2d_int8(isa, byte, tile, 1))
        (x,) = call(kernel, x, *packed, np.zeros(1, byte.residual), Output((byte.conv.output_size,), byte.result))
    if chain.pool:
        kernel = compile_kernel(isa, max_pool2d(isa, chain.pool, 1, chain.last.result))
        (x,) = call(kernel, x, Output((chain.pool.output_size,), chain.last.result))
    return x


@pytest.mark.parametrize("room", [1, 20_000, 1 << 20], ids=["least", "some", "whole"])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_gives_what_its_convolutions_give(byte_level, name, room, threads):
    check(byte_level, case(name, room), threads)


@pytest.mark.parametrize("room", [1, 20_000], ids=["least", "some"])
@pytest.mark.parametrize("name", MIXED)
def test_a_chain_of_bytes_and_bf16_gives_what_its_convolutions_give(name, room, threads):
    if missing_flags(ISAS["amx"]):
        pytest.skip("this CPU lacks AMX")
    check(ISAS["amx"], mixed(name, room), threads)


def check(isa: Isa, chain: ByteChain, threads: int):
    assert all(can_chain(byte.conv) for byte in chain.convs)
    assert chain.bands > 1 if chain.room == 1 else chain.bands == 1 or chain.room < 1 << 20
    rng = np.random.default_rng(0)
    convs = [byte.conv for byte in chain.convs]
    weights = [rng.standard_normal((c.outputs, *c.kernel, c.inputs)) / np.sqrt(c.taps) for c in convs]
    weights = [weight.astype("float32") for weight in weights]
    biases = [rng.standard_normal(c.outputs).astype("float32") for c in convs]
    kinds = [byte.numbers for byte in chain.convs]
    affines = [affine if kind == "uint8" else Affine(1.0) for affine, kind in zip(AFFINES, kinds, strict=False)]
    result = RESULT if chain.last.result == "uint8" else None
    x = rng.standard_normal(convs[0].input_size).astype("float32")
    if chain.first.source == "uint8":
        x = rng.integers(0, 256, convs[0].input_size).astype("uint8")
    elif chain.first.source == BF16:
        x = to_bf16(x)
    wanted = one_by_one(isa, chain, x, weights, biases, affines, result)
    packed = pack_chain(isa, chain, weights, biases, affines, result)
    kernel = compile_kernel(isa, conv2d_chain(isa, chain, threads), threads)
    (y,) = call(kernel, x, *packed, Output((chain.output_size,), chain.last.result), threads=threads)
    assert len(np.unique(wanted)) > 20
    if {BF16} & {*kinds, chain.last.result}:
        # Sums of floats are rounded as they are added, in an order that hangs on the tiles.
        y, wanted = (of_bf16(found) if chain.last.result == BF16 else found.astype("float32") for found in (y, wanted))
        assert np.abs(y - wanted).max() < (2 if chain.last.result == "uint8" else 0.1)
        assert np.abs(y - wanted).mean() < 1e-3 * np.abs(wanted).mean()
    else:
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(1, 9, 9, 16, 16, (3, 3), (2, 2), (1, 1, 1, 1)),
        Conv2d(1, 9, 9, 16, 16, (3, 3)),
        Conv2d(1, 9, 9, 16, 16, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
        Conv2d(2, 9, 9, 16, 16, (3, 3), padding=(1, 1, 1, 1)),
        Conv2d(1, 9, 9, 16, 16, (3, 3), padding=(1, 1, 1, 1), residual=True),
        Conv2d(1, 9, 9, 16, 15, (3, 3), padding=(1, 1, 1, 1)),
    ],
    ids=["stride", "no padding", "dilation", "batch", "residual", "few outputs"],
)
def test_what_cannot_be_part_of_a_chain(conv):
    assert not can_chain(conv)
