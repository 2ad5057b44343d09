"""Reference kernels that define the recurrent layers: any length, any batch, the layout of ONNX.

Written to be right at any shape rather than to be fast; but the products are vectors, so that a
layer that nothing rewrites runs at about the speed its weights can be read at.

LSTM, gates in the order i, o, f, c::

    i, o, f = sigmoid(W x + U h + b)        g = tanh(W_c x + U_c h + b_c)
    c' = f * c + i * g                      h' = o * tanh(c')

The GRU is in `schedules.recurrent`.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.inlining import inline
from schedules.intrinsics import sigmoid, sum_each, tanh

#: Lanes of a product's running sum; LLVM splits it where registers are narrower.
_LANES = 16


def _product(n_rows: int, n_columns: int, first_row: int = 0):
    """Return the macro ``(matrix, vector, bias, offset, result)``.

    It writes rows ``first_row`` to ``first_row + n_rows`` of ``matrix @ vector + bias[offset:]`` to
    the same places of `result`.
    """
    whole = n_columns // _LANES

    def lanes(start):
        return T.ramp(start, 1, _LANES)

    @inline
    def product(matrix, vector, bias, offset, result):
        for i in T.serial(first_row, first_row + n_rows):
            total = T.alloc_buffer((_LANES,), "float32", scope="local")
            tail = T.alloc_buffer((1,), "float32", scope="local")
            total[lanes(0)] = T.broadcast(T.float32(0), _LANES)
            tail[0] = bias[offset + i]
            for j in T.serial(whole):
                total[lanes(0)] = total[lanes(0)] + matrix[i, lanes(j * _LANES)] * vector[lanes(j * _LANES)]
            for j in T.serial(whole * _LANES, n_columns):
                tail[0] = tail[0] + matrix[i, j] * vector[j]
            result[i] = sum_each([total[lanes(0)]], _LANES) + tail[0]

    return product


def gru_reference(n_inputs: int, n_hidden: int, linear_before_reset: int):
    """Return the kernel that defines a GRU layer, for sequences of any length and batch.

    ``(x: f32[t, b, k], h0: f32[1, b, h], weight: f32[3h, k], recurrence: f32[3h, h], bias: f32[6h]) ->
    (y: f32[t, 1, b, h], h_t: f32[1, b, h])``, the layout and bias order of ONNX (input biases, then
    hidden ones), gates in the order z, r, n.
    """
    k, h, late_reset = n_inputs, n_hidden, bool(linear_before_reset)
    input_product, gates_product = _product(3 * h, k), _product(2 * h, h)
    candidate_product = _product(h, h, first_row=2 * h)

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
            vector = T.sblock_alloc_buffer((k,), "float32")
            state = T.sblock_alloc_buffer((h,), "float32")
            reset = T.sblock_alloc_buffer((h,), "float32")
            given = T.sblock_alloc_buffer((3 * h,), "float32")
            hidden = T.sblock_alloc_buffer((3 * h,), "float32")
            for s, i in T.grid(batch, h):
                ht[0, s, i] = h0[0, s, i]
            for t, s in T.grid(steps, batch):
                for i in T.serial(k):
                    vector[i] = x[t, s, i]
                for i in T.serial(h):
                    state[i] = ht[0, s, i]
                input_product(w, vector, b, 0, given)
                gates_product(u, state, b, 3 * h, hidden)
                for i in T.serial(h):
                    reset[i] = sigmoid(given[h + i] + hidden[h + i])
                if late_reset:
                    candidate_product(u, state, b, 3 * h, hidden)
                    for i in T.serial(h):
                        hidden[2 * h + i] = reset[i] * hidden[2 * h + i]
                else:
                    for i in T.serial(h):
                        reset[i] = reset[i] * state[i]
                    candidate_product(u, reset, b, 3 * h, hidden)
                for i in T.serial(h):
                    z: T.let = sigmoid(given[i] + hidden[i])
                    n: T.let = tanh(given[2 * h + i] + hidden[2 * h + i])
                    after: T.let = n + z * (state[i] - n)
                    y[t, 0, s, i] = after
                    ht[0, s, i] = after

    return gru


def lstm_reference(n_inputs: int, n_hidden: int):
    """Return the kernel that defines an LSTM layer, for sequences of any length and batch.

    ``(x: f32[t, b, k], h0: f32[1, b, h], c0: f32[1, b, h], weight: f32[4h, k], recurrence: f32[4h, h],
    bias: f32[8h]) -> (y: f32[t, 1, b, h], h_t: f32[1, b, h], c_t: f32[1, b, h])``, the layout and bias
    order of ONNX (input biases, then hidden ones), gates in the order i, o, f, c.
    """
    k, h = n_inputs, n_hidden
    input_product, hidden_product = _product(4 * h, k), _product(4 * h, h)

    @T.prim_func(s_tir=True, private=True)
    def lstm(
        x_: T.handle,
        h0_: T.handle,
        c0_: T.handle,
        w_: T.handle,
        u_: T.handle,
        b_: T.handle,
        y_: T.handle,
        ht_: T.handle,
        ct_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        steps, batch = T.int64(), T.int64()
        x = T.match_buffer(x_, (steps, batch, k), "float32")
        h0 = T.match_buffer(h0_, (1, batch, h), "float32")
        c0 = T.match_buffer(c0_, (1, batch, h), "float32")
        w = T.match_buffer(w_, (4 * h, k), "float32")
        u = T.match_buffer(u_, (4 * h, h), "float32")
        b = T.match_buffer(b_, (8 * h,), "float32")
        y = T.match_buffer(y_, (steps, 1, batch, h), "float32")
        ht = T.match_buffer(ht_, (1, batch, h), "float32")
        ct = T.match_buffer(ct_, (1, batch, h), "float32")
        with T.sblock("lstm"):
            T.reads(
                x[0:steps, 0:batch, 0:k],
                h0[0, 0:batch, 0:h],
                c0[0, 0:batch, 0:h],
                w[0 : 4 * h, 0:k],
                u[0 : 4 * h, 0:h],
                b[0 : 8 * h],
            )
            T.writes(y[0:steps, 0, 0:batch, 0:h], ht[0, 0:batch, 0:h], ct[0, 0:batch, 0:h])
            vector = T.sblock_alloc_buffer((k,), "float32")
            state = T.sblock_alloc_buffer((h,), "float32")
            given = T.sblock_alloc_buffer((4 * h,), "float32")
            hidden = T.sblock_alloc_buffer((4 * h,), "float32")
            for s, i in T.grid(batch, h):
                ht[0, s, i] = h0[0, s, i]
                ct[0, s, i] = c0[0, s, i]
            for t, s in T.grid(steps, batch):
                for i in T.serial(k):
                    vector[i] = x[t, s, i]
                for i in T.serial(h):
                    state[i] = ht[0, s, i]
                input_product(w, vector, b, 0, given)
                hidden_product(u, state, b, 4 * h, hidden)
                for i in T.serial(h):
                    take: T.let = sigmoid(given[i] + hidden[i])
                    show: T.let = sigmoid(given[h + i] + hidden[h + i])
                    keep: T.let = sigmoid(given[2 * h + i] + hidden[2 * h + i])
                    new: T.let = tanh(given[3 * h + i] + hidden[3 * h + i])
                    cell: T.let = keep * ct[0, s, i] + take * new
                    ct[0, s, i] = cell
                    y[t, 0, s, i] = show * tanh(cell)
                    ht[0, s, i] = show * tanh(cell)

    return lstm
