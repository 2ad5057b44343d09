"""Register tiles of bytes on AMX: up to 16 pixels times 16 outputs each, 64 taps at a time.

TVM 0.27 has no intrinsics for tiles, but LLVM's can be called with the numbers of tile registers as immediates. Tiles
take rows at one constant distance: of output pixels in one line (`schedules.conv2d_bytes`). The operating system must
have given the process leave to use tiles (`schedules.cpu.request_tiles`).
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_bytes import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.intrinsics import prefetch

#: Tile registers; rows of a tile; outputs of one.
REGISTERS, ROWS, LANES = 8, 16, 16


def tile_op(name: str, *operands):
    """Return the statement that executes one of LLVM's tile intrinsics."""
    return T.evaluate(T.call_llvm_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *operands, dtype="void"))


def configure(isa: Isa, tile):
    """Return the macro that gives tile registers their shapes: sums first, then pixels, then weights."""
    sums = tile.tiles * tile.vectors
    rows = [tile.pixels] * (sums + tile.tiles) + [ROWS] * tile.vectors

    @T.inline
    def nothing():
        pass

    if not isa.amx:
        return nothing

    @T.inline
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


def release(isa: Isa):
    """Return the macro that gives tile registers back."""

    @T.inline
    def nothing():
        pass

    @T.inline
    def end():
        tile_op("tilerelease")

    return end if isa.amx else nothing


def amx_panels(lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` for a band and some panels.

    Panels are those from `first` to `last`. `image` holds what the band reads from `origin` on, `to` is its first pixel
    in the output; `store` writes 16 sums. What follows the sums of one block of tiles is done between the products of
    the next, which leave the vector units idle.
    """
    pixels, tiles, vectors = tile.pixels, tile.tiles, tile.vectors
    sums, width, rows = tiles * vectors, tile.vectors * LANES, tile.tiles * tile.pixels
    per_line = -(-lines.length // pixels)
    every = lines.count * per_line
    blocks = -(-every // tiles)
    downs, times, steps = lines.loops
    all_steps, size = downs * times * steps, sums * pixels * LANES
    down_by, across_by = lines.strides
    wide, across_all = conv.out_width, lines.across
    # Rows of the next panel's weights that each step asks for, so that all have come when it is due.
    asked = -(-vectors * ROWS // blocks)

    @T.inline
    def write(operands, y, at, column, total, row):
        for v in T.unroll(vectors):
            store(operands, y, at + v * LANES, column + v * LANES, total[T.ramp(row + v * LANES, 1, LANES)])

    @T.inline
    def finish(operands, y, to, panel, total, origin, start, first, last):
        """Write the sums of some rows of a block; those of pixels between the output's rows are nobody's."""
        column: T.let = panel_column(panel, conv.outputs, width)
        for row in T.serial(first, last):
            pixel: T.let = start[row // pixels] + row % pixels
            if across_all == wide:
                write(operands, y, (to + pixel) * conv.outputs + column, column, total, origin + row * width)
            else:
                if pixel % across_all < wide:
                    write(
                        operands,
                        y,
                        (to + pixel // across_all * wide + pixel % across_all) * conv.outputs + column,
                        column,
                        total,
                        origin + row * width,
                    )

    @T.inline
    def multiply(image, weight, base, panel, at, skip):
        for i in T.unroll(tiles):
            tile_op(
                "tileloadd64",
                T.cast(sums + i, "int8"),
                T.address_of(image[base[i] + skip]),
                T.int64(lines.pixel),
            )
        for v in T.unroll(vectors):
            tile_op(
                "tileloadd64",
                T.cast(sums + tiles + v, "int8"),
                T.address_of(weight[panel, at, v, 0, 0]),
                T.int64(STEP),
            )
            for i in T.unroll(tiles):
                tile_op(
                    "tdpbusd",
                    T.cast(i * vectors + v, "int8"),
                    T.cast(sums + i, "int8"),
                    T.cast(sums + tiles + v, "int8"),
                )

    @T.inline
    def compute(image, origin, operands, y, to, first, last):
        weight = operands[0]
        total = T.alloc_buffer((2 * size,), "int32", scope="local")
        base = T.alloc_buffer((tiles,), "int32", scope="local")
        start = T.alloc_buffer((tiles,), "int32", scope="local")
        before = T.alloc_buffer((tiles,), "int32", scope="local")
        for n in T.serial((last - first) * blocks):
            panel: T.let = first + n // blocks
            for i in T.unroll(tiles):
                number: T.let = T.min(n % blocks * tiles, every - tiles) + i
                line: T.let = number // per_line
                column: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                before[i] = start[i]
                start[i] = line * across_all + column
                base[i] = origin + line * lines.line + column * lines.pixel
            for i in T.unroll(sums):
                tile_op("tilezero", T.cast(i, "int8"))
            for down in T.serial(downs):
                for across in T.serial(times):
                    for step in T.serial(steps):
                        at: T.let = (down * times + across) * steps + step
                        multiply(image, weight, base, panel, at, down * down_by + across * across_by + step * STEP)
                        if blocks < 2 * ROWS * vectors and panel + 1 < last:
                            for ask in T.serial(asked):
                                line_of: T.let = T.min(n % blocks * asked + ask, vectors * ROWS - 1)
                                prefetch(weight[panel + 1, at, line_of // ROWS, line_of % ROWS, 0], level=2)
                        if n > 0:
                            finish(
                                operands,
                                y,
                                to,
                                first + (n - 1) // blocks,
                                total,
                                (n + 1) % 2 * size,
                                before,
                                at * rows // all_steps,
                                (at + 1) * rows // all_steps,
                            )
            for i in T.unroll(tiles):
                for v in T.unroll(vectors):
                    tile_op(
                        "tilestored64",
                        T.cast(i * vectors + v, "int8"),
                        T.address_of(total[n % 2 * size + i * pixels * width + v * LANES]),
                        T.int64(4 * width),
                    )
        done: T.let = (last - first) * blocks
        if done > 0:
            finish(operands, y, to, last - 1, total, (done + 1) % 2 * size, start, 0, rows)

    return compute
