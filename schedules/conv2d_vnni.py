"""Register tiles of bytes with ``vpdpbusd``: four bytes of a pixel are broadcast, and meet 16 outputs' weights."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS
from schedules.inlining import inline
from schedules.intrinsics import dot4

LANES, GROUP = 16, 4


def vnni_panels(lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` for a band and some panels.

    See `schedules.conv2d_amx.amx_panels`; here a tile is of registers.
    """
    isa, width = ISAS["avx512_vnni"], tile.vectors * LANES
    pixels, vectors, per_line = tile.pixels, tile.vectors, -(-lines.length // tile.pixels)
    downs, times, steps = lines.loops
    down_by, across_by = lines.strides
    groups = -(-lines.runs[0][1] // GROUP)

    def four(image, at):
        value = T.reinterpret(image[T.ramp(at, 1, GROUP)], dtype="int32")
        return T.reinterpret(T.broadcast(value, LANES), dtype="int8x64")

    def registers():
        # See `schedules.conv2d_tile`: only such buffers lie in registers.
        return [T.alloc_buffer((LANES,), "int32") for _ in range(pixels * vectors)]

    def clear(total):
        for sums in total:
            T.buffer_store(sums, T.broadcast(T.int32(0), LANES), [T.ramp(0, 1, LANES)])

    def multiply(total, image, at, weight, panel, step, g):
        each = [weight[panel, step, v, g, T.ramp(0, 1, STEP)] for v in range(vectors)]
        for p in range(pixels):
            levels = four(image, at + p * lines.pixel)
            for v in range(vectors):
                sums = total[p * vectors + v]
                added = dot4(isa, sums[T.ramp(0, 1, LANES)], levels, each[v])
                T.buffer_store(sums, added, [T.ramp(0, 1, LANES)])

    @inline
    def add_up(total, image, weight, panel, base):
        clear(total)
        for down in T.serial(downs):
            for across in T.serial(times):
                for step in T.serial(steps):
                    at: T.let = (down * times + across) * steps + step
                    skip: T.let = base + down * down_by + across * across_by + step * STEP
                    for g in T.serial(T.min(STEP // GROUP, groups - step * (STEP // GROUP))):
                        multiply(total, image, skip + g * GROUP, weight, panel, at, g)

    def finish(operands, y, to, channel, total, pixel):
        places = [(to + lines.place(pixel + p, conv.out_width)) * conv.outputs + channel for p in range(pixels)]
        sums = [[total[p * vectors + v][T.ramp(0, 1, LANES)] for v in range(vectors)] for p in range(pixels)]
        store(operands, y, places, channel, sums)

    @inline
    def compute(image, origin, operands, y, to, first, last):
        for panel in T.serial(first, last):
            channel: T.let = panel_column(panel, conv.outputs, width)
            for number in T.serial(lines.count * per_line):
                total = registers()
                line: T.let = number // per_line
                column: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                add_up(total, image, operands[0], panel, origin + line * lines.line + column * lines.pixel)
                finish(operands, y, to, channel, total, line * lines.across + column)

    return compute
