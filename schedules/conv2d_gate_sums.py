"""Gates of tiles of a convolution of bytes or bf16, decided on sums that are still in registers."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_byte_tile import LANES
from schedules.conv2d_bytes import OUT_INVERSE, OUT_ZERO
from schedules.conv2d_finish import is_cut
from schedules.conv2d_lines import ByteConv
from schedules.inlining import inline
from schedules.intrinsics import sum_each


def scaled_limits(spread: ByteConv):
    """Return the macro ``(limits, affine, scaled)`` that makes limits ones of the values that `opening` is given.

    With the rows a, b and d of the limits the harm of a channel is the square of ``min(max(a d v + b d, 0), d)``.
    """
    cut = is_cut(spread)

    @inline
    def scale_limits(limits, affine, scaled):
        for c in T.serial(spread.conv.outputs):
            a: T.let = limits[0, c] * limits[2, c] / affine[OUT_INVERSE] if cut else limits[0, c] * limits[2, c]
            scaled[0, c] = a
            scaled[1, c] = limits[1, c] * limits[2, c] - (a * affine[OUT_ZERO] if cut else T.float32(0))
            scaled[2, c] = limits[2, c]

    return scale_limits


def opening(spread: ByteConv, size: int):
    """Return what `schedules.conv2d_finish.finish_sums` calls: it writes which of some pixels' tiles are open."""
    outputs = spread.conv.outputs

    def harm(scaled, column, values):
        total = None
        for v, value in enumerate(values):
            at = T.ramp(column + v * LANES, 1, LANES)
            one = T.max(value * scaled[0, at] + scaled[1, at], T.broadcast(T.float32(0), LANES))
            one = _kept(T.min(one, scaled[2, at]))
            total = one * one if total is None else total + one * one
        return _kept(total)

    def see(operands, places, column, values):
        scaled, opened = operands[5:]
        panel, first = T.truncdiv(column + (size - 1), size), 0
        while first < len(places):
            # Sums of lanes take powers of two.
            few = 1 << ((len(places) - first).bit_length() - 1)
            harms = sum_each([harm(scaled, column, row) for row in values[first : first + few]], LANES, _kept)
            pixel = T.truncdiv(places[first], outputs)
            one = T.broadcast(T.float32(1), few) if few > 1 else T.float32(1)
            flags = T.Cast(f"uint8x{few}" if few > 1 else "uint8", harms > one)
            T.buffer_store(opened, flags, [panel, T.ramp(pixel, 1, few) if few > 1 else pixel])
            first += few

    return see


def _kept(values, lanes: int = LANES):
    """Return a vector as read from a register, so that code for it is generated once wherever it is used."""
    register, at = T.alloc_buffer((lanes,), "float32"), T.ramp(0, 1, lanes) if lanes > 1 else 0
    T.buffer_store(register, values, [at])
    return register[at]
