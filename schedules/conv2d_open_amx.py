"""Open pixels on AMX: 16 of them, wherever they lie, become the rows of a tile.

Tiles take rows at one constant distance, so the taps of listed pixels are copied, a few steps of them at a time, into
one half of a buffer in the first level while those in its other half are multiplied: copies take load and store units,
which products leave idle. A listed block is 32 pixels and one panel of outputs, or 16 where that is all.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_amx import PRODUCTS, ROWS, tile_op
from schedules.conv2d_byte_tile import LANES, ByteTile
from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.inlining import inline

#: Steps, neighbours in a run of taps, that are copied together, at most: 4 kB of 32 pixels. With four, what is copied
#: has left the first level, through which weights and image pass, before its place is written again.
MOST = 2


def together(lines: Lines) -> int:
    """Return how many steps are copied together, so that each pixel's place is looked up once for them."""
    of_run = lines.loops[2]
    return next(n for n in range(MOST, 0, -1) if of_run % n == 0)


def buffer_size(lines: Lines, tile: ByteTile) -> int:
    """Return the values of both halves of a task's buffer; one, which nobody reads, of a tile of registers."""
    return 2 * together(lines) * tile.tiles * ROWS * lines.step if tile.matrix else 1


def open_amx(lines: Lines, conv: Conv2d, tile: ByteTile, tiles: int, store):
    """Return the macro ``(image, origin, operands, y, to, lists, taps, slot, first, last)`` for some listed blocks.

    Blocks are those from `first` to `last` of `tiles` tiles of 16 pixels each. ``lists`` are the buffers of
    `schedules.open_lists.OpenLists`: of each listed pixel its place in the band, and from where on what it sees lies
    behind `origin` in `image`; of each block its panel, where it begins in those two, and how many pixels it has. `to`
    is the band's first pixel in the output, ``taps`` a buffer that belongs to the task from `slot` on; `store` is
    `schedules.conv2d_finish.finish_sums`. `tile` says how weights are packed and registers configured. As in
    `schedules.conv2d_amx.amx_panels` what follows the sums of a block is done between the products of the next.
    """
    vectors, width = tile.vectors, tile.vectors * LANES
    (product, kind), sums, listed = PRODUCTS[lines.size], tile.tiles * tile.vectors, tiles * ROWS
    steps, row, many = lines.steps, lines.step, together(lines)
    _, times, of_run = lines.loops
    down_by, across_by = lines.strides
    # Rows that are finished together: bytes are packed by two rows of two vectors.
    rows = next(n for n in (2, 4, 8, 16) if n == 16 or listed // n <= steps)
    parts = listed // rows
    at_once = -(-parts // steps)

    half, groups = many * listed * row, steps // many

    def skipped(group):
        """Values from a pixel to the taps of a group of steps."""
        run = T.truncdiv(group, of_run // many)
        down, across = (T.truncdiv(run, times), T.truncmod(run, times)) if times > 1 else (run, 0)
        return down * down_by + across * across_by + T.truncmod(group, of_run // many) * (many * row)

    def copy_pixel(taps, to, pixel, image, start, base):
        # Of 64 bits, so that an address is the sum of two registers.
        at = start + T.Cast("int64", base)
        for step in range(many):
            values = image[T.ramp(at + step * row, T.int64(1), row)]
            T.buffer_store(taps, values, [T.ramp(to + (step * listed + pixel) * row, 1, row)])

    @inline
    def copy_pixels(taps, to, image, start, bases, begin, real, some, end):
        if real >= end:
            for pixel in T.unroll(end - some):
                copy_pixel(taps, to, some + pixel, image, start, bases[begin + some + pixel])
        else:
            for pixel in T.serial(T.max(real - some, 0)):
                copy_pixel(taps, to, some + pixel, image, start, bases[begin + some + pixel])

    @inline
    def load_weights(weight, panel, at, v):
        tile_op(
            "tileloadd64",
            T.cast(sums + tile.tiles + v, "int8"),
            T.address_of(weight[panel, at, v, 0, 0]),
            T.int64(STEP),
        )

    @inline
    def load(taps, slot, weight, panel, at):
        for i in T.unroll(tiles):
            tile_op("tileloadd64", T.cast(sums + i, "int8"), T.address_of(taps[slot + i * (ROWS * row)]), T.int64(STEP))
        for v in T.unroll(vectors):
            load_weights(weight, panel, at, v)

    @inline
    def multiply(i, v):
        tile_op(
            product,
            T.cast(i * vectors + v, "int8"),
            T.cast(sums + i, "int8"),
            T.cast(sums + tile.tiles + v, "int8"),
        )

    def multiply_and_copy(taps, to, image, start, bases, begin, real, step):
        """Copy a share of the next group's pixels between the products of a step."""
        products = [(i, v) for i in range(tiles) for v in range(vectors)]
        every = many * len(products)
        for number, (i, v) in enumerate(products, step * len(products)):
            multiply(i, v)
            some, end = number * listed // every, (number + 1) * listed // every
            copy_pixels(taps, to, image, start, bases, begin, real, some, end)

    @inline
    def unload(total, i, v):
        tile_op(
            "tilestored64",
            T.cast(i * vectors + v, "int8"),
            T.address_of(total[i * (ROWS * width) + v * LANES]),
            T.int64(4 * width),
        )

    def finish_rows(operands, y, to, column, total, places, first, row):
        # From the last row on, since rows without a pixel name an earlier one's place, whose sums come to stand there.
        at = [(to + places[first + row + j]) * conv.outputs + column for j in reversed(range(rows))]
        starts = [(row + j) * width for j in reversed(range(rows))]
        values = [[total[T.ramp(start + v * LANES, 1, LANES)] for v in range(vectors)] for start in starts]
        store(operands, y, at, column, values)

    @inline
    def finish(operands, y, to, total, places, before, part):
        finish_rows(operands, y, to, before[0], total, places, before[1], (parts - 1 - part) * rows)

    @inline
    def start_block(total, group):
        if group == 0:
            for i in T.unroll(tiles):
                for v in T.unroll(vectors):
                    unload(total, i, v)
                    tile_op("tilezero", T.cast(i * vectors + v, "int8"))

    @inline
    def finish_parts(operands, y, to, total, places, before, at):
        for part in T.serial(at * at_once, T.min((at + 1) * at_once, parts)):
            finish(operands, y, to, total, places, before, part)

    def group_steps(source, buffer, result, panel, group):
        taps, here, there = buffer
        for step in range(many):
            at = group * many + step
            load(taps, here + step * (listed * row), result[0][0], panel, at)
            if step == 0:
                start_block(result[3], group)
            multiply_and_copy(taps, there, *source, step)
            finish_parts(*result, at)

    @inline
    def compute(image, origin, operands, y, to, lists, taps, slot, first, last):
        places, bases, panel_of, begin_of, real_of, _found, _base_of = lists
        total = T.alloc_buffer((listed * width,), kind)
        before = T.alloc_buffer((2,), "int32")
        if first < last:
            before[0] = panel_column(panel_of[first], conv.outputs, width)
            before[1] = begin_of[first]
            for i in T.unroll(sums):
                tile_op("tilezero", T.cast(i, "int8"))
            copy_pixels(taps, slot, image, T.Cast("int64", origin), bases, begin_of[first], real_of[first], 0, listed)
            for n in T.serial(first, last):
                panel: T.let = panel_of[n]
                for group in T.serial(groups):
                    odd: T.let = ((n - first) * groups + group) % 2
                    ahead: T.let = T.min(n + T.truncdiv(group + 1, groups), last - 1)
                    start: T.let = T.Cast("int64", origin + skipped(T.truncmod(group + 1, groups)))
                    group_steps(
                        (image, start, bases, begin_of[ahead], real_of[ahead]),
                        (taps, slot + odd * half, slot + (1 - odd) * half),
                        (operands, y, to, total, places, before),
                        panel,
                        group,
                    )
                before[0] = panel_column(panel, conv.outputs, width)
                before[1] = begin_of[n]
            for i in T.unroll(tiles):
                for v in T.unroll(vectors):
                    unload(total, i, v)
            for part in T.serial(parts):
                finish(operands, y, to, total, places, before, part)

    return compute
