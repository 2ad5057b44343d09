"""What convolutions of bytes read: bands of the input as unsigned bytes, with their padding.

Activations are unsigned bytes with one scale and one zero point for a whole image, known when the library is built.
What a band reads is copied into a scratch, and quantized there if it comes as floats; padding has the value of the zero
point. Where a kernel's rows are short the copy is spread out once more, so that all taps of a pixel are neighbours
(im2col): a product of tiles takes 64 bytes at a time, used or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.byte_vectors import quantized
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.intrinsics import span
from schedules.quantize import round_up

#: Bytes that a product of tiles adds up at a time.
STEP = 64
#: Places in the operand ``affine``: the inverse scale of the input, its zero point and a half, what a residual
#: byte is multiplied by, the inverse scale of the result, its zero point and a half.
INVERSE, ZERO, RESIDUAL, OUT_INVERSE, OUT_ZERO, AFFINE = 0, 1, 2, 3, 4, 8


@dataclass(frozen=True)
class ByteConv:
    """A convolution of bytes, and how its images come and go.

    Attributes
    ----------
    conv : Conv2d
    source, result : str
        ``uint8``, or ``float32``: quantized as it is read, or not at all.
    residual : str
        The same of the image to be added.
    """

    conv: Conv2d
    source: str = "float32"
    result: str = "float32"
    residual: str = "float32"

    @property
    def direct(self) -> bool:
        """Whether the input can be read where it is: bytes without padding, whose taps fill whole steps."""
        conv = self.conv
        return self.source == "uint8" and not any(conv.padding) and conv.runs[1] % STEP == 0


@dataclass(frozen=True)
class Lines:
    """How output pixels of a band lie in what is read: lines of pixels at a constant distance.

    Attributes
    ----------
    count, length : int
        Lines of a band, and pixels of each.
    pixel, line : int
        Bytes from one pixel, and from one line, to the next.
    runs : tuple of (int, int)
        For each run of neighbouring taps: bytes from a pixel to it, and its length, which is the same of all.
    beside : int
        Runs of one row of the kernel.
    across : int
        What a pixel's place is counted in: columns of the image that the lines lie in, of which those from the output's
        width on are nobody's.
    """

    count: int
    length: int
    pixel: int
    line: int
    runs: tuple[tuple[int, int], ...]
    beside: int
    across: int

    @property
    def steps(self) -> int:
        """Steps of `STEP` bytes of all runs."""
        return sum(-(-length // STEP) for _, length in self.runs)

    @property
    def loops(self) -> tuple[int, int, int]:
        """Rows of runs, runs of each row, steps of each run."""
        return len(self.runs) // self.beside, self.beside, -(-self.runs[0][1] // STEP)

    @property
    def strides(self) -> tuple[int, int]:
        """Bytes from one row of runs, and from one run of a row, to the next."""
        starts = [start for start, _ in self.runs]
        down = starts[self.beside] if len(starts) > self.beside else 0
        return down, starts[1] if self.beside > 1 else 0

    def place(self, pixel, width: int):
        """Return where a pixel of the lines lies in an output of `width` columns.

        Those between its rows are nobody's: they are written, too, where a pixel of the next row is written later.
        """
        return pixel if self.across == width else pixel - T.truncdiv(pixel, self.across) * (self.across - width)


def image_lines(conv: Conv2d, rows: int, form: str) -> Lines:
    """Return the lines of a band of `rows` output rows.

    `form` is ``rows``, one line each; ``whole``, a single line through the padding between rows, for strides of one; or
    ``spread``, a single line of all taps of each pixel.
    """
    width, out = conv.padded_width * conv.inputs, conv.out_width
    if form == "spread":
        taps = round_up(conv.taps, STEP)
        return Lines(1, rows * out, taps, 0, ((0, conv.taps),), 1, out)
    times, run = conv.runs
    runs = tuple(
        (down * conv.dilation[0] * width + across * conv.dilation[1] * conv.inputs, run)
        for down in range(conv.kernel[0])
        for across in range(times)
    )
    if form == "whole":
        return Lines(1, (rows - 1) * conv.padded_width + out, conv.inputs, 0, runs, times, conv.padded_width)
    return Lines(rows, out, conv.strides[1] * conv.inputs, conv.strides[0] * width, runs, times, out)


@dataclass(frozen=True)
class ByteBands:
    """The bands of `rows` output rows each that a convolution of bytes is computed in."""

    byte: ByteConv
    rows: int
    form: str

    @property
    def per_image(self) -> int:
        """Bands of one image."""
        return -(-self.byte.conv.out_height // self.rows)

    @property
    def count(self) -> int:
        """Bands of all images."""
        return self.byte.conv.batch * self.per_image

    @property
    def in_rows(self) -> int:
        """Rows of the padded input that a band reads."""
        return (self.rows - 1) * self.byte.conv.strides[0] + self.byte.conv.reach[0]

    @property
    def copied(self) -> bool:
        """Whether the input is copied before it is read."""
        return self.form == "spread" or not self.byte.direct

    @property
    def copy_size(self) -> int:
        """Bytes of a thread's copy: a step may read beyond its end."""
        conv = self.byte.conv
        return round_up(self.in_rows * conv.padded_width * conv.inputs + STEP, STEP) if self.copied else STEP

    @property
    def spread_size(self) -> int:
        """Bytes of a thread's copy that is spread out."""
        conv = self.byte.conv
        return self.rows * conv.out_width * round_up(conv.taps, STEP) if self.form == "spread" else STEP

    def each(self, isa: Isa, compute):
        """Return the macro ``(x, affine, scratch, context, task, first, last)`` over the bands from `first` to `last`.

        ``scratch`` are two buffers of ``copy_size`` and ``spread_size`` bytes a task. ``compute(image, origin, context,
        to)`` is the macro for one band: `image` holds what it reads from `origin` on, and `to` is its first pixel in
        the output.
        """
        conv, rows, per_image = self.byte.conv, self.rows, self.per_image
        copied, spread_out, copy_size, spread_size = (
            self.copied,
            self.form == "spread",
            self.copy_size,
            self.spread_size,
        )
        copy, spread = copy_rows(isa, self.byte, self.in_rows), spread_taps(conv, rows)

        @T.inline
        def each_band(x, affine, scratch, context, task, first, last):
            copies, spreads = scratch
            for band in T.serial(first, last):
                number: T.let = band // per_image
                row: T.let = T.min(band % per_image * rows, conv.out_height - rows)
                to: T.let = (number * conv.out_height + row) * conv.out_width
                if copied:
                    copy(x, affine, copies, task * copy_size, number, row * conv.strides[0] - conv.padding[0])
                    if spread_out:
                        spread(copies, task * copy_size, spreads, task * spread_size)
                        compute(spreads, task * spread_size, context, to)
                    else:
                        compute(copies, task * copy_size, context, to)
                else:
                    origin: T.let = (number * conv.height + row * conv.strides[0]) * (conv.width * conv.inputs)
                    compute(x, origin, context, to)

        return each_band


