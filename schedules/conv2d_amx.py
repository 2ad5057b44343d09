"""Register tiles on AMX: up to 16 pixels times 16 outputs each, 64 taps of bytes or 32 of bf16 at a time.

TVM 0.27 has no intrinsics for tiles, but LLVM's can be called with the numbers of tile registers as immediates. Tiles
take rows at one constant distance: of output pixels in one line (`schedules.conv2d_lines`). The operating system must
have given the process leave to use tiles (`schedules.cpu.request_tiles`).
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column, panel_count
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import prefetch

#: Tile registers; rows of a tile; outputs of one.
REGISTERS, ROWS, LANES = 8, 16, 16
#: Bytes of weights that stay in a second level of 2 MB beside a band.
KEPT_BYTES = 1 << 20
#: By the bytes of a value: the product of two tiles, and the type of what it is added to.
PRODUCTS = {1: ("tdpbusd", "int32"), 2: ("tdpbf16ps", "float32")}


def tile_op(name: str, *operands):
    """Return the statement that executes one of LLVM's tile intrinsics."""
    return T.evaluate(T.call_llvm_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *operands, dtype="void"))


def configure(isa: Isa, tile):
    """Return the macro that gives tile registers their shapes: sums first, then pixels, then weights."""
    sums = tile.tiles * tile.vectors
    rows = [tile.pixels] * (sums + tile.tiles) + [ROWS] * tile.vectors

    @inline
    def nothing():
        pass

    if not (isa.amx and tile.matrix):
        return nothing

    @inline
    def begin():
        config = T.alloc_buffer((64,), "uint8", scope="local")
        for i in T.serial(64):
            config[i] = T.uint8(0)
        config[0] = T.uint8(1)
        for i in T.serial(len(rows)):
            config[16 + 2 * i] = T.uint8(STEP)
        for i in T.serial(sums + tile.tiles):
            config[48 + i] = T.uint8(tile.pixels)
        for i in T.serial(tile.vectors):
            config[48 + sums + tile.tiles + i] = T.uint8(ROWS)
        tile_op("ldtilecfg", T.address_of(config[0]))

    return begin


def release(isa: Isa, tile):
    """Return the macro that gives tile registers back."""

    @inline
    def nothing():
        pass

    @inline
    def end():
        tile_op("tilerelease")

    return end if isa.amx and tile.matrix else nothing


