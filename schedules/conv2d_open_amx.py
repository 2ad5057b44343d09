"""Open pixels on AMX: 16 of them, wherever they lie, become the rows of a tile.

Tiles take rows at one constant distance, so the taps of listed pixels are copied, step by step, into a ring of a few
steps in the first level, shortly before they are multiplied. The copies take load and store units, which products
leave idle. A listed block is 32 pixels and one panel of outputs, or 16 where that is all.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_amx import PRODUCTS, ROWS, tile_op
from schedules.conv2d_byte_tile import LANES, ByteTile
from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d

#: Steps that the ring holds, a power of two, and how many of them taps are copied ahead.
SLOTS, AHEAD = 4, 2


def ring_size(lines: Lines, tile: ByteTile) -> int:
    """Return the values of a task's ring."""
    return SLOTS * tile.tiles * ROWS * lines.step


def open_amx(lines: Lines, conv: Conv2d, tile: ByteTile, tiles: int, store):
    """Return the macro ``(image, origin, operands, y, to, lists, ring, slot, first, last)`` for some listed blocks.

    Blocks are those from `first` to `last` of `tiles` tiles of 16 pixels each. ``lists`` are four buffers of ``i32``:
    of each listed pixel its place in the band, and from where on what it sees lies behind `origin` in `image`; of each
    block its panel, and where it begins in those two. `to` is the band's first pixel in the output, ``ring`` a buffer
    that belongs to the task from `slot` on; `store` is `schedules.conv2d_finish.finish_sums`. `tile` says how weights
    are packed and registers configured. As in `schedules.conv2d_amx.amx_panels` what follows the sums of a block is
    done between the products of the next.
    """
    vectors, width = tile.vectors, tile.vectors * LANES
    (product, kind), sums, listed = PRODUCTS[lines.size], tile.tiles * tile.vectors, tiles * ROWS
    steps, row = lines.steps, lines.step
    _, times, of_run = lines.loops
    down_by, across_by = lines.strides
    # Rows that are finished together: bytes are packed by two rows of two vectors.
    rows = next(n for n in (2, 4, 8, 16) if n == 16 or listed // n <= steps)
    parts = listed // rows
    at_once = -(-parts // steps)

    def skipped(at):
        """Values from a pixel to the taps of a step."""
        run = T.truncdiv(at, of_run)
        down, across = (T.truncdiv(run, times), T.truncmod(run, times)) if times > 1 else (run, 0)
        return down * down_by + across * across_by + T.truncmod(at, of_run) * row

    @T.inline
    def gather(image, origin, bases, begin, ring, to, at, some, count):
        """Copy `count` pixels' taps of a step, from the pixel `some` of a block on."""
        skip: T.let = origin + skipped(at)
        for r in T.unroll(count):
            ring[T.ramp(to + (some + r) * row, 1, row)] = image[T.ramp(skip + bases[begin + some + r], 1, row)]

    @T.inline
    def load_weights(weight, panel, at, v):
        tile_op(
            "tileloadd64",
            T.cast(sums + tile.tiles + v, "int8"),
            T.address_of(weight[panel, at, v, 0, 0]),
            T.int64(STEP),
        )

    @T.inline
    def load(ring, slot, weight, panel, at):
        for i in T.unroll(tiles):
            tile_op(
                "tileloadd64", T.cast(sums + i, "int8"), T.address_of(ring[slot + i * (ROWS * row)]), T.int64(STEP)
            )
        for v in T.unroll(vectors):
            load_weights(weight, panel, at, v)

    @T.inline
    def multiply(i, v):
        tile_op(
            product,
            T.cast(i * vectors + v, "int8"),
            T.cast(sums + i, "int8"),
            T.cast(sums + tile.tiles + v, "int8"),
        )

    @T.inline
    def unload(total, i, v):
        tile_op(
            "tilestored64",
            T.cast(i * vectors + v, "int8"),
            T.address_of(total[i * (ROWS * width) + v * LANES]),
            T.int64(4 * width),
        )

    def finish_rows(operands, y, to, column, total, places, first, row):
        at = [(to + places[first + row + j]) * conv.outputs + column for j in range(rows)]
        starts = [(row + j) * width for j in range(rows)]
        values = [[total[T.ramp(start + v * LANES, 1, LANES)] for v in range(vectors)] for start in starts]
        store(operands, y, at, column, values)

    @T.inline
    def finish(operands, y, to, total, places, before, part):
        finish_rows(operands, y, to, before[0], total, places, before[1], part * rows)

    @T.inline
    def compute(image, origin, operands, y, to, lists, ring, slot, first, last):
        places, bases, panel_of, begin_of, _found, _base_of = lists
        total = T.alloc_buffer((listed * width,), kind)
        before = T.alloc_buffer((2,), "int32")
        if first < last:
            before[0] = panel_column(panel_of[first], conv.outputs, width)
            before[1] = begin_of[first]
            for i in T.unroll(sums):
                tile_op("tilezero", T.cast(i, "int8"))
            for g in T.serial(AHEAD):
                begin: T.let = begin_of[T.min(first + g // steps, last - 1)]
                gather(image, origin, bases, begin, ring, slot + g * (listed * row), g % steps, 0, listed)
            for n in T.serial(first, last):
                panel: T.let = panel_of[n]
                for at in T.serial(steps):
                    step: T.let = (n - first) * steps + at
                    here: T.let = slot + step % SLOTS * (listed * row)
                    there: T.let = slot + (step + AHEAD) % SLOTS * (listed * row)
                    begin: T.let = begin_of[T.min(n + T.truncdiv(at + AHEAD, steps), last - 1)]
                    load(ring, here, operands[0], panel, at)
                    for i in T.unroll(tiles):
                        for v in T.unroll(vectors):
                            if at == 0:
                                unload(total, i, v)
                                tile_op("tilezero", T.cast(i * vectors + v, "int8"))
                            multiply(i, v)
                            gather(
                                image,
                                origin,
                                bases,
                                begin,
                                ring,
                                there,
                                T.truncmod(at + AHEAD, steps),
                                (i * vectors + v) * (ROWS // vectors),
                                ROWS // vectors,
                            )
                    for part in T.serial(at * at_once, T.min((at + 1) * at_once, parts)):
                        finish(operands, y, to, total, places, before, part)
                before[0] = panel_column(panel, conv.outputs, width)
                before[1] = begin_of[n]
            for i in T.unroll(tiles):
                for v in T.unroll(vectors):
                    unload(total, i, v)
            for part in T.serial(parts):
                finish(operands, y, to, total, places, before, part)

    return compute
