"""Register tiles of bytes: four bytes of a pixel are broadcast, and meet the weights of a vector of outputs.

A vector is 16 outputs at every level, since weights are packed that way: two registers at AVX2.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import dot4

LANES, GROUP = 16, 4


def dot4_panels(isa: Isa, lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` for a band and some panels.

    See `schedules.conv2d_amx.amx_panels`; here a tile is of registers.
    """
    width, lanes, size = tile.vectors * LANES, isa.lanes, isa.vector_bytes
    pixels, registers, per_line = tile.pixels, width // lanes, -(-lines.length // tile.pixels)
    downs, times, steps = lines.loops
    down_by, across_by = lines.strides
    groups = -(-lines.runs[0][1] // GROUP)
    #: Registers of a vector.
    parts = LANES // lanes

    def four(image, at):
        value = T.reinterpret(image[T.ramp(at, 1, GROUP)], dtype="int32")
        return T.reinterpret(T.broadcast(value, lanes), dtype=f"int8x{size}")

    def cleared():
        # See `schedules.conv2d_tile`: only such buffers lie in registers.
        total = [T.alloc_buffer((lanes,), "int32") for _ in range(pixels * registers)]
        for sums in total:
            T.buffer_store(sums, T.broadcast(T.int32(0), lanes), [T.ramp(0, 1, lanes)])
        return total

    def multiply(total, image, at, weight, panel, step, g):
        each = [weight[panel, step, r // parts, g, T.ramp(r % parts * size, 1, size)] for r in range(registers)]
        for p in range(pixels):
            levels = four(image, at + p * lines.pixel)
            for r in range(registers):
                sums = total[p * registers + r]
                added = dot4(isa, sums[T.ramp(0, 1, lanes)], levels, each[r])
                T.buffer_store(sums, added, [T.ramp(0, 1, lanes)])

    @inline
    def add_up(total, image, weight, panel, base):
        for down in T.serial(downs):
            for across in T.serial(times):
                for step in T.serial(steps):
                    at: T.let = (down * times + across) * steps + step
                    skip: T.let = base + down * down_by + across * across_by + step * STEP
                    for g in T.serial(T.min(STEP // GROUP, groups - step * (STEP // GROUP))):
                        multiply(total, image, skip + g * GROUP, weight, panel, at, g)

    def vector(total, first):
        """Return a vector of sums, of the registers from `first` on."""
        found = [sums[T.ramp(0, 1, lanes)] for sums in total[first : first + parts]]
        return found[0] if parts == 1 else T.Shuffle(found, list(range(LANES)))

    def finish(operands, y, to, channel, total, pixel):
        places = [(to + lines.place(pixel + p, conv.out_width)) * conv.outputs + channel for p in range(pixels)]
        starts = [range(p * registers, (p + 1) * registers, parts) for p in range(pixels)]
        store(operands, y, places, channel, [[vector(total, first) for first in row] for row in starts])

    @inline
    def compute(image, origin, operands, y, to, first, last):
        for panel in T.serial(first, last):
            channel: T.let = panel_column(panel, conv.outputs, width)
            for number in T.serial(lines.count * per_line):
                total = cleared()
                line: T.let = number // per_line
                column: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                add_up(total, image, operands[0], panel, origin + line * lines.line + column * lines.pixel)
                finish(operands, y, to, channel, total, line * lines.across + column)

    return compute
