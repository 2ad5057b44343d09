"""Little modules: many rows over few inputs, in bytes, half bytes or quarters of a byte.

After the projection a little module is a matrix with as many rows as its site but only tens of
columns, so a reduction at the end of each row would cost more than the row. Here one vector holds
a piece of 16 rows and the input is broadcast; sums never leave their lane. At 4 bits two such
vectors share one, at 2 bits four, which divides the bytes that every call must read.

Weights below a byte are stored as codes, the unsigned operand of the dot product; the input is
then the signed one. A weight is ``scale * (step * code - offset)`` (`CODES`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import chunk, dot4, horizontal_max, magnitude_bits, span
from schedules.knobs import LITTLE, LittleKnobs
from schedules.quantize import quantize_rows, round_up

#: Bytes of one lane of a dot product.
QUAD = 4


@dataclass(frozen=True)
class Codes:
    """How weights below a byte are stored: ``step * code - offset``, codes counting from zero."""

    step: int
    offset: int


#: By bits: the values of `schedules.quantize.quantize_rows`, -7 to 7, or -3, -1, 1 and 3.
CODES = {4: Codes(step=1, offset=8), 2: Codes(step=2, offset=3)}


def padded_inputs(k: int) -> int:
    """Return the length of the little module's quantized input of `k` values."""
    return round_up(k, QUAD)


