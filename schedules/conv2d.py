"""Convolution: register tiles of pixels times output channels.

A value of the input is only ever broadcast, so the pixels of a tile may lie anywhere. The output is computed
in bands of rows (`schedules.conv2d_bands`), whose input stays in L2 while all panels of output channels pass. What
is left over at the edges is covered by a last tile or panel that overlaps the one before it. A panel that does not stay
in L2 while all tiles of a band pass is taken a few kernel rows at a time, and sums wait in memory in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_bands import Bands, band_rows, heavy
from schedules.conv2d_panels import pack_panels, panel_column, panel_count
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.intrinsics import prefetch
from schedules.panels import panel_size

#: Bytes of a cache line.
_LINE = 64
#: Bytes of weights of each output of a panel that stay in L2 while the tiles of a band pass: 640 kB of a panel of 32,
#: 320 of one of 16. Those that do not are taken in parts of a quarter of that. Measured with 2 MB of L2: 14 x 14,
#: 256 -> 256 at 9 kB an output does 106 GMAC/s whole and 75 in two parts; 64 rows of 1024 values, 256 kB an output, do
#: 103 a row at a time, 94 four rows at a time and 81 eight.
_OUTPUT_BYTES = 20 << 10
#: Cycles that a vector of weights takes to come from L3.
_L3_CYCLES = 3.0


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is divided.

    Attributes
    ----------
    pixels, vectors : int
        Of a register tile.
    rows : int
        Output rows of a band.
    """

    pixels: int
    vectors: int
    rows: int


