"""Gates: from predicted pre-activations to the compacted list of open rows.

A dense layer's gate is a band per row: a row is open while its predicted pre-activation lies
inside. Both rules come down to that. ``activation`` (dual-module inference, ICML 2020): ReLU is
sensitive above a threshold, sigmoid and tanh inside the unsaturated band. ``damage``: the expected
harm of keeping the approximate value, slope times error spread times what the next layer makes of
it, is monotone in the distance from the flat region, so a bound on it is a bound on the value.

A GRU step decides its update gate first: where ``z`` keeps the state, neither the candidate's row
nor the reset gate's matters.

A recurrent layer has limits of its own for each of its gates, two numbers: ``damage`` compares with the
first, ``activation`` opens the rows whose predicted gate lies between the two.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.compaction import compact
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import chunk, sigmoid, span, tanh
from schedules.row_operands import SIDE_BY_SIDE, list_length


def list_open_rows(isa: Isa, n: int, keep, first: int = 0):
    """Return the macro ``(source, rows, count)`` that lists the kept of `n` rows, and fills the list's tail.

    Parameters are those of `schedules.compaction.compact`; the tail repeats the last row.
    """
    list_kept = compact(isa, n, keep, first=first)

    @inline
    def list_rows(source, rows, count):
        list_kept(source, rows, count)
        last: T.let = rows[T.max(count[0] - 1, 0)]
        for i in T.unroll(SIDE_BY_SIDE):
            rows[count[0] + i] = last

    return list_rows


def positive(score, i):
    """Keep the rows with a positive score."""
    return score[i] > T.float32(0)


def split_predictions(isa: Isa, n_hidden: int):
    """Return the kernel ``(y: f32[4h]) -> (input: f32[3h], hidden: f32[3h])``.

    A little module that sees input and state together predicts z, r, and the candidate's input and
    hidden parts. The sums of z and r count as the input half's, so that both halves have one form.
    """
    h = n_hidden

    @T.prim_func(s_tir=True, private=True)
    def split(
        y: T.Buffer((4 * h,), "float32"), given: T.Buffer((3 * h,), "float32"), hidden: T.Buffer((3 * h,), "float32")
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("split"):
            T.reads(y[0 : 4 * h])
            T.writes(given[0 : 3 * h], hidden[0 : 3 * h])
            for i in T.serial(3 * h):
                given[i] = y[i]
            for i in T.serial(2 * h):
                hidden[i] = T.float32(0)
            for i in T.serial(h):
                hidden[2 * h + i] = y[3 * h + i]

    return split


def band_gate(isa: Isa, n: int):
    """Return the kernel ``(y: f32[n], band: f32[2, n]) -> (rows: i32[list_length(n)], count: i32[1])``.

    Row i is open while ``band[0, i] < y[i] < band[1, i]``.
    """
    length = list_length(n)

    def inside(source, i):
        y, band = source
        return T.And(y[i] > band[0, i], y[i] < band[1, i])

    list_open = list_open_rows(isa, n, inside)

    @T.prim_func(s_tir=True, private=True)
    def gate(
        y: T.Buffer((n,), "float32"),
        band: T.Buffer((2, n), "float32"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("gate"):
            T.reads(y[0:n], band[0:2, 0:n])
            T.writes(rows[0:length], count[0])
            list_open((y, band), rows, count)

    return gate


def gru_update_gate(isa: Isa, n_hidden: int, rule: str):
    """Return the kernel ``(given, hidden, h, spread, limits) -> (rows, count)`` for the z rows.

    Operands: ``given, hidden: f32[3h]`` the predicted halves (gate order z, r, n); ``h: f32[h]``;
    ``spread: f32[3h]`` the little module's error per row; ``limits: f32[3, 2]``, those of z, r and n.
    Result: ``rows: i32[list_length(3h)]``, ``count: i32[1]``.

    ``damage``: open if ``z (1-z) |h - n| spread > limits[0, 0]``. ``activation``: open if
    ``limits[0, 0] < z < limits[0, 1]``, the sigmoid's unsaturated band.
    """
    h, width = n_hidden, chunk(isa, n_hidden)
    length = list_length(3 * h)
    damage = rule == "damage"
    list_open = list_open_rows(isa, h, positive)

    @T.prim_func(s_tir=True, private=True)
    def gate(
        given: T.Buffer((3 * h,), "float32"),
        hidden: T.Buffer((3 * h,), "float32"),
        state: T.Buffer((h,), "float32"),
        spread: T.Buffer((3 * h,), "float32"),
        limits: T.Buffer((3, 2), "float32"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("gate"):
            T.reads(given[0 : 3 * h], hidden[0 : 3 * h], state[0:h], spread[0 : 3 * h], limits[0:3, 0:2])
            T.writes(rows[0:length], count[0])
            gates = T.sblock_alloc_buffer((2 * h,), "float32")
            score = T.sblock_alloc_buffer((h,), "float32")
            for c in T.serial(-(-(2 * h if damage else h) // width)):
                i: T.let = T.min(c * width, (2 * h if damage else h) - width)
                gates[span(i, width)] = sigmoid(given[span(i, width)] + hidden[span(i, width)])
            for c in T.serial(-(-h // width)):
                i: T.let = T.min(c * width, h - width)
                z: T.let = gates[span(i, width)]
                if damage:
                    r: T.let = gates[span(h + i, width)]
                    n: T.let = tanh(given[span(2 * h + i, width)] + r * hidden[span(2 * h + i, width)])
                    step: T.let = state[span(i, width)] - n
                    score[span(i, width)] = (
                        z * (T.float32(1) - z) * T.max(step, -step) * spread[span(i, width)] - limits[0, 0]
                    )
                else:
                    score[span(i, width)] = T.min(z - limits[0, 0], limits[0, 1] - z)
            list_open(score, rows, count)

    return gate


def gru_candidate_gate(isa: Isa, n_hidden: int, rule: str):
    """Return the kernel ``(given, hidden, h, spread, limits) -> (rows, count)`` for the r and n rows.

    Operands as `gru_update_gate`, with the open z rows now exact.

    ``damage``: n is open if ``(1-z)(1-n^2) spread > limits[2, 0]``, r if
    ``(1-z)(1-n^2) r(1-r) |hidden n part| spread > limits[1, 0]``. ``activation``: r and n are open
    inside their bands.
    """
    h, width = n_hidden, chunk(isa, n_hidden)
    length = list_length(3 * h)
    damage = rule == "damage"
    list_open = list_open_rows(isa, 2 * h, positive, first=h)

    @T.prim_func(s_tir=True, private=True)
    def gate(
        given: T.Buffer((3 * h,), "float32"),
        hidden: T.Buffer((3 * h,), "float32"),
        spread: T.Buffer((3 * h,), "float32"),
        limits: T.Buffer((3, 2), "float32"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("gate"):
            T.reads(given[0 : 3 * h], hidden[0 : 3 * h], spread[0 : 3 * h], limits[0:3, 0:2])
            T.writes(rows[0:length], count[0])
            gates = T.sblock_alloc_buffer((2 * h,), "float32")
            score = T.sblock_alloc_buffer((2 * h,), "float32")
            for c in T.serial(-(-2 * h // width)):
                i: T.let = T.min(c * width, 2 * h - width)
                gates[span(i, width)] = sigmoid(given[span(i, width)] + hidden[span(i, width)])
            for c in T.serial(-(-h // width)):
                i: T.let = T.min(c * width, h - width)
                r: T.let = gates[span(h + i, width)]
                u: T.let = hidden[span(2 * h + i, width)]
                n: T.let = tanh(given[span(2 * h + i, width)] + r * u)
                if damage:
                    slope: T.let = (T.float32(1) - gates[span(i, width)]) * (T.float32(1) - n * n)
                    score[span(i, width)] = (
                        slope * r * (T.float32(1) - r) * T.max(u, -u) * spread[span(h + i, width)] - limits[1, 0]
                    )
                    score[span(h + i, width)] = slope * spread[span(2 * h + i, width)] - limits[2, 0]
                else:
                    score[span(i, width)] = T.min(r - limits[1, 0], limits[1, 1] - r)
                    score[span(h + i, width)] = T.min(n - limits[2, 0], limits[2, 1] - n)
            list_open(score, rows, count)

    return gate
