"""Gated convolution: register tiles of the open pixels of each panel of output channels.

A tile of the gate is one pixel and one panel. Closed ones hold what the little module predicts. Since a value of
the input is only ever broadcast, pixels of a register tile may lie anywhere, and gathering them costs nothing
(`schedules.conv2d`).
"""

from __future__ import annotations

from dataclasses import replace

from tvm.script import tirx as T

from schedules.conv2d import even_tile
from schedules.conv2d_bands import Bands, band_rows, heavy
from schedules.conv2d_panels import panel_count, panel_slices
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_store import store_pixel
from schedules.conv2d_tile import partial_tile, register_tile, rows_at_once
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.knobs import ConvTile
from schedules.panels import panel_size


def default_gated_tile(isa: Isa, conv: Conv2d) -> ConvTile:
    """Return the tile that suits most layers.

    Bands are as high as stay in L2, since lists are filled up to whole tiles, and evenly so, since the last band
    overlaps the one before it.
    """
    bands = Bands(conv, band_rows(conv)).per_image
    return replace(even_tile(isa, conv), rows=-(-conv.out_height // bands))


def gate_size(isa: Isa, conv: Conv2d, tile: ConvTile) -> tuple[int, int]:
    """Return the panels, and the pixels of each, that a gate of this convolution decides on."""
    return panel_count(conv.outputs, panel_size(isa, conv.outputs, tile.vectors)), conv.output_size // conv.outputs


def gate_panels(isa: Isa, conv: Conv2d) -> list[slice]:
    """Return the channels of each tile that the gate of a convolution decides on."""
    return panel_slices(conv.outputs, panel_size(isa, conv.outputs, default_gated_tile(isa, conv).vectors))


def gated_conv2d(isa: Isa, conv: Conv2d, tile: ConvTile, threads: int):
    """Return the kernel ``(x, weight, bias, residual, open, closed) -> y: f32[output size]``.

    The first four are those of `schedules.conv2d.conv2d`, packed by `schedules.conv2d.pack_conv2d`. ``open: u8[panels,
    pixels]`` is 1 where a pixel of a panel is to be computed, ``closed: f32[output size]`` what the sums of the others
    are taken to be. Threads share the bands.
    """
    lanes, outputs, size = isa.lanes, conv.outputs, panel_size(isa, conv.outputs, tile.vectors)
    (panels, all_pixels), columns = gate_size(isa, conv, tile), max(conv.outputs, size)
    bands, tall = Bands(conv, tile.rows), tile.pixels
    pixels = bands.pixels
    # A list is filled up to whole tiles.
    room = -(-pixels // tall) * tall
    kernel_rows = conv.kernel[0]
    rows = rows_at_once(conv, size, room // tall)
    whole = not heavy(conv)
    # One vector, which nobody reads, where no sums wait.
    sums = 1 if rows == kernel_rows else room * (size // lanes)
    compute, part = register_tile(isa, conv, tile.vectors, tall), partial_tile(isa, conv, tile.vectors, tall, rows)
    store, vectors = store_pixel(isa, conv), -(-outputs // lanes)

    def listed(chosen, first):
        return lambda p: chosen[first + p]

    @inline
    def keep_closed(closed, residual, y, to):
        for p in T.serial(pixels):
            for v in T.serial(vectors):
                at: T.let = (to + p) * outputs + T.min(v * lanes, outputs - lanes)
                store(y, residual, at, closed[T.ramp(at, 1, lanes)])

    @inline
    def over_tiles(image, origin, context, to):
        operands, (opened, closed, chosen, waiting), y, task = context
        keep_closed(closed, operands[2], y, to)
        # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the sums.
        waiting[task * (sums * lanes)] = T.float32(0)
        count = T.alloc_buffer((1,), "int32", scope="local")
        for panel in T.serial(panels):
            count[0] = 0
            for p in T.serial(pixels):
                chosen[task * room + count[0]] = p
                count[0] = count[0] + T.Cast("int32", opened[panel, to + p])
            for p in T.serial((tall - count[0] % tall) % tall):
                chosen[task * room + count[0] + p] = chosen[task * room + count[0] - 1]
            if whole:
                for t in T.serial((count[0] + tall - 1) // tall):
                    compute(image, origin, operands, y, to, panel, listed(chosen, task * room + t * tall))
            else:
                for block in T.serial(-(-kernel_rows // rows)):
                    start: T.let = block * rows
                    stop: T.let = T.min(start + rows, kernel_rows)
                    for t in T.serial((count[0] + tall - 1) // tall):
                        part(
                            image,
                            origin,
                            operands,
                            y,
                            to,
                            panel,
                            listed(chosen, task * room + t * tall),
                            start,
                            stop,
                            waiting,
                            task * sums,
                            t,
                        )

    each_band = bands.each(over_tiles)

    @T.prim_func(s_tir=True, private=True)
    def gated(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((panels, conv.taps, size), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        opened: T.Buffer((panels, all_pixels), "uint8"),
        closed: T.Buffer((conv.output_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        scratch = T.sblock_alloc_buffer((threads * bands.scratch_size,), "float32")
        chosen = T.sblock_alloc_buffer((threads * room + 1,), "int32")
        waiting = T.sblock_alloc_buffer((threads * sums * lanes,), "float32")
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0 : conv.input_size],
                    weight[0:panels, 0 : conv.taps, 0:size],
                    bias[0:columns],
                    residual[0 : conv.residual_size],
                    opened[0:panels, 0:all_pixels],
                    closed[0 : conv.output_size],
                )
                T.writes(
                    y[0 : conv.output_size],
                    scratch[0 : threads * bands.scratch_size],
                    chosen[0 : threads * room + 1],
                    waiting[0 : threads * sums * lanes],
                )
                each_band(
                    x,
                    scratch,
                    ((weight, bias, residual), (opened, closed, chosen, waiting), y, vt),
                    vt,
                    vt * bands.count // threads,
                    (vt + 1) * bands.count // threads,
                )

    return gated
