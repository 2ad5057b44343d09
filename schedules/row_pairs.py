"""Gated row pairs: the input's and the state's product of a recurrent layer, from one list of open rows.

A gate unit's two rows, ``W[i]`` and ``U[i]``, lie one behind the other. Read together they are a run
twice as long, which the hardware prefetcher follows better than two short ones: measured on rows
of 640 bytes scattered over the last level cache, 21 GB/s instead of 15.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.dense import group_int8, listed_row
from schedules.knobs import ROWS, RowKnobs
from schedules.quantize import round_up
from schedules.row_operands import list_length, pack_rows_int8, row_stride


def pack_pairs_int8(isa: Isa, input_: tuple[np.ndarray, np.ndarray], state: tuple[np.ndarray, np.ndarray]):
    """Return the operand ``weight: i8[n * strides]`` of `row_pairs_int8` from two pairs of weight and bias."""
    n = len(input_[0])
    halves = [pack_rows_int8(isa, weight, bias)["weight"].reshape(n, -1) for weight, bias in (input_, state)]
    return {"weight": np.concatenate(halves, axis=1).reshape(-1)}


def row_pairs_int8(isa: Isa, n: int, k: int, h: int, threads: int, knobs: RowKnobs = ROWS):
    """Return the kernel ``(q, affine, p, range, weight, rows, count, given, hidden) -> (y, z)``.

    Operands: ``q: u8[k padded]``, ``affine: f32[2]`` the quantized input, ``p: u8[h padded]``,
    ``range: f32[2]`` the quantized state; ``weight`` from `pack_pairs_int8`; ``rows:
    i32[list_length(n)]``, ``count: i32[1]`` the open rows; ``given, hidden: f32[n]`` the values of
    closed rows. Results ``y, z: f32[n]``: the input's and the state's half.
    """
    padded, stride = round_up(k, isa.row_bytes), row_stride(isa, k)
    padded_h, both = round_up(h, isa.row_bytes), stride + row_stride(isa, h)
    width, length = knobs.side_by_side, list_length(n)
    input_group, state_group = group_int8(isa, k, both, knobs), group_int8(isa, h, both, knobs, stride)

    @T.prim_func(s_tir=True, private=True)
    def row_pairs(
        q: T.Buffer((padded,), "uint8"),
        affine: T.Buffer((2,), "float32"),
        p: T.Buffer((padded_h,), "uint8"),
        range_: T.Buffer((2,), "float32"),
        weight: T.Buffer((n * both,), "int8"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
        given: T.Buffer((n,), "float32"),
        hidden: T.Buffer((n,), "float32"),
        y: T.Buffer((n,), "float32"),
        z: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for i in T.serial(n):
            with T.sblock("closed"):
                vi = T.axis.spatial(n, i)
                y[vi] = given[vi]
                z[vi] = hidden[vi]
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    q[0:padded], affine[0:2], p[0:padded_h], range_[0:2], weight[0 : n * both], rows[0:length], count[0]
                )
                T.writes(y[0:n], z[0:n])
                groups: T.let = (count[0] + (width - 1)) // width
                first: T.let = vt * groups // threads
                last: T.let = (vt + 1) * groups // threads
                for g in T.serial(first, last):
                    base = T.alloc_buffer((width,), "int32", scope="local")
                    following = T.alloc_buffer((width,), "int32", scope="local")
                    for r in T.unroll(width):
                        base[r] = listed_row(knobs, rows, count, g * width + r)
                        following[r] = listed_row(knobs, rows, count, T.min(g + 1, last - 1) * width + r)
                    input_group(q, affine, weight, y, base, following)
                    state_group(p, range_, weight, z, base, following)

    return row_pairs
