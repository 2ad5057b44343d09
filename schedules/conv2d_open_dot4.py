"""Open pixels in registers: a listed block is as many pixels as a register tile has, and one panel of outputs.

Nothing is gathered: each pixel's bytes are broadcast from where they lie.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_byte_tile import ByteTile
from schedules.conv2d_dot4 import LANES, Dot4Tile
from schedules.conv2d_lines import Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline


def open_dot4(isa: Isa, lines: Lines, conv: Conv2d, tile: ByteTile, store):
    """Return the macro ``(image, origin, operands, y, to, lists, taps, slot, first, last)`` for some listed blocks.

    See `schedules.conv2d_open_amx.open_amx`; of `taps` nothing is used. Places in a list without a pixel name an
    earlier one, which is computed once more.
    """
    width, pixels, products = tile.vectors * LANES, tile.pixels, Dot4Tile(isa, lines, conv, tile)
    add_up = products.add_up()

    def listed(place):
        return lambda p: place[p]

    def finish(operands, y, to, channel, total, places, begin):
        at = [(to + places[begin + p]) * conv.outputs + channel for p in range(pixels)]
        store(operands, y, at, channel, products.sums(total))

    @inline
    def compute(image, origin, operands, y, to, lists, taps, slot, first, last):
        places, bases, panel_of, begin_of, _real_of, _found, _base_of = lists
        for n in T.serial(first, last):
            total = products.cleared()
            place = T.alloc_buffer((pixels,), "int64")
            for p in T.unroll(pixels):
                place[p] = T.Cast("int64", origin + bases[begin_of[n] + p])
            add_up(total, image, operands[0], panel_of[n], listed(place))
            finish(operands, y, to, panel_column(panel_of[n], conv.outputs, width), total, places, begin_of[n])

    return compute
