"""Zero skipping: a convolution over the nonzero values of its input alone. Exact.

Behind a ReLU most values are zero, and each would be multiplied with a vector of weights per tap. Here every row
of the input is listed once, a few rows at a time, so that lists stay in L2; a register tile of neighbouring pixels
adds up, for each kernel row, the weights of one run of a list. One pixel alone multiplies the fewest values; more of
them share each weight that is read, which counts where neighbours are zero together or few values are.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_panels import pack_panels, panel_column, panel_count
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_tile import store_pixel
from schedules.cpu import Isa
from schedules.knobs import SkipTile
from schedules.nonzero_rows import list_room, list_row, positions
from schedules.panels import panel_size


def default_skip_tile(isa: Isa, conv: Conv2d) -> SkipTile:
    """Return the tile that suits most layers: eight sums hide an addition's latency of four cycles at two a cycle."""
    pixels = min(2, conv.out_width)
    return SkipTile(pixels, panel_size(isa, conv.outputs, 8 // pixels) // isa.lanes)


def pack_conv2d_skip(isa: Isa, tile: SkipTile, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels * taps * panel], bias: f32[max(outputs, panel)])`` of `conv2d_skip`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``.
    """
    packed, padded = pack_panels(isa, weight, bias, tile.vectors)
    return packed.reshape(-1), padded


def _tile(isa: Isa, conv: Conv2d, tile: SkipTile):
    """Return the macro that computes one register tile from the lists of the rows that it sees.

    ``(lists, operands, y, to, panel, column, top, start, stop)``: `to` is the tile's first pixel in the output,
    `column` the first column, padding included, that it sees, `top` the first row; kernel rows from `start` to `stop`
    lie inside the image.
    """
    lanes, size, slots = isa.lanes, panel_size(isa, conv.outputs, tile.vectors), conv.reach[0]
    pixels, vectors, begun = tile.pixels, size // lanes, positions(conv, tile.pixels) + 1
    runs, neighbours = (1, conv.kernel[1]) if conv.dilation[1] == 1 else (conv.kernel[1], 1)
    store = store_pixel(isa, conv)

    @T.inline
    def compute(lists, operands, y, to, panel, column, top, start, stop):
        values, places, starts, task = lists
        weight, bias, residual = operands
        total = T.alloc_buffer((pixels * vectors, lanes), "float32", scope="local")
        out: T.let = panel_column(panel, conv.outputs, size)
        for p in T.unroll(pixels):
            for v in T.unroll(vectors):
                total[p * vectors + v, T.ramp(0, 1, lanes)] = bias[T.ramp(out + v * lanes, 1, lanes)]
        for down in T.serial(start, stop):
            slot: T.let = (task * slots + (top + down * conv.dilation[0]) % slots) * begun
            for across in T.serial(runs):
                left: T.let = column + across * conv.dilation[1]
                tap: T.let = (down * runs + across) * neighbours
                base: T.let = (panel * conv.taps + (tap - left) * conv.inputs) * size
                first: T.let = starts[slot + left]
                last: T.let = starts[slot + left + neighbours]
                for i in T.serial(first, last):
                    place: T.let = base + places[i]
                    for v in T.unroll(vectors):
                        for p in T.unroll(pixels):
                            total[p * vectors + v, T.ramp(0, 1, lanes)] = (
                                total[p * vectors + v, T.ramp(0, 1, lanes)]
                                + T.broadcast(values[p, i], lanes) * weight[T.ramp(place + v * lanes, 1, lanes)]
                            )
        for p in T.unroll(pixels):
            for v in T.unroll(vectors):
                store(
                    y,
                    residual,
                    (to + p) * conv.outputs + out + v * lanes,
                    total[p * vectors + v, T.ramp(0, 1, lanes)],
                )

    return compute


def _over_rows(isa: Isa, conv: Conv2d, tile: SkipTile, threads: int):
    """Return the macro ``(x, padded, lists, operands, y)`` that computes a task's share of the output rows.

    ``padded`` receives a row of the input at a time, with its padding. Lists of the rows that an output row sees
    lie in a ring of slots; each row is listed when it is first seen.
    """
    size, pixels, slots = panel_size(isa, conv.outputs, tile.vectors), tile.pixels, conv.reach[0]
    room, begun = list_room(isa, conv, pixels), positions(conv, pixels) + 1
    panels, rows, gap = panel_count(conv.outputs, size), conv.batch * conv.out_height, conv.dilation[0]
    row_values, inside = conv.padded_width * conv.inputs, conv.width * conv.inputs
    before = conv.padding[1] * conv.inputs
    compute, listed = _tile(isa, conv, tile), list_row(isa, conv, pixels, size)

    @T.inline
    def over_rows(x, padded, lists, operands, y):
        values, places, starts, task = lists
        ready = T.alloc_buffer((1,), "int32", scope="local")
        ready[0] = 0
        for i in T.serial(row_values):
            padded[task * row_values + i] = T.float32(0)
        for row in T.serial(task * rows // threads, (task + 1) * rows // threads):
            image: T.let = row // conv.out_height
            top: T.let = row % conv.out_height * conv.strides[0] - conv.padding[0]
            bottom: T.let = T.min(top + slots, conv.height)
            if row % conv.out_height == 0:
                ready[0] = 0
            for seen in T.serial(T.max(ready[0], T.max(top, 0)), bottom):
                slot: T.let = task * slots + seen % slots
                for i in T.serial(inside):
                    padded[task * row_values + before + i] = x[(image * conv.height + seen) * inside + i]
                listed(padded, task * row_values, values, places, slot * room, starts, slot * begun)
            ready[0] = T.max(ready[0], bottom)
            start: T.let = T.max(0, (gap - 1 - top) // gap)
            stop: T.let = T.min(conv.kernel[0], (conv.height - 1 - top) // gap + 1)
            for panel in T.serial(panels):
                for t in T.serial(-(-conv.out_width // pixels)):
                    first: T.let = T.min(t * pixels, conv.out_width - pixels)
                    to: T.let = row * conv.out_width + first
                    compute(lists, operands, y, to, panel, first * conv.strides[1], top, start, T.max(start, stop))

    return over_rows


def conv2d_skip(isa: Isa, conv: Conv2d, tile: SkipTile, threads: int):
    """Return the kernel ``(x: f32[input size], weight, bias, residual: f32[residual size]) -> y: f32[output size]``.

    ``weight`` and ``bias`` are from `pack_conv2d_skip`. Threads share the output rows.
    """
    size = panel_size(isa, conv.outputs, tile.vectors)
    weights, columns = panel_count(conv.outputs, size) * conv.taps * size, max(conv.outputs, size)
    slots, row_values = threads * conv.reach[0], threads * conv.padded_width * conv.inputs
    room, begun = slots * list_room(isa, conv, tile.pixels), slots * (positions(conv, tile.pixels) + 1)
    over_rows = _over_rows(isa, conv, tile, threads)

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((weights,), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        padded = T.sblock_alloc_buffer((row_values,), "float32")
        values = T.sblock_alloc_buffer((tile.pixels, room), "float32")
        places = T.sblock_alloc_buffer((room,), "int32")
        starts = T.sblock_alloc_buffer((begun,), "int32")
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0 : conv.input_size], weight[0:weights], bias[0:columns], residual[0 : conv.residual_size])
                T.writes(
                    y[0 : conv.output_size],
                    padded[0:row_values],
                    values[0 : tile.pixels, 0:room],
                    places[0:room],
                    starts[0:begun],
                )
                over_rows(x, padded, (values, places, starts, vt), (weight, bias, residual), y)

    return convolved