def rows_per_group(isa: Isa, bits: int, knobs: LittleKnobs) -> int:
    """Return how many rows one group of interleaved vectors holds."""
    return isa.lanes * knobs.loads * (8 // bits)


def packed_size(isa: Isa, n: int, k: int, bits: int, knobs: LittleKnobs = LITTLE) -> int:
    """Return the bytes of the packed weights of `n` rows over `k` inputs."""
    group = rows_per_group(isa, bits, knobs)
    return -(-n // group) * (padded_inputs(k) // QUAD) * knobs.loads * isa.vector_bytes


def pack_little(
    isa: Isa, weight: np.ndarray, bias: np.ndarray, bits: int, knobs: LittleKnobs = LITTLE
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: i8[...], meta: f32[3, n padded])`` of `little_rows`.

    Parameters
    ----------
    weight : ndarray, float32, (n, k)
    bias : ndarray, float32, (n,)
    bits : int
        8, 4 or 2.
    knobs : LittleKnobs
        Of the kernel that will read them.
    """
    n, k = weight.shape
    group, lanes, quads = rows_per_group(isa, bits, knobs), isa.lanes, padded_inputs(k) // QUAD
    padded = round_up(n, group)
    quantized = quantize_rows(weight, bits)
    values = np.zeros((padded, quads * QUAD), "int8")
    values[:n, :k] = quantized.values
    # (groups, vectors of a group, lanes, quads, 4) -> (groups, quads, vectors, lanes, 4)
    blocks = values.reshape(padded // group, group // lanes, lanes, quads, QUAD).transpose(0, 3, 1, 2, 4)
    meta = np.zeros((3, padded), "float32")
    if bits in CODES:
        codes, shared = CODES[bits], 8 // bits
        unsigned = ((blocks + codes.offset) // codes.step).astype("uint8")
        parts = [unsigned[:, :, part::shared] << (bits * part) for part in range(shared)]
        blocks = np.bitwise_or.reduce(parts).view("int8")
        meta[:2, :n] = np.array([[codes.step], [codes.offset]]) * quantized.scale
    else:
        meta[:2, :n] = quantized.scale
        meta[1, :n] *= quantized.values.sum(axis=1, dtype="int64")
    meta[2, :n] = bias
    return np.ascontiguousarray(blocks).reshape(-1), meta


def quantize_projection(isa: Isa, k: int, bits: int):
    """Return the kernel ``(z: f32[k]) -> (q: u8[k padded to 4], affine: f32[2])``.

    ``affine`` is the scale and what `little_rows` subtracts times ``meta[1]``: the zero point of
    unsigned activations (8-bit weights), or the sum of the signed ones (weights below a byte), whose
    bytes stand in ``q``.
    """
    padded, width = padded_inputs(k), chunk(isa, k)
    signed = bits in CODES
    levels = float(min(127, isa.activation_levels)) if signed else float(isa.activation_levels // 2)

    @T.prim_func(s_tir=True, private=True)
    def quantize(z: T.Buffer((k,), "float32"), q: T.Buffer((padded,), "uint8"), affine: T.Buffer((2,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("quantize"):
            T.reads(z[0:k])
            T.writes(q[0:padded], affine[0:2])
            largest = T.alloc_buffer((1,), "float32", scope="local")
            inverse = T.alloc_buffer((1,), "float32", scope="local")
            total = T.alloc_buffer((1,), "int32", scope="local")
            # Magnitudes compare as their bits do; the last vector may overlap the one before it.
            magnitudes = T.alloc_buffer((width,), "int32", scope="local")
            for i in T.unroll(width):
                magnitudes[i] = 0
            for c in T.serial(-(-k // width)):
                magnitudes[span(0, width)] = T.max(
                    magnitudes[span(0, width)], magnitude_bits(z[span(T.min(c * width, k - width), width)], width)
                )
            largest[0] = T.max(
                T.reinterpret(horizontal_max(magnitudes[span(0, width)], width), dtype="float32"), T.float32(1e-30)
            )
            inverse[0] = T.float32(levels) / largest[0]
            affine[0] = largest[0] * T.float32(1.0 / levels)
            if signed:
                total[0] = 0
                for i in T.serial(k):
                    rounded: T.let = T.Cast("int32", T.floor(z[i] * inverse[0] + T.float32(0.5)))
                    total[0] = total[0] + rounded
                    q[i] = T.reinterpret(T.Cast("int8", rounded), dtype="uint8")
                affine[1] = T.Cast("float32", total[0])
            else:
                affine[1] = T.float32(levels)
                for i in T.serial(k):
                    q[i] = T.Cast("uint8", T.Cast("int32", z[i] * inverse[0] + T.float32(levels + 0.5)))
            for i in T.serial(padded - k):
                q[k + i] = T.uint8(0)

    return quantize


def little_rows(isa: Isa, n: int, k: int, bits: int, threads: int, knobs: LittleKnobs = LITTLE):
    """Return the kernel ``(q, affine, weight, meta) -> y: f32[n]``.

    ``q``, ``affine`` from `quantize_projection`; ``weight``, ``meta`` from `pack_little`.
    """
    step, lanes, quads = isa.vector_bytes, isa.lanes, padded_inputs(k) // QUAD
    group, loads, unroll = rows_per_group(isa, bits, knobs), knobs.loads, knobs.unroll
    padded = round_up(n, group)
    groups, vectors, shared = padded // group, group // lanes, 8 // bits
    size, length = packed_size(isa, n, k, bits, knobs), quads * QUAD
    # The lowest code of each of the four bytes of a lane.
    mask = (2**bits - 1) * 0x01010101

    def codes(packed, part):
        words = T.reinterpret(packed, dtype=f"int32x{lanes}") >> T.broadcast(bits * part, lanes)
        return T.reinterpret(words & T.broadcast(mask, lanes), dtype=f"int8x{step}")

    def product(total, spread, packed, part):
        if bits in CODES:
            return dot4(isa, total, codes(packed, part), spread)
        return dot4(isa, total, spread, packed)

    @inline
    def add_quad(q, weight, total, g, c):
        four: T.let = T.reinterpret(q[T.ramp(c * QUAD, 1, QUAD)], dtype="int32")
        spread: T.let = T.reinterpret(T.broadcast(four, lanes), dtype=f"int8x{step}")
        for v in T.unroll(vectors):
            load: T.let = (g * quads + c) * loads + v // shared
            packed: T.let = weight[T.ramp(load * step, 1, step)]
            total[v, T.ramp(0, 1, lanes)] = product(total[v, T.ramp(0, 1, lanes)], spread, packed, v % shared)

    @T.prim_func(s_tir=True, private=True)
    def little(
        q: T.Buffer((length,), "uint8"),
        affine: T.Buffer((2,), "float32"),
        weight: T.Buffer((size,), "int8"),
        meta: T.Buffer((3, padded), "float32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for task in T.parallel(threads):
            with T.sblock("little"):
                vt = T.axis.spatial(threads, task)
                T.reads(q[0:length], affine[0:2], weight[0:size], meta[0:3, 0:padded])
                T.writes(y[0:n])
                sums = T.sblock_alloc_buffer((group,), "int32")
                for g in T.serial(vt * groups // threads, (vt + 1) * groups // threads):
                    total = T.alloc_buffer((vectors, lanes), "int32", scope="local")
                    for v in T.unroll(vectors):
                        total[v, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
                    for c in T.serial(quads // unroll):
                        for i in T.unroll(unroll):
                            add_quad(q, weight, total, g, c * unroll + i)
                    for i in T.serial(quads % unroll):
                        add_quad(q, weight, total, g, quads // unroll * unroll + i)
                    for v in T.unroll(vectors):
                        sums[T.ramp(v * lanes, 1, lanes)] = total[v, T.ramp(0, 1, lanes)]
                    for i in T.serial(T.min(group, n - g * group)):
                        y[g * group + i] = (
                            affine[0]
                            * (meta[0, g * group + i] * T.Cast("float32", sums[i]) - affine[1] * meta[1, g * group + i])
                            + meta[2, g * group + i]
                        )

    return little