def amx_panels(lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` for a band and some panels.

    Panels are those from `first` to `last`. `image` holds what the band reads from `origin` on, `to` is its first pixel
    in the output; `store` is `schedules.conv2d_finish.finish_sums`. Sums of one block of tiles leave their registers
    one by one as the next block takes these, and what follows them is done between the products of that block, which
    leave the vector units idle. Of the first block zeros are finished that way, in the place that its sums are written
    to later.
    """
    pixels, tiles, vectors = tile.pixels, tile.tiles, tile.vectors
    (product, kind), sums, width = PRODUCTS[lines.size], tiles * vectors, tile.vectors * LANES
    per_line = -(-lines.length // pixels)
    every = lines.count * per_line
    blocks = -(-every // tiles)
    downs, times, steps = lines.loops
    all_steps, down_by, across_by = downs * times * steps, *lines.strides
    more = max(0, vectors - tiles)
    # Rows that are finished together: a part of a tile, as many as make up for the steps there are.
    least = min(pixels, -(-tiles * pixels // all_steps))
    rows = next(n for n in range(least, pixels + 1) if pixels % n == 0)
    every_part = tiles * pixels // rows
    at_once = -(-every_part // all_steps)
    weight_bytes = panel_count(conv.outputs, width) * lines.steps * width * STEP
    # Rows of the next panel's weights that each step asks for, so that all have come when it is due.
    asked = -(-vectors * ROWS // blocks) if weight_bytes > KEPT_BYTES and blocks < 2 * ROWS * vectors else 0

    def finish_rows(operands, y, to, column, total, pixel, row):
        places = [(to + lines.place(pixel + j, conv.out_width)) * conv.outputs + column for j in range(rows)]
        at = [(row + j) * width for j in range(rows)]
        values = [[total[T.ramp(first + v * LANES, 1, LANES)] for v in range(vectors)] for first in at]
        store(operands, y, places, column, values)

    @inline
    def finish(operands, y, to, column, total, start, part):
        """Write the sums of `rows` rows of one tile, in the order of pixels."""
        pixel: T.let = start[part * rows // pixels] + part * rows % pixels
        finish_rows(operands, y, to, column, total, pixel, part * rows)

    @inline
    def load_weights(weight, panel, at, v):
        tile_op(
            "tileloadd64",
            T.cast(sums + tiles + v, "int8"),
            T.address_of(weight[panel, at, v, 0, 0]),
            T.int64(STEP),
        )

    @inline
    def load(image, weight, base, panel, at, skip):
        for i in T.unroll(tiles):
            tile_op(
                "tileloadd64",
                T.cast(sums + i, "int8"),
                T.address_of(image[base[i] + skip]),
                T.int64(lines.pixel * lines.size),
            )
            if i < vectors:
                load_weights(weight, panel, at, i)
        for v in T.unroll(more):
            load_weights(weight, panel, at, tiles + v)

    @inline
    def multiply(i, v):
        tile_op(
            product,
            T.cast(i * vectors + v, "int8"),
            T.cast(sums + i, "int8"),
            T.cast(sums + tiles + v, "int8"),
        )

    @inline
    def unload(total, i, v):
        tile_op(
            "tilestored64",
            T.cast(i * vectors + v, "int8"),
            T.address_of(total[i * pixels * width + v * LANES]),
            T.int64(4 * width),
        )

    @inline
    def compute(image, origin, operands, y, to, first, last):
        total = T.alloc_buffer((sums * pixels * LANES,), kind)
        base = T.alloc_buffer((tiles,), "int32")
        start = T.alloc_buffer((tiles,), "int32")
        before = T.alloc_buffer((tiles,), "int32")
        for i in T.unroll(tiles):
            start[i] = i // per_line * lines.across + T.min(i % per_line * pixels, lines.length - pixels)
        for i in T.unroll(sums):
            tile_op("tilezero", T.cast(i, "int8"))
        for n in T.serial((last - first) * blocks):
            panel: T.let = first + n // blocks
            column: T.let = panel_column(T.max(first, first + (n - 1) // blocks), conv.outputs, width)
            for i in T.unroll(tiles):
                number: T.let = T.min(n % blocks * tiles, every - tiles) + i
                line: T.let = number // per_line
                left: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                before[i] = start[i]
                start[i] = line * lines.across + left
                base[i] = origin + line * lines.line + left * lines.pixel
            for down in T.serial(downs):
                for across in T.serial(times):
                    for step in T.serial(steps):
                        at: T.let = (down * times + across) * steps + step
                        skip: T.let = down * down_by + across * across_by + step * lines.step
                        load(image, operands[0], base, panel, at, skip)
                        if at == 0:
                            for i in T.unroll(tiles):
                                for v in T.unroll(vectors):
                                    unload(total, i, v)
                                    tile_op("tilezero", T.cast(i * vectors + v, "int8"))
                                    multiply(i, v)
                        else:
                            for i in T.unroll(tiles):
                                for v in T.unroll(vectors):
                                    multiply(i, v)
                        if asked > 0 and panel + 1 < last:
                            for ask in T.serial(asked):
                                line_of: T.let = T.min(n % blocks * asked + ask, vectors * ROWS - 1)
                                prefetch(operands[0][panel + 1, at, line_of // ROWS, line_of % ROWS, 0], level=2)
                        if at_once == 1:
                            if at < every_part:
                                finish(operands, y, to, column, total, before, at)
                        else:
                            for part in T.serial(at * at_once, T.min((at + 1) * at_once, every_part)):
                                finish(operands, y, to, column, total, before, part)
        if first < last:
            for i in T.unroll(tiles):
                for v in T.unroll(vectors):
                    unload(total, i, v)
            for part in T.serial(every_part):
                finish(operands, y, to, panel_column(last - 1, conv.outputs, width), total, start, part)

    return compute
