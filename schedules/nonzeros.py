"""Compacted lists of a vector's nonzero values, which zero skipping runs over (`schedules.columns`)."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.compaction import compact
from schedules.cpu import Isa
from schedules.quantize import round_up

#: Columns taken at once; a byte dot product sums four.
QUAD = 4


def list_length(k: int) -> int:
    """Length of a list of nonzero inputs: its tail is filled with zeros to a whole quad."""
    return k + QUAD


def _nonzero_byte(q, i):
    return q[i] != T.uint8(0)


def _nonzero_float(x, i):
    return x[i] != T.float32(0)


def _element(source, i):
    return source[i]


def nonzero_bytes(isa: Isa, k: int):
    """Return the kernel ``(q: u8[k padded]) -> (columns: i32[k + 4], values: u8[k + 4], count: i32[1])``.

    ``q`` comes from `quantize_vector` with zero point 0. A value that rounds to zero contributes
    nothing to the quantized product either, so it is left out too.
    """
    padded, length = round_up(k, isa.row_bytes), list_length(k)

    list_nonzeros = compact(isa, k, _nonzero_byte, _element, "uint8")

    @T.prim_func(s_tir=True, private=True)
    def nonzeros(
        q: T.Buffer((padded,), "uint8"),
        columns: T.Buffer((length,), "int32"),
        values: T.Buffer((length,), "uint8"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("nonzeros"):
            T.reads(q[0:padded])
            T.writes(columns[0:length], values[0:length], count[0])
            list_nonzeros(q, columns, values, count)
            for i in T.unroll(QUAD):
                columns[count[0] + i] = 0
                values[count[0] + i] = T.uint8(0)

    return nonzeros


def nonzero_floats(isa: Isa, k: int):
    """Return the kernel ``(x: f32[k]) -> (columns: i32[k + 4], values: f32[k + 4], count: i32[1])``."""
    length = list_length(k)

    list_nonzeros = compact(isa, k, _nonzero_float, _element, "float32")

    @T.prim_func(s_tir=True, private=True)
    def nonzeros(
        x: T.Buffer((k,), "float32"),
        columns: T.Buffer((length,), "int32"),
        values: T.Buffer((length,), "float32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("nonzeros"):
            T.reads(x[0:k])
            T.writes(columns[0:length], values[0:length], count[0])
            list_nonzeros(x, columns, values, count)
            for i in T.unroll(QUAD):
                columns[count[0] + i] = 0
                values[count[0] + i] = T.float32(0)

    return nonzeros
