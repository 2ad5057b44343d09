"""The GRU cell: its pointwise update, and a plain reference kernel that defines the layer.

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


def gru_reference(n_inputs: int, n_hidden: int, linear_before_reset: int):
    """Return the kernel that defines a GRU layer, for sequences of any length and batch.

    ``(x: f32[t, b, k], h0: f32[1, b, h], weight: f32[3h, k], recurrence: f32[3h, h], bias: f32[6h]) ->
    (y: f32[t, 1, b, h], h_t: f32[1, b, h])``, the layout and bias order of ONNX (input biases, then
    hidden ones). Written to be read and to be right at any shape, not to be fast.
    """
    k, h, late_reset = n_inputs, n_hidden, bool(linear_before_reset)

    @T.prim_func(s_tir=True, private=True)
    def gru(x_: T.handle, h0_: T.handle, w_: T.handle, u_: T.handle, b_: T.handle, y_: T.handle, ht_: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        steps, batch = T.int64(), T.int64()
        x = T.match_buffer(x_, (steps, batch, k), "float32")
        h0 = T.match_buffer(h0_, (1, batch, h), "float32")
        w = T.match_buffer(w_, (3 * h, k), "float32")
        u = T.match_buffer(u_, (3 * h, h), "float32")
        b = T.match_buffer(b_, (6 * h,), "float32")
        y = T.match_buffer(y_, (steps, 1, batch, h), "float32")
        ht = T.match_buffer(ht_, (1, batch, h), "float32")
        with T.sblock("gru"):
            T.reads(x[0:steps, 0:batch, 0:k], h0[0, 0:batch, 0:h], w[0 : 3 * h, 0:k], u[0 : 3 * h, 0:h], b[0 : 6 * h])
            T.writes(y[0:steps, 0, 0:batch, 0:h], ht[0, 0:batch, 0:h])
            given = T.sblock_alloc_buffer((3 * h,), "float32")
            hidden = T.sblock_alloc_buffer((3 * h,), "float32")
            before = T.sblock_alloc_buffer((h,), "float32")
            after = T.sblock_alloc_buffer((h,), "float32")
            for s, i in T.grid(batch, h):
                ht[0, s, i] = h0[0, s, i]
            for t, s in T.grid(steps, batch):
                for i in T.serial(3 * h):
                    given[i] = b[i]
                    for j in T.serial(k):
                        given[i] = given[i] + w[i, j] * x[t, s, j]
                for i in T.serial(2 * h):
                    hidden[i] = b[3 * h + i]
                    for j in T.serial(h):
                        hidden[i] = hidden[i] + u[i, j] * ht[0, s, j]
                for i in T.serial(h):
                    r: T.let = sigmoid(given[h + i] + hidden[h + i])
                    before[i] = T.float32(1) if late_reset else r
                    after[i] = r if late_reset else T.float32(1)
                for i in T.serial(h):
                    hidden[2 * h + i] = b[5 * h + i]
                    for j in T.serial(h):
                        hidden[2 * h + i] = hidden[2 * h + i] + u[2 * h + i, j] * before[j] * ht[0, s, j]
                for i in T.serial(h):
                    z: T.let = sigmoid(given[i] + hidden[i])
                    n: T.let = tanh(given[2 * h + i] + after[i] * hidden[2 * h + i])
                    y[t, 0, s, i] = n + z * (ht[0, s, i] - n)
                for i in T.serial(h):
                    ht[0, s, i] = y[t, 0, s, i]

    return gru
