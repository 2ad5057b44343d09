"""What follows the sums of a convolution of floats, and where it is written."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.inlining import inline


def store_pixel(isa: Isa, conv: Conv2d):
    """Return the macro ``(y, residual, at, values)`` that finishes a vector of sums and writes it.

    `residual` is the image to be added if there is one; of fewer outputs than lanes only those that there are get
    written.
    """
    lanes, outputs, nonlinearity = isa.lanes, conv.outputs, NONLINEARITIES[conv.activation]

    def finished(residual, at, values):
        return nonlinearity(values + residual[at] if conv.residual else values)

    @inline
    def store(y, residual, at, values):
        if outputs >= lanes:
            y[T.ramp(at, 1, lanes)] = finished(residual, T.ramp(at, 1, lanes), values)
        else:
            few = T.alloc_buffer((lanes,), "float32", scope="local")
            few[T.ramp(0, 1, lanes)] = values
            for i in T.serial(outputs):
                y[at + i] = finished(residual, at + i, few[i])

    return store
