"""The LSTM cell: its pointwise update.

Gate order is i, o, f, g as in ONNX (which calls the last one c)::

    i, o, f = sigmoid(W x + U h + b)        g = tanh(W_g x + U_g h + b_g)
    c' = f * c + i * g                      h' = o * tanh(c')
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.intrinsics import chunk, sigmoid, span, tanh


def lstm_pointwise(isa: Isa, n_hidden: int):
    """Return the kernel ``(given: f32[4h], hidden: f32[4h], c: f32[h]) -> (h': f32[h], c': f32[h])``.

    ``given`` and ``hidden`` are the two halves of the pre-activations, which are summed.
    """
    h, width = n_hidden, chunk(isa, n_hidden)

    @T.prim_func(s_tir=True, private=True)
    def pointwise(
        given: T.Buffer((4 * h,), "float32"),
        hidden: T.Buffer((4 * h,), "float32"),
        cell: T.Buffer((h,), "float32"),
        result: T.Buffer((h,), "float32"),
        cell_after: T.Buffer((h,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("pointwise"):
            T.reads(given[0 : 4 * h], hidden[0 : 4 * h], cell[0:h])
            T.writes(result[0:h], cell_after[0:h])
            for part in T.serial(-(-h // width)):
                # The last vector overlaps the one before it, rather than leave a remainder. All is read
                # before anything is stored: TVM may give `cell` and a result the same memory.
                j: T.let = T.min(part * width, h - width)
                i: T.let = sigmoid(given[span(j, width)] + hidden[span(j, width)])
                o: T.let = sigmoid(given[span(h + j, width)] + hidden[span(h + j, width)])
                f: T.let = sigmoid(given[span(2 * h + j, width)] + hidden[span(2 * h + j, width)])
                g: T.let = tanh(given[span(3 * h + j, width)] + hidden[span(3 * h + j, width)])
                after: T.let = f * cell[span(j, width)] + i * g
                result[span(j, width)] = o * tanh(after)
                cell_after[span(j, width)] = after

    return pointwise
