"""Operands of gated rows: lists of open rows, and rows of weights as the kernels read them."""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.quantize import quantize_rows, round_up

#: Entries that a gate writes behind its list. Kernels with more rows in flight stop at the last row themselves.
SIDE_BY_SIDE = 4


def list_length(n: int) -> int:
    """Length of a list of open rows: the tail of a list repeats its last row to fill a group."""
    return n + SIDE_BY_SIDE


def every_row(n: int) -> np.ndarray:
    """Return the list, ``int32 (list_length(n),)``, that opens all of `n` rows."""
    return np.minimum(np.arange(list_length(n)), n - 1).astype("int32")


#: Bytes of the numbers behind a row of bytes.
NUMBERS = 12


def row_stride(isa: Isa, k: int) -> int:
    """Return the bytes from one packed row of `k` weights to the next."""
    return round_up(k + NUMBERS, isa.row_bytes)


def number(weight, start, i: int):
    """Return the `i`-th of the three floats at the byte `start` of a packed operand."""
    return T.reinterpret(weight[T.ramp(start + 4 * i, 1, 4)], dtype="float32")


def pack_rows_int8(isa: Isa, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the operand ``weight: i8[n * row_stride]`` of `gated_rows_int8`.

    A row's bytes are followed, at the end of its stride, by three floats: scale, scale times sum of
    bytes (what the zero point multiplies), bias. In an array of their own they would cost an open
    row another cache line; here they mostly fit in what rounds the row up to whole lines.
    """
    n, k = weight.shape
    quantized = quantize_rows(weight)
    packed = np.zeros((n, row_stride(isa, k)), "int8")
    packed[:, :k] = quantized.values
    numbers = np.zeros((n, 3), "float32")
    numbers[:, 0] = quantized.scale
    numbers[:, 1] = quantized.scale * quantized.values.sum(axis=1, dtype="int64")
    numbers[:, 2] = 0 if bias is None else bias
    packed[:, -NUMBERS:] = numbers.view("int8")
    return {"weight": packed.reshape(-1)}


def pack_rows_fp32(isa: Isa, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the operands ``weight: f32[n * k padded], bias: f32[n]`` of `gated_rows_fp32`.

    The last vector of a row belongs to the last inputs, not to what is left of them: the kernel reads
    whole vectors of an input that is not padded. What it has read before meets zeros.
    """
    n, k = weight.shape
    whole, rest = k // isa.lanes * isa.lanes, k % isa.lanes
    packed = np.zeros((n, round_up(k, isa.lanes)), "float32")
    packed[:, :whole] = weight[:, :whole]
    if rest:
        last = slice(-rest, None) if whole else slice(whole, k)
        packed[:, last] = weight[:, whole:]
    return {"weight": packed.reshape(-1), "bias": np.zeros(n, "float32") if bias is None else bias.astype("float32")}