def default_tile(isa: Isa, conv: Conv2d) -> ConvTile:
    """Return the tile that suits most layers: of bands that stay in L2, and of tiles, those that take least time.

    12 of 16 registers hold sums at AVX2, 24 of 32 at AVX-512.
    """

    def cycles(tile: ConvTile) -> float:
        """Time of one tap of all pixels and one vector: two multiply-adds or loads a cycle, each sum after four."""
        bands, sums = -(-conv.out_height // tile.rows), tile.pixels * tile.vectors
        of_tile = max(sums / 2, (tile.pixels + tile.vectors) / 2, 4) / tile.vectors
        weights = bands * _L3_CYCLES if heavy(conv) else 0
        return bands * -(-tile.rows * conv.out_width // tile.pixels) * of_tile + weights

    def even(rows: int, most: int) -> int:
        """Pixels of a tile, `most` of them at most, of which a band has whole ones, or nearly so."""
        return -(-rows * conv.out_width // -(-rows * conv.out_width // most))

    most, sums = panel_size(isa, conv.outputs, 2) // isa.lanes, 24 if isa.vector_bytes == 64 else 12
    choices = (
        ConvTile(even(rows, sums // vectors), vectors, rows)
        for vectors in range(most, 0, -1)
        for rows in range(band_rows(conv), 0, -1)
    )
    return min(choices, key=cycles)


def pack_conv2d(isa: Isa, tile: ConvTile, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels, taps, panel], bias: f32[max(outputs, panel)])`` of `conv2d`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``.
    """
    return pack_panels(isa, weight, bias, tile.vectors)


def store_pixel(isa: Isa, conv: Conv2d):
    """Return the macro ``(y, residual, at, values)`` that finishes a vector of sums and writes it.

    `residual` is the image to be added if there is one; of fewer outputs than lanes only those that there are get
    written.
    """
    lanes, outputs, nonlinearity = isa.lanes, conv.outputs, NONLINEARITIES[conv.activation]

    def finished(residual, at, values):
        return nonlinearity(values + residual[at] if conv.residual else values)

    @T.inline
    def store(y, residual, at, values):
        if outputs >= lanes:
            y[T.ramp(at, 1, lanes)] = finished(residual, T.ramp(at, 1, lanes), values)
        else:
            few = T.alloc_buffer((lanes,), "float32", scope="local")
            few[T.ramp(0, 1, lanes)] = values
            for i in T.serial(outputs):
                y[at + i] = finished(residual, at + i, few[i])

    return store


def register_tile(isa: Isa, conv: Conv2d, vectors: int, pixels: int):
    """Return the macro ``(image, origin, operands, y, to, panel, pixel)`` that computes one register tile.

    It takes `pixels` pixels and one panel of outputs; ``pixel(p)`` is the place of the p-th in the band. `image` holds
    the band's padded input from `origin` on; `to` is the band's first pixel in the output.
    """
    parts = _TileParts(isa, conv, vectors, pixels)
    begin, add, finish = parts.begin(), parts.add(), parts.finish()

    @T.inline
    def compute(image, origin, operands, y, to, panel, pixel):
        total = T.alloc_buffer(parts.sums, "float32", scope="local")
        base = T.alloc_buffer((pixels,), "int32", scope="local")
        begin(origin, operands, panel, pixel, total, base)
        add(image, operands, panel, total, base, 0, conv.kernel[0], 0)
        finish(operands, y, to, panel, pixel, total)

    return compute


def partial_tile(isa: Isa, conv: Conv2d, vectors: int, pixels: int, rows: int):
    """Return the macro of `register_tile` for some rows of the kernel.

    It is ``(image, origin, operands, y, to, panel, pixel, start, stop, waiting, first, number)``: rows from `start` to
    `stop`; the sums before and after them lie in ``waiting: f32``, those of the first tile from the vector `first` on.
    `number` counts the tiles that read these weights. Meanwhile the weights behind them are fetched, as in
    `schedules.panels`: as many as `rows` rows of the kernel have.
    """
    parts = _TileParts(isa, conv, vectors, pixels)
    begin, add, finish = parts.begin(), parts.add(rows), parts.finish()
    count, lanes = parts.sums

    @T.inline
    def compute(image, origin, operands, y, to, panel, pixel, start, stop, waiting, first, number):
        at: T.let = first + number * count
        total = T.alloc_buffer(parts.sums, "float32", scope="local")
        base = T.alloc_buffer((pixels,), "int32", scope="local")
        begin(origin, operands, panel, pixel, total, base)
        if start > 0:
            for i in T.unroll(count):
                total[i, T.ramp(0, 1, lanes)] = waiting[T.ramp((at + i) * lanes, 1, lanes)]
        add(image, operands, panel, total, base, start, stop, number)
        if stop == conv.kernel[0]:
            finish(operands, y, to, panel, pixel, total)
        else:
            for i in T.unroll(count):
                waiting[T.ramp((at + i) * lanes, 1, lanes)] = total[i, T.ramp(0, 1, lanes)]

    return compute


class _TileParts:
    """Macros that a register tile of one convolution consists of."""

    def __init__(self, isa: Isa, conv: Conv2d, vectors: int, pixels: int) -> None:
        self._isa, self._conv, self._pixels = isa, conv, pixels
        self._size = panel_size(isa, conv.outputs, vectors)
        self._vectors = self._size // isa.lanes
        #: Vectors of sums, and lanes of each.
        self.sums = (pixels * self._vectors, isa.lanes)

    def begin(self):
        """Return ``(origin, operands, panel, pixel, total, base)``: sums start at the bias, pixels at their place."""
        conv, size, lanes, pixels, vectors = self._conv, self._size, self._isa.lanes, self._pixels, self._vectors
        row_values = conv.padded_width * conv.inputs

        @T.inline
        def begun(origin, operands, panel, pixel, total, base):
            column: T.let = panel_column(panel, conv.outputs, size)
            for p in T.unroll(pixels):
                base[p] = (
                    origin
                    + pixel(p) // conv.out_width * (conv.strides[0] * row_values)
                    + pixel(p) % conv.out_width * (conv.strides[1] * conv.inputs)
                )
                for v in T.unroll(vectors):
                    total[p * vectors + v, T.ramp(0, 1, lanes)] = operands[1][T.ramp(column + v * lanes, 1, lanes)]

        return begun

    def add(self, ahead: int = 0):
        """Return ``(image, operands, panel, total, base, start, stop, number)``: products of some rows of the kernel.

        With `ahead`, as many rows behind them are fetched, a line a step, through the tiles with a `number`.
        """
        conv, lanes, pixels, vectors = self._conv, self._isa.lanes, self._pixels, self._vectors
        runs, run = conv.runs
        row_values = conv.padded_width * conv.inputs
        per_line = _LINE // 4
        lines = ahead * runs * run * self._size // per_line

        @T.inline
        def added(image, operands, panel, total, base, start, stop, number):
            for down in T.serial(start, stop):
                for across in T.serial(runs):
                    skip: T.let = down * (conv.dilation[0] * row_values) + across * (conv.dilation[1] * conv.inputs)
                    tap: T.let = (down * runs + across) * run
                    for c in T.serial(run):
                        if ahead > 0:
                            step: T.let = number * ((stop - start) * (runs * run)) + tap - start * (runs * run) + c
                            line: T.let = T.min(step, lines - 1) * per_line
                            prefetch(operands[0][panel, stop * (runs * run), line])
                        for p in T.unroll(pixels):
                            for v in T.unroll(vectors):
                                total[p * vectors + v, T.ramp(0, 1, lanes)] = (
                                    total[p * vectors + v, T.ramp(0, 1, lanes)]
                                    + T.broadcast(image[base[p] + skip + c], lanes)
                                    * operands[0][panel, tap + c, T.ramp(v * lanes, 1, lanes)]
                                )

        return added

    def finish(self):
        """Return ``(operands, y, to, panel, pixel, total)``: what follows the sums, and where it is written."""
        conv, size, lanes, pixels, vectors = self._conv, self._size, self._isa.lanes, self._pixels, self._vectors
        store = store_pixel(self._isa, conv)

        @T.inline
        def finished(operands, y, to, panel, pixel, total):
            column: T.let = panel_column(panel, conv.outputs, size)
            for p in T.unroll(pixels):
                for v in T.unroll(vectors):
                    store(
                        y,
                        operands[2],
                        (to + pixel(p)) * conv.outputs + column + v * lanes,
                        total[p * vectors + v, T.ramp(0, 1, lanes)],
                    )

        return finished


def rows_at_once(conv: Conv2d, size: int, tiles: int) -> int:
    """Return the kernel rows of a panel of `size` outputs that stay in L2 while `tiles` tiles pass."""
    row_bytes, room = conv.taps // conv.kernel[0] * size * 4, size * _OUTPUT_BYTES
    if tiles == 1 or conv.kernel[0] * row_bytes <= room:
        return conv.kernel[0]
    blocks = -(-conv.kernel[0] // max(1, room // 4 // row_bytes))
    return -(-conv.kernel[0] // blocks)


def conv2d(isa: Isa, conv: Conv2d, tile: ConvTile, threads: int):
    """Return the kernel ``(x: f32[input size], weight, bias, residual: f32[residual size]) -> y: f32[output size]``.

    ``weight`` and ``bias`` are from `pack_conv2d`. Threads share the bands, or the panels of each band if that
    leaves less waiting.
    """
    size = panel_size(isa, conv.outputs, tile.vectors)
    panels, bands = panel_count(conv.outputs, size), Bands(conv, tile.rows)
    tall, columns = min(tile.pixels, bands.pixels), max(conv.outputs, size)
    by_bands = _waiting(bands.count, threads) <= _waiting(panels, threads)
    tiles, vectors, kernel_rows = -(-bands.pixels // tall), size // isa.lanes, conv.kernel[0]
    rows = rows_at_once(conv, size, tiles)
    whole = not heavy(conv)
    # One vector, which nobody reads, where no sums wait.
    sums = 1 if rows == kernel_rows else tiles * tall * vectors
    compute, part = register_tile(isa, conv, tile.vectors, tall), partial_tile(isa, conv, tile.vectors, tall, rows)

    def neighbours(first):
        return lambda p: first + p

    @T.inline
    def over_tiles(image, origin, context, to):
        operands, y, (waiting, task), first_panel, last_panel = context
        # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the sums.
        waiting[task * (sums * isa.lanes)] = T.float32(0)
        for panel in T.serial(first_panel, last_panel):
            if whole:
                for t in T.serial(tiles):
                    compute(image, origin, operands, y, to, panel, neighbours(T.min(t * tall, bands.pixels - tall)))
            else:
                for block in T.serial(-(-kernel_rows // rows)):
                    start: T.let = block * rows
                    stop: T.let = T.min(start + rows, kernel_rows)
                    for t in T.serial(tiles):
                        part(
                            image,
                            origin,
                            operands,
                            y,
                            to,
                            panel,
                            neighbours(T.min(t * tall, bands.pixels - tall)),
                            start,
                            stop,
                            waiting,
                            task * sums,
                            t,
                        )

    each_band = bands.each(over_tiles)

    @T.inline
    def over_bands(x, scratch, waiting, operands, y, task):
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        first_panel: T.let = 0 if by_bands else task * panels // threads
        last_panel: T.let = panels if by_bands else (task + 1) * panels // threads
        each_band(x, scratch, (operands, y, (waiting, task), first_panel, last_panel), task, first_band, last_band)

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((panels, conv.taps, size), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        scratch = T.sblock_alloc_buffer((threads * bands.scratch_size,), "float32")
        waiting = T.sblock_alloc_buffer((threads * sums * isa.lanes,), "float32")
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
                    y[0 : conv.output_size],
                    scratch[0 : threads * bands.scratch_size],
                    waiting[0 : threads * sums * isa.lanes],
                )
                over_bands(x, scratch, waiting, (weight, bias, residual), y, vt)

    return convolved


def _waiting(parts: int, threads: int) -> float:
    """Return the time that `threads` take for equal `parts`, as a multiple of the best possible."""
    return -(-parts // threads) * threads / parts