def copy_rows(isa: Isa, byte: ByteConv, rows: int):
    """Return the macro ``(x, affine, scratch, origin, image, top)`` that copies `rows` padded rows from `top` on."""
    conv, quantize = byte.conv, byte.source == "float32"
    _, left, _, right = conv.padding
    before, inside, after = (columns * conv.inputs for columns in (left, conv.width, right))
    row_bytes = before + inside + after
    lanes = isa.lanes if inside >= isa.lanes else 1
    vectors = -(-inside // lanes)

    @T.inline
    def copy_inside(x, start, affine, scratch, to):
        if quantize:
            if lanes > 1:
                for v in T.serial(vectors):
                    at: T.let = T.min(v * lanes, inside - lanes)
                    scratch[T.ramp(to + at, 1, lanes)] = quantized(
                        x[T.ramp(start + at, 1, lanes)], affine[INVERSE], affine[ZERO], lanes
                    )
            else:
                for i in T.serial(inside):
                    level: T.let = T.Cast("int32", x[start + i] * affine[INVERSE] + affine[ZERO])
                    scratch[to + i] = T.Cast("uint8", T.min(T.max(level, 0), 255))
        else:
            for i in T.serial(inside):
                scratch[to + i] = x[start + i]

    @T.inline
    def copy(x, affine, scratch, origin, image, top):
        zero: T.let = T.Cast("uint8", T.Cast("int32", affine[ZERO]))
        for row in T.serial(rows):
            to: T.let = origin + row * row_bytes
            y: T.let = top + row
            if (y >= 0) and (y < conv.height):
                for i in T.serial(before):
                    scratch[to + i] = zero
                copy_inside(x, (image * conv.height + y) * inside, affine, scratch, to + before)
                for i in T.serial(after):
                    scratch[to + before + inside + i] = zero
            else:
                for i in T.serial(row_bytes):
                    scratch[to + i] = zero

    return copy


def spread_taps(conv: Conv2d, rows: int):
    """Return the macro ``(image, origin, spread, to)`` that writes all taps of each pixel one behind the other.

    A run is copied whole by vectors as long as one or longer: what they write behind it is overwritten by the next run,
    or has weights of zero. So `image` can be read for `STEP` bytes behind its end.
    """
    width, taps = conv.padded_width * conv.inputs, round_up(conv.taps, STEP)
    times, run = conv.runs
    runs = conv.kernel[0] * times
    # The last runs must not reach into the next pixel's.
    lanes = STEP
    while lanes > 1 and (lanes >= 2 * run or (runs - 1) * run + round_up(run, lanes) > taps):
        lanes //= 2

    @T.inline
    def spread_out(image, origin, spread, to):
        for row in T.serial(rows):
            for column in T.serial(conv.out_width):
                start: T.let = origin + row * (conv.strides[0] * width) + column * (conv.strides[1] * conv.inputs)
                end: T.let = to + (row * conv.out_width + column) * taps
                for down in T.unroll(conv.kernel[0]):
                    for across in T.unroll(times):
                        for i in T.serial(-(-run // lanes)):
                            spread[span(end + (down * times + across) * run + i * lanes, lanes)] = image[
                                span(
                                    start
                                    + down * (conv.dilation[0] * width)
                                    + across * (conv.dilation[1] * conv.inputs)
                                    + i * lanes,
                                    lanes,
                                )
                            ]

    return spread_out
