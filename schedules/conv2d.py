"""Convolution: register tiles of pixels times output channels.

A value of the input is only ever broadcast, so the pixels of a tile may lie anywhere. The output is computed
in bands of rows (`schedules.conv2d_bands`), whose input stays in L2 while all panels of output channels pass. What
is left over at the edges is covered by a last tile or panel that overlaps the one before it. A panel that does not stay
in L2 while all tiles of a band pass is taken a few kernel rows at a time, and sums wait in memory in between.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_bands import BAND_BYTES, Bands, band_rows, heavy, rows_within
from schedules.conv2d_panels import pack_panels, panel_count, share_bands
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_tile import partial_tile, register_tile, rows_at_once, seen_rows
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.knobs import ConvTile
from schedules.nonzero_rows import list_row, output_lists
from schedules.panels import panel_size

#: Bytes of a band's results that are listed.
_LISTED_BYTES = 256 << 10
#: Bytes of weights that stay in an L2 of 2 MB while bands pass: 14 x 14, 1024 -> 256 takes 564 us in bands of two rows,
#: which read all weights each, and 609 in one band.
_L2_WEIGHTS = 1 << 20
#: Cycles that a step of a tile takes beside its products: of 7 x 7, 512 -> 512 a pixel takes 26.5 us in tiles of 13,
#: 27.2 in tiles of 10, and 29.5 in tiles of 7.
_STEP_CYCLES = 2.0
#: Cycles that a vector of weights takes to come from L3.
_L3_CYCLES = 3.0
#: Taps of an output up to which results cost more than products, and vectors of a panel then, so that more results of a
#: pixel lie side by side. Records of layers of 8 to 16 taps, the even tile's time / this one's: on a Xeon with AVX-512
#: 1.07 to 1.36 in all four, on Zen 3 1.10 to 1.36 in seven of 17 and about one in the others, 1.10 in the mean.
_FEW_TAPS, _WIDE = 16, 4


def default_tile(isa: Isa, conv: Conv2d) -> ConvTile:
    """Return the tile that suits most layers: the even one, or a wide one where there are few taps.

    Panels have two vectors, or three where that leaves less of the last one empty: of 24 outputs AVX2 did 35 of its 52
    GMAC/s in panels of two vectors, 47 in one of three.
    """
    two, three = (panel_size(isa, conv.outputs, vectors) for vectors in (2, 3))
    is_fuller = -(-conv.outputs // three) * three < -(-conv.outputs // two) * two
    tile = even_tile(isa, conv, (3,) if is_fuller else (2, 1))
    if conv.taps > _FEW_TAPS or conv.outputs < _WIDE * isa.lanes:
        return tile
    return replace(tile, pixels=6 if isa.vector_bytes == 64 else 2, vectors=_WIDE)


def even_tile(isa: Isa, conv: Conv2d, vectors_of: tuple[int, ...] = (2, 1)) -> ConvTile:
    """Return the tile of bands that stay in L2, and of tiles, those that take least time, with panels of some vectors.

    12 of 16 registers hold sums at AVX2, 28 of 32 at AVX-512, where L2 also has room for a megabyte of weights beside
    a band.
    """
    large = isa.vector_bytes == 64
    stay = not heavy(conv) or (large and conv.outputs * conv.taps * 4 <= _L2_WEIGHTS)

    def cycles(tile: ConvTile) -> float:
        """Time of one tap of all pixels and one vector: two multiply-adds or loads a cycle, each sum after four."""
        bands, sums = -(-conv.out_height // tile.rows), tile.pixels * tile.vectors
        of_tile = (max(sums / 2, (tile.pixels + tile.vectors) / 2, 4) + _STEP_CYCLES) / tile.vectors
        weights = 0 if stay else bands * _L3_CYCLES
        seen = seen_rows(conv) if conv.out_width % tile.pixels == 0 else 1
        return bands * -(-tile.rows * conv.out_width // tile.pixels) * of_tile * seen + weights

    def even(rows: int, most: int) -> int:
        """Pixels of a tile, `most` of them at most, of which a band has whole ones, or nearly so."""
        return -(-rows * conv.out_width // -(-rows * conv.out_width // most))

    def within_row(most: int) -> int:
        """Pixels of a tile, `most` of them at most, of which a row of the output has whole ones."""
        return max(pixels for pixels in range(1, most + 1) if conv.out_width % pixels == 0)

    most = panel_size(isa, conv.outputs, max(vectors_of)) // isa.lanes
    sums = 28 if large else 12
    most_rows = rows_within(conv, BAND_BYTES) if stay else band_rows(conv)
    choices = (
        ConvTile(pixels, vectors, rows)
        for vectors in vectors_of
        if vectors <= most
        for rows in range(most_rows, 0, -1)
        for pixels in (even(rows, sums // vectors), within_row(sums // vectors))
    )
    return min(choices, key=cycles)


def pack_conv2d(isa: Isa, tile: ConvTile, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels, taps, panel], bias: f32[max(outputs, panel)])`` of `conv2d`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``.
    """
    return pack_panels(isa, weight, bias, tile.vectors)


