"""The gate of an LSTM step: one list of open rows of all four gates, from predicted pre-activations.

All rows are decided at once. A GRU gains by deciding its update gate first, because that alone says
whether anything else of a unit matters; of an LSTM's gates none does: where the output gate hides the
cell, the other three still write to it.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.gate import list_open_rows, positive
from schedules.intrinsics import chunk, sigmoid, span, tanh
from schedules.row_operands import list_length


def lstm_gate(isa: Isa, n_hidden: int, rule: str):
    """Return the kernel ``(given, hidden, c, spread, limits) -> (rows, count)``.

    Operands: ``given, hidden: f32[4h]`` the predicted halves (gate order i, o, f, g); ``c: f32[h]``;
    ``spread: f32[4h]`` the little module's error per row; ``limits: f32[4, 2]``, two for each gate (see
    `schedules.gate`). Result: ``rows: i32[list_length(4h)]``, ``count: i32[1]``.

    ``damage``: with ``c' = f c + i g`` and ``D = o (1 - tanh^2 c')``, a row is open if its slope times
    its spread exceeds its gate's first limit; the slopes are ``D i (1-i) |g|``, ``o (1-o) |tanh c'|``,
    ``D f (1-f) |c|`` and ``D i (1-g^2)``. ``activation``: a row is open if its gate's value lies between
    its gate's limits, where sigmoid or tanh is not saturated.
    """
    h, width = n_hidden, chunk(isa, n_hidden)
    length = list_length(4 * h)
    damage = rule == "damage"
    list_open = list_open_rows(isa, 4 * h, positive)

    def magnitude(x):
        return T.max(x, -x)

    @T.prim_func(s_tir=True, private=True)
    def gate(
        given: T.Buffer((4 * h,), "float32"),
        hidden: T.Buffer((4 * h,), "float32"),
        cell: T.Buffer((h,), "float32"),
        spread: T.Buffer((4 * h,), "float32"),
        limits: T.Buffer((4, 2), "float32"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("gate"):
            T.reads(given[0 : 4 * h], hidden[0 : 4 * h], cell[0:h], spread[0 : 4 * h], limits[0:4, 0:2])
            T.writes(rows[0:length], count[0])
            score = T.sblock_alloc_buffer((4 * h,), "float32")
            for part in T.serial(-(-h // width)):
                j: T.let = T.min(part * width, h - width)
                i: T.let = sigmoid(given[span(j, width)] + hidden[span(j, width)])
                o: T.let = sigmoid(given[span(h + j, width)] + hidden[span(h + j, width)])
                f: T.let = sigmoid(given[span(2 * h + j, width)] + hidden[span(2 * h + j, width)])
                g: T.let = tanh(given[span(3 * h + j, width)] + hidden[span(3 * h + j, width)])
                if damage:
                    one: T.let = T.float32(1)
                    c: T.let = cell[span(j, width)]
                    shown: T.let = tanh(f * c + i * g)
                    through: T.let = o * (one - shown * shown)
                    score[span(j, width)] = (
                        through * i * (one - i) * magnitude(g) * spread[span(j, width)] - limits[0, 0]
                    )
                    score[span(h + j, width)] = (
                        o * (one - o) * magnitude(shown) * spread[span(h + j, width)] - limits[1, 0]
                    )
                    score[span(2 * h + j, width)] = (
                        through * f * (one - f) * magnitude(c) * spread[span(2 * h + j, width)] - limits[2, 0]
                    )
                    score[span(3 * h + j, width)] = (
                        through * i * (one - g * g) * spread[span(3 * h + j, width)] - limits[3, 0]
                    )
                else:
                    score[span(j, width)] = T.min(i - limits[0, 0], limits[0, 1] - i)
                    score[span(h + j, width)] = T.min(o - limits[1, 0], limits[1, 1] - o)
                    score[span(2 * h + j, width)] = T.min(f - limits[2, 0], limits[2, 1] - f)
                    score[span(3 * h + j, width)] = T.min(g - limits[3, 0], limits[3, 1] - g)
            list_open(score, rows, count)

    return gate
