"""The GRU cell: its pointwise update.

Gate order is z, r, n as in ONNX. With ``linear_before_reset`` the hidden half of the candidate has
a bias of its own and the reset gate multiplies the finished product::

    z = sigmoid(W_z x + U_z h + b_z)        r = sigmoid(W_r x + U_r h + b_r)
    n = tanh(W_n x + b_wn + r * (U_n h + b_un))          (linear_before_reset = 1)
    n = tanh(W_n x + b_wn + U_n (r * h) + b_un)          (linear_before_reset = 0)
    h' = (1 - z) * n + z * h
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.intrinsics import chunk, sigmoid, span, tanh


def gru_pointwise(isa: Isa, n_hidden: int):
    """Return the kernel ``(given: f32[3h], hidden: f32[3h], h: f32[h]) -> h': f32[h]``."""
    h, width = n_hidden, chunk(isa, n_hidden)

    @T.prim_func(s_tir=True, private=True)
    def pointwise(
        given: T.Buffer((3 * h,), "float32"),
        hidden: T.Buffer((3 * h,), "float32"),
        state: T.Buffer((h,), "float32"),
        result: T.Buffer((h,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("pointwise"):
            T.reads(given[0 : 3 * h], hidden[0 : 3 * h], state[0:h])
            T.writes(result[0:h])
            # Two loops, and the reset gate's sigmoid beside the update gate's: the evaluations of one
            # iteration do not wait for each other, so more of them run at once.
            gates = T.sblock_alloc_buffer((2 * h,), "float32")
            for c in T.serial(-(-2 * h // width)):
                # The last vector overlaps the one before it, rather than leave a remainder.
                i: T.let = T.min(c * width, 2 * h - width)
                gates[span(i, width)] = sigmoid(given[span(i, width)] + hidden[span(i, width)])
            for c in T.serial(-(-h // width)):
                i: T.let = T.min(c * width, h - width)
                r: T.let = gates[span(h + i, width)]
                n: T.let = tanh(given[span(2 * h + i, width)] + r * hidden[span(2 * h + i, width)])
                # Read ahead: in one expression with the store, TVM would give both arrays the same memory,
                # and the overlapping last vector would update units twice.
                before: T.let = state[span(i, width)]
                result[span(i, width)] = n + gates[span(i, width)] * (before - n)

    return pointwise


def reset_state(isa: Isa, n_hidden: int):
    """Return the kernel ``(given: f32[3h], gates: f32[2h], h: f32[h]) -> r * h: f32[h]``.

    For ``linear_before_reset = 0``; ``gates`` is the hidden half of z and r.
    """
    h, width = n_hidden, chunk(isa, n_hidden)

    @T.prim_func(s_tir=True, private=True)
    def reset(
        given: T.Buffer((3 * h,), "float32"),
        gates: T.Buffer((2 * h,), "float32"),
        state: T.Buffer((h,), "float32"),
        result: T.Buffer((h,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("reset"):
            T.reads(given[0 : 3 * h], gates[0 : 2 * h], state[0:h])
            T.writes(result[0:h])
            for c in T.serial(-(-h // width)):
                i: T.let = T.min(c * width, h - width)
                r: T.let = sigmoid(given[span(h + i, width)] + gates[span(h + i, width)])
                # Read ahead, as in `gru_pointwise`.
                before: T.let = state[span(i, width)]
                result[span(i, width)] = r * before

    return reset


def gru_pointwise_early(isa: Isa, n_hidden: int):
    """Return the kernel ``(given: f32[3h], gates: f32[2h], candidate: f32[h], h: f32[h]) -> h': f32[h]``.

    For ``linear_before_reset = 0``; ``candidate`` is the hidden half of n, made from the reset state.
    """
    h, width = n_hidden, chunk(isa, n_hidden)

    @T.prim_func(s_tir=True, private=True)
    def pointwise(
        given: T.Buffer((3 * h,), "float32"),
        gates: T.Buffer((2 * h,), "float32"),
        candidate: T.Buffer((h,), "float32"),
        state: T.Buffer((h,), "float32"),
        result: T.Buffer((h,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("pointwise"):
            T.reads(given[0 : 3 * h], gates[0 : 2 * h], candidate[0:h], state[0:h])
            T.writes(result[0:h])
            for c in T.serial(-(-h // width)):
                i: T.let = T.min(c * width, h - width)
                z: T.let = sigmoid(given[span(i, width)] + gates[span(i, width)])
                n: T.let = tanh(given[span(2 * h + i, width)] + candidate[span(i, width)])
                # Read ahead, as in `gru_pointwise`.
                before: T.let = state[span(i, width)]
                result[span(i, width)] = n + z * (before - n)

    return pointwise