def conv2d(isa: Isa, conv: Conv2d, tile: ConvTile, threads: int, writes_lists: bool = False):
    """Return the kernel ``(x: f32[input size], weight, bias, residual: f32[residual size]) -> y: f32[output size]``.

    ``weight`` and ``bias`` are from `pack_conv2d`. Threads share the bands, or the panels of each band if that
    leaves less waiting. Instead of an image ``y`` may be lists of its values that are not zero, as
    `schedules.nonzero_rows.output_lists` lays them out; no residual is added then.
    """
    if writes_lists:
        tile = replace(tile, rows=_listed_rows(conv, tile.rows))
    size = panel_size(isa, conv.outputs, tile.vectors)
    panels, bands = panel_count(conv.outputs, size), Bands(conv, tile.rows)
    tall, columns = min(tile.pixels, bands.pixels), max(conv.outputs, size)
    by_bands = writes_lists or share_bands(bands.count, panels, threads)
    tiles, vectors, kernel_rows = -(-bands.pixels // tall), size // isa.lanes, conv.kernel[0]
    rows = rows_at_once(conv, size, tiles)
    whole = not heavy(conv)
    # One vector, which nobody reads, where no sums wait.
    sums = 1 if rows == kernel_rows else tiles * tall * vectors
    # Of lists `to` is no place in the output.
    in_row = conv.out_width % tall == 0 and not writes_lists
    compute = register_tile(isa, conv, tile.vectors, tall, in_row)
    part = partial_tile(isa, conv, tile.vectors, tall, rows, tiles, in_row)

    lists = output_lists(conv)
    written, band_values = lists.size if writes_lists else conv.output_size, bands.pixels * conv.outputs
    finished_values, listed = threads * band_values if writes_lists else 1, list_row(isa, lists)

    def neighbours(first):
        return lambda p: first + p

    @inline
    def over_panels(image, origin, operands, result, to, waiting, task, first_panel, last_panel):
        for panel in T.serial(first_panel, last_panel):
            if whole:
                for t in T.serial(tiles):
                    compute(
                        image, origin, operands, result, to, panel, neighbours(T.min(t * tall, bands.pixels - tall))
                    )
            else:
                for block in T.serial(-(-kernel_rows // rows)):
                    start: T.let = block * rows
                    stop: T.let = T.min(start + rows, kernel_rows)
                    for t in T.serial(tiles):
                        part(
                            image,
                            origin,
                            operands,
                            result,
                            to,
                            panel,
                            neighbours(T.min(t * tall, bands.pixels - tall)),
                            start,
                            stop,
                            waiting,
                            task * sums,
                            t,
                        )

    @inline
    def over_tiles(image, origin, context, to):
        operands, (y, finished), (waiting, task), first_panel, last_panel = context
        # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the sums.
        waiting[task * (sums * isa.lanes)] = T.float32(0)
        over_panels(
            image,
            origin,
            operands,
            finished if writes_lists else y,
            task * bands.pixels if writes_lists else to,
            waiting,
            task,
            first_panel,
            last_panel,
        )
        if writes_lists:
            for row in T.serial(bands.rows):
                listed(
                    finished,
                    task * band_values + row * (conv.out_width * conv.outputs),
                    y,
                    (to // conv.out_width + row) * lists.block,
                )

    each_band = bands.each(over_tiles)

    @inline
    def over_bands(x, scratch, waiting, operands, results, task):
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        first_panel: T.let = 0 if by_bands else task * panels // threads
        last_panel: T.let = panels if by_bands else (task + 1) * panels // threads
        each_band(
            x, scratch, (operands, results, (waiting, task), first_panel, last_panel), task, first_band, last_band
        )

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((panels, conv.taps, size), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        y: T.Buffer((written,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        scratch = T.sblock_alloc_buffer((threads * bands.scratch_size,), "float32")
        waiting = T.sblock_alloc_buffer((threads * sums * isa.lanes,), "float32")
        finished = T.sblock_alloc_buffer((finished_values,), "float32")
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0 : conv.input_size],
                    weight[0:panels, 0 : conv.taps, 0:size],
                    bias[0:columns],
                    residual[0 : conv.residual_size],
                )
                T.writes(
                    y[0:written],
                    finished[0:finished_values],
                    scratch[0 : threads * bands.scratch_size],
                    waiting[0 : threads * sums * isa.lanes],
                )
                over_bands(x, scratch, waiting, (weight, bias, residual), (y, finished), vt)

    return convolved


def _listed_rows(conv: Conv2d, most: int) -> int:
    """Return the rows of a band, `most` at most, whose results stay in L2 until they are listed."""
    return max(1, min(most, _LISTED_BYTES // (conv.out_width * conv.outputs * 4)))
