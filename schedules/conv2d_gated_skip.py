"""Gate and zero skipping together: the open tiles of a gated convolution, over the nonzero values of its input.

A tile of the gate is one pixel and one panel (`schedules.conv2d_gated`). Of each row of the kernel an open pixel sees a
run of the row's list (`schedules.nonzero_rows`), and each value of it is multiplied with a row of the panel's weights.
Several values at a time have sums of their own, so that products need not wait for each other.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_gated import default_gated_tile, gate_size
from schedules.conv2d_panels import pack_panels, panel_column
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import input_lists
from schedules.conv2d_store import store_pixel
from schedules.conv2d_walk import across
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.nonzero_rows import RowLists
from schedules.panels import panel_size
from schedules.row_ring import RowRing

#: Vectors of sums of a tile: a product takes four cycles, of which two can begin in each.
_SUMS = 4


def pack_gated_skip(isa: Isa, conv: Conv2d, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels * taps * panel], bias)`` of `gated_skip_conv2d`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``.
    """
    packed, padded = pack_panels(isa, weight, bias, default_gated_tile(isa, conv).vectors)
    return packed.reshape(-1), padded


def _tile(isa: Isa, conv: Conv2d, lists: RowLists, size: int):
    """Return ``(lists, block, operands, y, panel, row, pixel, start, stop)``: one open tile.

    ``block(down)`` is where the lists of the input row begin that row `down` of the kernel sees, of those from `start`
    to `stop`, which lie inside the image.
    """
    lanes, vectors = isa.lanes, size // isa.lanes
    at_once = max(1, _SUMS // vectors)
    store, run = store_pixel(isa, conv), conv.inputs * size
    # Without gaps the pixels that a row of the kernel sees are neighbours, and their values one run.
    columns, seen = (1, conv.kernel[1]) if conv.dilation[1] == 1 else (conv.kernel[1], 1)

    def begin(total, bias, column):
        for i, vector in enumerate(total):
            first = bias[T.ramp(column + i * lanes, 1, lanes)] if i < vectors else T.broadcast(T.float32(0), lanes)
            T.buffer_store(vector, first, [T.ramp(0, 1, lanes)])

    def multiply(total, weight, value, at, which):
        for v in range(vectors):
            vector = total[which * vectors + v]
            product = T.broadcast(value, lanes) * weight[T.ramp(at + v * lanes, 1, lanes)]
            T.buffer_store(vector, vector[T.ramp(0, 1, lanes)] + product, [T.ramp(0, 1, lanes)])

    def finish(total, residual, y, at):
        for v in range(vectors):
            sums = [total[which * vectors + v][T.ramp(0, 1, lanes)] for which in range(at_once)]
            while len(sums) > 1:
                sums = [sum(pair[1:], pair[0]) for pair in zip(sums[::2], sums[1::2], strict=True)]
            store(y, residual, at + v * lanes, sums[0])

    def registers():
        return [T.alloc_buffer((lanes,), "float32") for _ in range(at_once * vectors)]

    def begun(listed, at, pixel):
        return T.reinterpret(listed[at + T.min(T.max(pixel, 0), conv.width)], dtype="int32")

    @inline
    def add(total, listed, weight, at, base, i, which):
        place: T.let = T.reinterpret(listed[at + lists.places + i], dtype="int32")
        multiply(total, weight, listed[at + lists.values + i], base + place * size, which)

    def add_each(total, listed, weight, at, base, i):
        for which in range(at_once):
            add(total, listed, weight, at, base, i + which, which)

    @inline
    def compute(listed, block, operands, y, panel, row, pixel, start, stop):
        weight, bias, residual = operands
        column: T.let = panel_column(panel, conv.outputs, size)
        total = registers()
        begin(total, bias, column)
        for down in T.serial(start, stop):
            at: T.let = block(down)
            for across_ in T.serial(columns):
                left: T.let = pixel * conv.strides[1] - conv.padding[1] + across_ * conv.dilation[1]
                first: T.let = begun(listed, at, left)
                last: T.let = begun(listed, at, left + seen)
                base: T.let = (panel * conv.taps) * size + ((down * conv.kernel[1] + across_) * run - left * run)
                whole: T.let = (last - first) // at_once
                for turn in T.serial(whole):
                    add_each(total, listed, weight, at, base, first + turn * at_once)
                for i in T.serial(first + whole * at_once, last):
                    add(total, listed, weight, at, base, i, 0)
        finish(total, residual, y, (row * conv.out_width + pixel) * conv.outputs + column)

    return compute


def gated_skip_conv2d(isa: Isa, conv: Conv2d, threads: int, reads_lists: bool = False):
    """Return the kernel ``(x, weight, bias, residual, open, closed) -> y: f32[output size]``.

    ``weight`` and ``bias`` are from `pack_gated_skip`, ``x`` is an image or, with `reads_lists`, lists as
    `schedules.conv2d_skip.input_lists` lays them out; ``open`` and ``closed`` are those of
    `schedules.conv2d_gated.gated_conv2d`. Threads share the output rows.
    """
    tile = default_gated_tile(isa, conv)
    size, (panels, all_pixels) = panel_size(isa, conv.outputs, tile.vectors), gate_size(isa, conv, tile)
    conv, lanes, outputs = across(conv), isa.lanes, conv.outputs
    vectors, columns, weights = -(-outputs // lanes), max(outputs, size), panels * conv.taps * size
    parts, gap = RowRing(isa, conv, threads, reads_lists), conv.dilation[0]
    ring_lists, fill, kernel_rows, own = parts.lists, parts.fill(), parts.kernel_rows, parts.own
    read = input_lists(conv).size if reads_lists else conv.input_size
    compute, store = _tile(isa, conv, ring_lists, size), store_pixel(isa, conv)
    width, rows = conv.out_width, conv.batch * conv.out_height

    def seen_from(image, top, task):
        return lambda down: parts.block(image, top + down * gap, task)

    @inline
    def keep_closed(closed, residual, y, row):
        for p in T.serial(width):
            for v in T.serial(vectors):
                at: T.let = (row * width + p) * outputs + T.min(v * lanes, outputs - lanes)
                store(y, residual, at, closed[T.ramp(at, 1, lanes)])

    @inline
    def over_rows(x, ring, operands, opened, closed, chosen, y, task):
        ready = T.alloc_buffer((1,), "int32")
        count = T.alloc_buffer((1,), "int32", scope="local")
        ready[0] = 0
        # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the lists.
        ring[task * own] = T.float32(0)
        for row in T.serial(task * rows // threads, (task + 1) * rows // threads):
            image: T.let = row // conv.out_height
            top: T.let = row % conv.out_height * conv.strides[0] - conv.padding[0]
            fill(x, ring, ready, row, task)
            keep_closed(closed, operands[2], y, row)
            start: T.let = kernel_rows(top)[0]
            stop: T.let = kernel_rows(top)[1]
            for panel in T.serial(panels):
                count[0] = 0
                for p in T.serial(width):
                    chosen[task * (width + 1) + count[0]] = p
                    count[0] = count[0] + T.Cast("int32", opened[panel, row * width + p])
                for i in T.serial(count[0]):
                    compute(
                        x if reads_lists else ring,
                        seen_from(image, top, task),
                        operands,
                        y,
                        panel,
                        row,
                        chosen[task * (width + 1) + i],
                        start,
                        stop,
                    )

    @T.prim_func(s_tir=True, private=True)
    def gated(
        x: T.Buffer((read,), "float32"),
        weight: T.Buffer((weights,), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        opened: T.Buffer((panels, all_pixels), "uint8"),
        closed: T.Buffer((conv.output_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        ring = T.sblock_alloc_buffer((ring_lists.size,), "float32")
        chosen = T.sblock_alloc_buffer((threads * (width + 1),), "int32")
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0:read],
                    weight[0:weights],
                    bias[0:columns],
                    residual[0 : conv.residual_size],
                    opened[0:panels, 0:all_pixels],
                    closed[0 : conv.output_size],
                )
                T.writes(y[0 : conv.output_size], ring[0 : ring_lists.size], chosen[0 : threads * (width + 1)])
                over_rows(x, ring, (weight, bias, residual), opened, closed, chosen, y, vt)

    return gated
