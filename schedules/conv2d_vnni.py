"""Register tiles of bytes with ``vpdpbusd``: four bytes of a pixel are broadcast, and meet 16 outputs' weights."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_bytes import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS
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
    wide, across_all = conv.out_width, lines.across

    def four(image, at):
        value = T.reinterpret(image[T.ramp(at, 1, GROUP)], dtype="int32")
        return T.reinterpret(T.broadcast(value, LANES), dtype="int8x64")

    @T.inline
    def add_up(total, image, weight, panel, base):
        for p in T.unroll(pixels):
            for v in T.unroll(vectors):
                total[p * vectors + v, T.ramp(0, 1, LANES)] = T.broadcast(T.int32(0), LANES)
        for down in T.serial(downs):
            for across in T.serial(times):
                for step in T.serial(steps):
                    at: T.let = (down * times + across) * steps + step
                    skip: T.let = base + down * down_by + across * across_by + step * STEP
                    for g in T.serial(T.min(STEP // GROUP, groups - step * (STEP // GROUP))):
                        for p in T.unroll(pixels):
                            for v in T.unroll(vectors):
                                total[p * vectors + v, T.ramp(0, 1, LANES)] = dot4(
                                    isa,
                                    total[p * vectors + v, T.ramp(0, 1, LANES)],
                                    four(image, skip + p * lines.pixel + g * GROUP),
                                    weight[panel, at, v, g, T.ramp(0, 1, STEP)],
                                )

    @T.inline
    def compute(image, origin, operands, y, to, first, last):
        for panel in T.serial(first, last):
            for number in T.serial(lines.count * per_line):
                total = T.alloc_buffer((pixels * vectors, LANES), "int32", scope="local")
                line: T.let = number // per_line
                column: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                add_up(total, image, operands[0], panel, origin + line * lines.line + column * lines.pixel)
                channel: T.let = panel_column(panel, conv.outputs, width)
                for p in T.unroll(pixels):
                    pixel: T.let = line * across_all + column + p
                    if (across_all == wide) or (pixel % across_all < wide):
                        for v in T.unroll(vectors):
                            store(
                                operands,
                                y,
                                (to + pixel // across_all * wide + pixel % across_all) * conv.outputs
                                + channel
                                + v * LANES,
                                channel + v * LANES,
                                total[p * vectors + v, T.ramp(0, 1, LANES)],
                            )

    return compute
