"""Gated convolution of bytes or of bf16: a little module's few channels in, the layer's result out.

Three things happen in one kernel. The few channels are spread over all outputs, a product per pixel, and what follows
the sums is written everywhere; on their way these sums tell which tiles of a pixel and a panel of outputs are open
(`schedules.conv2d_gate`), so that no image of sums goes through memory. Then the open pixels of each panel are listed,
and listed pixels alone are computed by the big module, in the order of the dense kernel's sums, and written over.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, narrowing
from schedules.conv2d_amx import configure, release
from schedules.conv2d_byte_panels import byte_panels
from schedules.conv2d_byte_tile import LANES, ByteTile
from schedules.conv2d_bytes import AFFINE, ByteBands
from schedules.conv2d_finish import finish_sums
from schedules.conv2d_gate import count_open
from schedules.conv2d_gate_sums import opening, scaled_limits
from schedules.conv2d_gated import default_gated_tile, gate_size
from schedules.conv2d_gated_tiles import GatedTiles, spread_conv
from schedules.conv2d_lines import STEP, ByteConv, Lines, image_lines
from schedules.conv2d_open_amx import buffer_size, open_amx
from schedules.conv2d_open_dot4 import open_dot4
from schedules.conv2d_panels import share_bands
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.open_lists import COUNTS, OpenLists


def gated_conv2d_bytes(isa: Isa, byte: ByteConv, few: int, tiles: GatedTiles, threads: int):
    """Return the kernel ``(x, few, little, limits, weight, scale, bias, affine, residual) -> (y, count)``.

    ``x``, ``residual`` and ``y`` are images of the types that `byte` names, ``few`` is of `few` channels a pixel and of
    the type of its numbers. ``little`` are four operands from `schedules.conv2d_int8.pack_conv2d_int8` of
    `schedules.conv2d_gated_tiles.spread_conv` and ``tiles.spread``, as are those from ``weight`` on of `byte` and
    ``tiles.open``. ``limits: f32[3, outputs]`` are what `schedules.conv2d_gate` describes, ``count: i32[1]`` is how
    many tiles were open. Threads share the bands, or the listed blocks of each band if that leaves less waiting.
    """
    conv, tile, thin, spread = byte.conv, tiles.open, tiles.spread, spread_conv(byte, few)
    columns = max(conv.outputs, tile.vectors * LANES)
    panels, pixels = gate_size(isa, conv, default_gated_tile(isa, conv))
    lines, bands = image_lines(byte, tile.rows, tile.form), ByteBands(byte, tile.rows, tile.form)
    thin_lines, thin_bands = image_lines(spread, thin.rows, thin.form), ByteBands(spread, thin.rows, thin.form)
    block = tile.tiles * tile.pixels
    lists = OpenLists(
        panels, tile.rows * conv.out_width, conv.out_width, threads, block, tile.pixels if tile.tiles > 1 else 0
    )
    ring, room = buffer_size(lines, tile), lists.sizes
    predict = _predict(isa, spread, thin, thin_lines, thin_bands, panels, threads)
    compute = _compute(isa, byte, tile, lines, bands, lists, threads)
    scale_limits, count_all = scaled_limits(spread), count_open(panels, pixels)
    if BF16 in (byte.numbers, byte.result):
        predict, compute = narrowing(predict), narrowing(compute)

    @T.prim_func(s_tir=True, private=True)
    def gated(
        x: T.Buffer((conv.input_size,), byte.source),
        z: T.Buffer((spread.conv.input_size,), byte.numbers),
        rows: T.Buffer((panels, thin_lines.steps, thin.vectors, 16, STEP), "int8"),
        rows_scale: T.Buffer((columns,), "float32"),
        rows_bias: T.Buffer((columns,), "float32"),
        rows_affine: T.Buffer((AFFINE,), "float32"),
        limits: T.Buffer((3, conv.outputs), "float32"),
        weight: T.Buffer((panels, lines.steps, tile.vectors, 16, STEP), "int8"),
        scale: T.Buffer((columns,), "float32"),
        bias: T.Buffer((columns,), "float32"),
        affine: T.Buffer((AFFINE,), "float32"),
        residual: T.Buffer((conv.residual_size,), byte.residual),
        y: T.Buffer((conv.output_size,), byte.result),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        opened = T.sblock_alloc_buffer((panels, pixels), "uint8")
        scaled = T.sblock_alloc_buffer((3, conv.outputs), "float32")
        thin_copies = T.sblock_alloc_buffer((threads * thin_bands.copy_size,), byte.numbers)
        thin_spreads = T.sblock_alloc_buffer((threads * thin_bands.spread_size,), byte.numbers)
        copies = T.sblock_alloc_buffer((threads * bands.copy_size,), byte.numbers)
        spreads = T.sblock_alloc_buffer((threads * bands.spread_size,), byte.numbers)
        taps = T.sblock_alloc_buffer((threads * ring,), byte.numbers)
        places = T.sblock_alloc_buffer((room[0],), "int32")
        bases = T.sblock_alloc_buffer((room[1],), "int32")
        panel_of = T.sblock_alloc_buffer((room[2],), "int32")
        begin_of = T.sblock_alloc_buffer((room[3],), "int32")
        real_of = T.sblock_alloc_buffer((room[4],), "int32")
        found = T.sblock_alloc_buffer((room[5],), "int32")
        base_of = T.sblock_alloc_buffer((room[6],), "int32")
        with T.sblock("limits"):
            T.reads(limits[0:3, 0 : conv.outputs], rows_affine[0:AFFINE])
            T.writes(scaled[0:3, 0 : conv.outputs])
            scale_limits(limits, rows_affine, scaled)
        for task in T.parallel(threads):
            with T.sblock("closed"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    z[0 : spread.conv.input_size],
                    rows[0:panels, 0 : thin_lines.steps, 0 : thin.vectors, 0:16, 0:STEP],
                    rows_scale[0:columns],
                    rows_bias[0:columns],
                    rows_affine[0:AFFINE],
                    residual[0 : conv.residual_size],
                    scaled[0:3, 0 : conv.outputs],
                )
                T.writes(
                    y[0 : conv.output_size],
                    opened[0:panels, 0:pixels],
                    thin_copies[0 : threads * thin_bands.copy_size],
                    thin_spreads[0 : threads * thin_bands.spread_size],
                )
                predict(
                    z,
                    (thin_copies, thin_spreads),
                    (rows, rows_scale, rows_bias, rows_affine, residual, scaled, opened),
                    y,
                    vt,
                )
        for task in T.parallel(threads):
            with T.sblock("open"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0 : conv.input_size],
                    weight[0:panels, 0 : lines.steps, 0 : tile.vectors, 0:16, 0:STEP],
                    scale[0:columns],
                    bias[0:columns],
                    affine[0:AFFINE],
                    residual[0 : conv.residual_size],
                    opened[0:panels, 0:pixels],
                )
                T.writes(
                    y[0 : conv.output_size],
                    copies[0 : threads * bands.copy_size],
                    spreads[0 : threads * bands.spread_size],
                    taps[0 : threads * ring],
                    places[0 : room[0]],
                    bases[0 : room[1]],
                    panel_of[0 : room[2]],
                    begin_of[0 : room[3]],
                    real_of[0 : room[4]],
                    found[0 : room[5]],
                    base_of[0 : room[6]],
                )
                compute(
                    x,
                    (copies, spreads),
                    (weight, scale, bias, affine, residual),
                    y,
                    opened,
                    (places, bases, panel_of, begin_of, real_of, found, base_of),
                    taps,
                    vt,
                )
        with T.sblock("count"):
            T.reads(opened[0:panels, 0:pixels])
            T.writes(count[0])
            count_all(opened, count)

    return gated


def _predict(isa: Isa, spread: ByteConv, tile: ByteTile, lines: Lines, bands: ByteBands, panels: int, threads: int):
    """Return the macro ``(z, scratch, operands, y, task)`` that writes what closed tiles hold, and which are open."""
    by_bands = share_bands(bands.count, panels, threads)
    store = finish_sums(isa, spread, opening(spread, tile.vectors * LANES))
    over = byte_panels(isa, lines, spread.conv, tile, store)

    @inline
    def over_panels(image, origin, context, to):
        operands, y, first_panel, last_panel = context
        over(image, origin, operands, y, to, first_panel, last_panel)

    each_band, begin, end = bands.each(isa, over_panels), configure(isa, tile), release(isa, tile)

    @inline
    def predict(z, scratch, operands, y, task):
        begin()
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        first_panel: T.let = 0 if by_bands else task * panels // threads
        last_panel: T.let = panels if by_bands else (task + 1) * panels // threads
        each_band(z, operands[3], scratch, (operands, y, first_panel, last_panel), task, first_band, last_band)
        end()

    return predict


def _compute(isa: Isa, byte: ByteConv, tile: ByteTile, lines: Lines, bands: ByteBands, lists: OpenLists, threads: int):
    """Return the macro ``(x, scratch, operands, y, opened, buffers, taps, task)`` that computes the open tiles."""
    by_bands, ring, most = share_bands(bands.count, lists.most, threads), buffer_size(lines, tile), lists.most
    store = finish_sums(isa, byte)
    kinds = [open_dot4(isa, lines, byte.conv, tile, store)]
    if tile.matrix:
        kinds = [open_amx(lines, byte.conv, tile, tiles, store) for tiles in (2, 1)]
    prepare, listing = lists.prepare(lines), lists.listing(isa)

    def share(buffers, task, kind, part, parts):
        """First and last of the blocks of a kind that a task computes."""
        count, start = buffers[5][COUNTS * task + kind], (2 * task + kind) * most
        return start + T.floordiv(count * part, parts), start + T.floordiv(count * (part + 1), parts)

    def blocks_of(image, origin, operands, y, to, buffers, taps, task, part, parts):
        for kind, blocks in enumerate(kinds):
            blocks(image, origin, operands, y, to, buffers, taps, task * ring, *share(buffers, task, kind, part, parts))

    @inline
    def over_blocks(image, origin, context, to):
        operands, y, opened, buffers, taps, task = context
        listing(opened, to, buffers, task)
        part: T.let = 0 if by_bands else task
        parts: T.let = 1 if by_bands else threads
        blocks_of(image, origin, operands, y, to, buffers, taps, task, part, parts)

    each_band, begin, end = bands.each(isa, over_blocks), configure(isa, tile), release(isa, tile)

    @inline
    def compute(x, scratch, operands, y, opened, buffers, taps, task):
        begin()
        prepare(buffers, task)
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        each_band(x, operands[3], scratch, (operands, y, opened, buffers, taps, task), task, first_band, last_band)
        end()

    return compute
