"""Register tiles of convolutions: pixels times output channels, of dense and of gated ones.

A value of the input is only ever broadcast, so the pixels of a tile may lie anywhere.
"""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T

from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_store import store_pixel
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import prefetch
from schedules.panels import panel_size

#: Bytes of a cache line.
_LINE = 64
#: Bytes of weights of each output of a panel that stay in L2 while the tiles of a band pass: 640 kB of a panel of 32,
#: 320 of one of 16. Those that do not are taken in parts of a quarter of that. Measured with 2 MB of L2: 14 x 14,
#: 256 -> 256 at 9 kB an output does 106 GMAC/s whole and 75 in two parts; 64 rows of 1024 values, 256 kB an output, do
#: 103 a row at a time, 94 four rows at a time and 81 eight.
_OUTPUT_BYTES = 20 << 10


def register_tile(isa: Isa, conv: Conv2d, vectors: int, pixels: int, in_row: bool = False):
    """Return the macro ``(image, origin, operands, y, to, panel, pixel)`` that computes one register tile.

    It takes `pixels` pixels and one panel of outputs; ``pixel(p)`` is the place of the p-th in the band. `image` holds
    the band's padded input from `origin` on; `to` is the band's first pixel in the output. Where all pixels are
    `in_row`, one row of the output, the kernel's rows that would see nothing but padding are left out.
    """
    parts = _TileParts(isa, conv, vectors, pixels, in_row)
    begin, add, finish = parts.begin(), parts.add(), parts.finish()

    @inline
    def compute(image, origin, operands, y, to, panel, pixel):
        total = parts.registers()
        base = T.alloc_buffer((pixels,), "int32")
        begin(origin, operands, panel, pixel, total, base)
        add(image, operands, panel, total, base, 0, conv.kernel[0], 0, to + pixel(0))
        finish(operands, y, to, panel, pixel, total)

    return compute


def partial_tile(isa: Isa, conv: Conv2d, vectors: int, pixels: int, rows: int, tiles: int = 1, in_row: bool = False):
    """Return the macro of `register_tile` for some rows of the kernel.

    It is ``(image, origin, operands, y, to, panel, pixel, start, stop, waiting, first, number)``: rows from `start` to
    `stop`; the sums before and after them lie in ``waiting: f32``, those of the first tile from the vector `first` on.
    `number` counts the tiles that read these weights, `tiles` or more. Meanwhile the weights behind them are fetched,
    as in `schedules.panels`: as many as `rows` rows of the kernel have.
    """
    parts = _TileParts(isa, conv, vectors, pixels, in_row)
    begin, add, finish = parts.begin(), parts.add(rows, tiles), parts.finish()
    count, lanes = parts.count, isa.lanes

    def resume(total, waiting, at):
        for i in range(count):
            T.buffer_store(total[i], waiting[T.ramp((at + i) * lanes, 1, lanes)], [T.ramp(0, 1, lanes)])

    def pause(total, waiting, at):
        for i in range(count):
            T.buffer_store(waiting, total[i][T.ramp(0, 1, lanes)], [T.ramp((at + i) * lanes, 1, lanes)])

    @inline
    def compute(image, origin, operands, y, to, panel, pixel, start, stop, waiting, first, number):
        at: T.let = first + number * count
        total = parts.registers()
        base = T.alloc_buffer((pixels,), "int32")
        begin(origin, operands, panel, pixel, total, base)
        if start > 0:
            resume(total, waiting, at)
        add(image, operands, panel, total, base, start, stop, number, to + pixel(0))
        if stop == conv.kernel[0]:
            finish(operands, y, to, panel, pixel, total)
        else:
            pause(total, waiting, at)

    return compute


