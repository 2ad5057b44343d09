"""What follows the sums of a convolution of bytes or of bf16."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, narrowed, narrowed_pair, widened
from schedules.byte_vectors import clipped_bytes, packed_bytes
from schedules.conv2d_byte_tile import LANES
from schedules.conv2d_bytes import OUT_INVERSE, OUT_ZERO, RESIDUAL
from schedules.conv2d_lines import ByteConv
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.inlining import inline

#: Nonlinearities that are the cutting off at the ends of the byte's range, if zero is level 0.
CUT = ("relu", "relu6", None)


def is_cut(byte: ByteConv) -> bool:
    """Whether cutting off at the ends of the byte's range is all that follows a convolution's sums.

    With a zero level of its own for what no nonlinearity follows, the range's ends are still where it is cut.
    """
    return byte.result == "uint8" and byte.conv.activation in CUT


def finish_sums(isa: Isa, byte: ByteConv, see=None):
    """Return ``(operands, y, places, column, sums)``, which writes the sums of some pixels.

    `places` are where the outputs from `column` on lie of each pixel, `sums` for each pixel its vectors of 16 sums.
    Call it while a kernel is parsed. What becomes bytes is packed a register at a time where pixels' vectors fill one,
    what becomes bf16 by twos. ``see(operands, places, column, values)``, if there is one, emits what else is to be made
    of the values before their nonlinearity: those of `is_cut` are multiplied by the operand ``affine``'s inverse scale
    of the result, its zero point and a half added to them.
    """
    conv, to_bytes, to_bf16 = byte.conv, byte.result == "uint8", byte.result == BF16
    outputs, nonlinearity = conv.outputs, NONLINEARITIES[conv.activation]
    cut = is_cut(byte)

    def added(residual, affine, at):
        values = residual[T.ramp(at, 1, LANES)]
        if byte.residual == "uint8":
            return T.Cast(f"float32x{LANES}", values) * T.broadcast(affine[RESIDUAL], LANES)
        values = widened(values, LANES) if byte.residual == BF16 else values
        return values * T.broadcast(affine[OUT_INVERSE], LANES) if cut else values

    def before(operands, at, column, sums):
        _, scale, bias, affine, residual, *_ = operands
        span = T.ramp(column, 1, LANES)
        values = T.Cast(f"float32x{LANES}", sums) * scale[span] + bias[span]
        if conv.residual:
            values = values + added(residual, affine, at)
        return values

    def finished(operands, at, column, sums):
        affine, values = operands[3], before(operands, at, column, sums)
        if not to_bytes:
            return nonlinearity(values)
        if not cut:
            values = nonlinearity(values) * T.broadcast(affine[OUT_INVERSE], LANES)
            values = values + T.broadcast(affine[OUT_ZERO], LANES)
        return values

    def as_stored(values):
        if to_bf16:
            return narrowed(values, LANES)
        return clipped_bytes(values, LANES) if to_bytes else values

    @inline
    def store_few(operands, y, at, column, sums):
        few = T.alloc_buffer((LANES,), byte.result)
        few[T.ramp(0, 1, LANES)] = as_stored(finished(operands, at, column, sums))
        for i in T.serial(outputs):
            y[at + i] = few[i]

    def store(operands, y, places, column, sums):
        vectors, full = len(sums[0]), isa.vector_bytes // LANES
        together = min(vectors, full)
        # AVX-512 has an instruction for a single vector.
        packs = to_bytes and not (full % together or vectors % together) and (together > 1 or isa.lanes < LANES)
        if see is not None:
            rows = zip(places, sums, strict=True)
            at = [[(place + v * LANES, column + v * LANES, part) for v, part in enumerate(row)] for place, row in rows]
            see(operands, places, column, [[before(operands, *each) for each in row] for row in at])
        if outputs < LANES:
            for place, (only,) in zip(places, sums, strict=True):
                store_few(operands, y, place, column, only)
            return
        parts = [
            (place + v * LANES, finished(operands, place + v * LANES, column + v * LANES, part))
            for place, row in zip(places, sums, strict=True)
            for v, part in enumerate(row)
        ]
        while packs and len(parts) >= full:
            few, parts = parts[:full], parts[full:]
            packed = packed_bytes(isa, [values for _, values in few], full // together)
            for (at, _), level in zip(few[::together], packed, strict=True):
                T.buffer_store(y, level, [T.ramp(at, 1, together * LANES)])
        while to_bf16 and vectors % 2 == 0 and parts:
            (at, first), (_, second), *parts = parts
            T.buffer_store(y, narrowed_pair(first, second), [T.ramp(at, 1, 2 * LANES)])
        for at, values in parts:
            T.buffer_store(y, as_stored(values), [T.ramp(at, 1, LANES)])

    return store