class _TileParts:
    """Macros that a register tile of one convolution consists of."""

    def __init__(self, isa: Isa, conv: Conv2d, vectors: int, pixels: int, in_row: bool) -> None:
        self._isa, self._conv, self._pixels, self._in_row = isa, conv, pixels, in_row
        self._size = panel_size(isa, conv.outputs, vectors)
        self._vectors = self._size // isa.lanes
        #: Vectors of sums.
        self.count = pixels * self._vectors

    def registers(self) -> list:
        """Allocate the sums: for each pixel its vectors, each a buffer of its own in the default scope.

        Such buffers lie on the stack, and so in registers. For more than a kilobyte, or for any other scope, TVM asks
        for memory, and where all operands lie in one region LLVM does not know that a prefetch leaves it alone: then
        every sum is written at every step. 64 rows of 1024 values and 128 x 128 outputs took 27 ms that way, not 12.7.
        """
        return [T.alloc_buffer((self._isa.lanes,), "float32") for _ in range(self.count)]

    def begin(self):
        """Return ``(origin, operands, panel, pixel, total, base)``: sums start at the bias, pixels at their place."""
        conv, size, lanes, pixels, vectors = self._conv, self._size, self._isa.lanes, self._pixels, self._vectors
        row_values = conv.padded_width * conv.inputs

        def start_sums(total, bias, column):
            for i in range(self.count):
                first = bias[T.ramp(column + i % vectors * lanes, 1, lanes)]
                T.buffer_store(total[i], first, [T.ramp(0, 1, lanes)])

        @inline
        def begun(origin, operands, panel, pixel, total, base):
            for p in T.unroll(pixels):
                base[p] = (
                    origin
                    + pixel(p) // conv.out_width * (conv.strides[0] * row_values)
                    + pixel(p) % conv.out_width * (conv.strides[1] * conv.inputs)
                )
            start_sums(total, operands[1], panel_column(panel, conv.outputs, size))

        return begun

    def add(self, ahead: int = 0, tiles: int = 1):
        """Return the macro that adds products of some rows of the kernel.

        It is ``(image, operands, panel, total, base, start, stop, number, place)``: rows from `start` to `stop`, for a
        tile whose first pixel is at `place` in the output. With `ahead`, as many rows behind them are fetched by the
        first of the tiles that read these, of which there are `tiles` or more: a line a product, or a line a step of
        products if that takes nearly all tiles. Lines wait less then (7 x 7, 512 -> 512: 1322 us instead of 1378).
        """
        conv, lanes, vectors = self._conv, self._isa.lanes, self._vectors
        runs, run = conv.runs
        row_values, row_taps = conv.padded_width * conv.inputs, runs * run
        per_line, steps = _LINE // 4, _steps(run)
        lines = ahead * row_taps * self._size // per_line
        # Tiles that fetch, a line a product.
        needed = -(-lines // max(1, ahead * row_taps))
        every = steps if ahead and needed * steps <= tiles < 2 * needed * steps else 1
        seen = self._seen()

        def multiply(total, image, base, at, weight, panel, tap):
            for i in range(self.count):
                value = T.broadcast(image[base[i // vectors] + at], lanes)
                product = value * weight[panel, tap, T.ramp(i % vectors * lanes, 1, lanes)]
                T.buffer_store(total[i], total[i][T.ramp(0, 1, lanes)] + product, [T.ramp(0, 1, lanes)])

        @inline
        def walked(image, operands, panel, total, base, first, last, stop, line, fetches):
            for down in T.serial(first, last):
                for across in T.serial(runs):
                    skip: T.let = down * (conv.dilation[0] * row_values) + across * (conv.dilation[1] * conv.inputs)
                    tap: T.let = (down * runs + across) * run
                    for c in T.serial(run // steps):
                        for step in T.unroll(steps):
                            at: T.let = c * steps + step
                            if fetches and step % every == 0:
                                ahead_by: T.let = line + (tap + at) // every
                                prefetch(operands[0][panel, stop * row_taps, ahead_by * per_line])
                            multiply(total, image, base, skip + at, operands[0], panel, tap + at)

        @inline
        def added(image, operands, panel, total, base, start, stop, number, place):
            first: T.let = seen(start, stop, place)[0]
            last: T.let = seen(start, stop, place)[1]
            if ahead > 0:
                line: T.let = (number * ((stop - start) * row_taps) - start * row_taps) // every
                if number * ((stop - start) * row_taps) // every < lines:
                    walked(image, operands, panel, total, base, first, last, stop, line, True)
                else:
                    walked(image, operands, panel, total, base, first, last, stop, 0, False)
            else:
                walked(image, operands, panel, total, base, first, last, stop, 0, False)

        return added

    def _seen(self):
        """Return a function ``(start, stop, place)`` to the first and the last of these rows that see the image.

        Of 7 x 7 pixels and a kernel of 3 x 3 two rows of 21 see nothing but padding.
        """
        conv = self._conv
        top, _, bottom, _ = conv.padding
        if not self._in_row or not (top or bottom):
            return lambda start, stop, place: (start, stop)

        def seen(start, stop, place):
            above = top - place // conv.out_width % conv.out_height * conv.strides[0]
            first = T.floordiv(above + (conv.dilation[0] - 1), conv.dilation[0])
            last = T.floordiv(above + conv.height + (conv.dilation[0] - 1), conv.dilation[0])
            first = T.min(T.max(start, first), stop)
            return first, T.max(first, T.min(stop, last))

        return seen

    def finish(self):
        """Return ``(operands, y, to, panel, pixel, total)``: what follows the sums, and where it is written."""
        conv, size, lanes, vectors = self._conv, self._size, self._isa.lanes, self._vectors
        store = store_pixel(self._isa, conv)

        def store_sums(operands, y, to, column, pixel, total):
            for i in range(self.count):
                at = (to + pixel(i // vectors)) * conv.outputs + column + i % vectors * lanes
                store(y, operands[2], at, total[i][T.ramp(0, 1, lanes)])

        @inline
        def finished(operands, y, to, panel, pixel, total):
            store_sums(operands, y, to, panel_column(panel, conv.outputs, size), pixel, total)

        return finished


@cache
def seen_rows(conv: Conv2d) -> float:
    """Return the share of the kernel's rows, over all rows of the output, that see more than padding."""
    rows = [
        y * conv.strides[0] - conv.padding[0] + k * conv.dilation[0]
        for y in range(conv.out_height)
        for k in range(conv.kernel[0])
    ]
    return sum(0 <= row < conv.height for row in rows) / len(rows)


def _steps(run: int) -> int:
    """Return how many values of a run a step of the loop takes.

    What counts and fetches competes with products for ports: two at a time are 2 to 4 % faster than one, and four no
    faster than two.
    """
    return 2 if run % 2 == 0 else 1


def rows_at_once(conv: Conv2d, size: int, tiles: int) -> int:
    """Return the kernel rows of a panel of `size` outputs that stay in L2 while `tiles` tiles pass."""
    row_bytes, room = conv.taps // conv.kernel[0] * size * 4, size * _OUTPUT_BYTES
    if tiles == 1 or conv.kernel[0] * row_bytes <= room:
        return conv.kernel[0]
    blocks = -(-conv.kernel[0] // max(1, room // 4 // row_bytes))
    return -(-conv.kernel[0] // blocks)
