"""What convolutions of bytes or of bf16 read: bands of the input as such values, with their padding.

Activations are unsigned bytes with one scale and one zero point for a whole image, known when the library is built, or
bf16, which has neither. What a band reads is copied into a scratch, and converted there if it comes as something else;
padding has the value of the zero point. Where a kernel's rows are short the copy is spread out once more, so that all
taps of a pixel are neighbours (im2col): a product of tiles takes 64 bytes at a time, used or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, narrowed, narrowed_pair, widened
from schedules.byte_vectors import quantized
from schedules.conv2d_lines import ByteConv
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import span
from schedules.quantize import round_up

#: Places in the operand ``affine``: the inverse scale of the input, its zero point and a half, what a residual
#: byte is multiplied by, the inverse scale of the result, its zero point and a half.
INVERSE, ZERO, RESIDUAL, OUT_INVERSE, OUT_ZERO, AFFINE = 0, 1, 2, 3, 4, 8


@dataclass(frozen=True)
class ByteBands:
    """The bands of `rows` output rows each that a convolution is computed in."""

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
        """Values of a thread's copy: a step may read beyond its end."""
        conv, step = self.byte.conv, self.byte.step
        return round_up(self.in_rows * conv.padded_width * conv.inputs + step, step) if self.copied else step

    @property
    def spread_size(self) -> int:
        """Values of a thread's copy that is spread out."""
        conv, step = self.byte.conv, self.byte.step
        return self.rows * conv.out_width * round_up(conv.taps, step) if self.form == "spread" else step

    def each(self, isa: Isa, compute):
        """Return the macro ``(x, affine, scratch, context, task, first, last)`` over the bands from `first` to `last`.

        ``scratch`` are two buffers of ``copy_size`` and ``spread_size`` values a task. ``compute(image, origin,
        context, to)`` is the macro for one band: `image` holds what it reads from `origin` on, and `to` is its first
        pixel in the output.
        """
        conv, rows, per_image = self.byte.conv, self.rows, self.per_image
        copied, spread_out, copy_size, spread_size = (
            self.copied,
            self.form == "spread",
            self.copy_size,
            self.spread_size,
        )
        copy, spread = copy_rows(isa, self.byte, self.in_rows), spread_taps(self.byte, rows)
        clear = self._clear()

        @inline
        def each_band(x, affine, scratch, context, task, first, last):
            copies, spreads = scratch
            clear(copies, spreads, task)
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

    def _clear(self):
        """Return the macro ``(copies, spreads, task)`` that gives what no band writes, but steps read, a value.

        Its weights are zero; but of what memory holds as bf16, some is no number, and zero times that is none either.
        """
        conv, step, copy_size, spread_size = self.byte.conv, self.byte.step, self.copy_size, self.spread_size
        written, taps = self.in_rows * conv.padded_width * conv.inputs, round_up(conv.taps, step)
        needed = self.copied and self.byte.numbers == BF16
        pixels = self.rows * conv.out_width if self.form == "spread" and conv.taps % step else 0

        @inline
        def clear(copies, spreads, task):
            if needed:
                for i in T.serial(copy_size - written):
                    copies[task * copy_size + written + i] = T.Cast(BF16, 0)
                for pixel in T.serial(pixels):
                    for i in T.serial(step):
                        spreads[task * spread_size + (pixel + 1) * taps - step + i] = T.Cast(BF16, 0)

        return clear


def copy_rows(isa: Isa, byte: ByteConv, rows: int):
    """Return the macro ``(x, affine, scratch, origin, image, top)`` that copies `rows` padded rows from `top` on."""
    conv = byte.conv
    _, left, _, right = conv.padding
    before, inside, after = (columns * conv.inputs for columns in (left, conv.width, right))
    row_size, copy_inside = before + inside + after, _copy_inside(isa, byte, inside)

    @inline
    def copy(x, affine, scratch, origin, image, top):
        zero: T.let = T.Cast(byte.numbers, T.Cast("int32", affine[ZERO]))
        for row in T.serial(rows):
            to: T.let = origin + row * row_size
            y: T.let = top + row
            if (y >= 0) and (y < conv.height):
                for i in T.serial(before):
                    scratch[to + i] = zero
                copy_inside(x, (image * conv.height + y) * inside, affine, scratch, to + before)
                for i in T.serial(after):
                    scratch[to + before + inside + i] = zero
            else:
                for i in T.serial(row_size):
                    scratch[to + i] = zero

    return copy


def _copy_inside(isa: Isa, byte: ByteConv, inside: int):
    """Return the macro ``(x, start, affine, scratch, to)`` that copies, or converts, `inside` values."""
    same, to_bytes = byte.source == byte.numbers, byte.numbers == "uint8"
    lanes = isa.lanes if inside >= isa.lanes else 1
    # Two vectors of floats are one of bf16.
    pairs = inside // 32 if lanes == 16 and byte.numbers == BF16 else 0
    rest = inside - 32 * pairs
    vectors = -(-rest // lanes)

    def floats(x, at):
        values = x[span(at, lanes)]
        return widened(values, lanes) if byte.source == BF16 else values

    def pair(x, at):
        return narrowed_pair(x[T.ramp(at, 1, 16)], x[T.ramp(at + 16, 1, 16)])

    def converted(values, affine):
        if not to_bytes:
            return narrowed(values, lanes)
        if lanes > 1:
            return quantized(values, affine[INVERSE], affine[ZERO], lanes)
        level = T.Cast("int32", values * affine[INVERSE] + affine[ZERO])
        return T.Cast("uint8", T.min(T.max(level, 0), 255))

    @inline
    def copy_inside(x, start, affine, scratch, to):
        if same:
            for i in T.serial(inside):
                scratch[to + i] = x[start + i]
        else:
            if pairs > 0:
                for p in T.serial(pairs):
                    scratch[T.ramp(to + p * 32, 1, 32)] = pair(x, start + p * 32)
            for v in T.serial(vectors):
                at: T.let = T.min(inside - rest + v * lanes, inside - lanes)
                scratch[span(to + at, lanes)] = converted(floats(x, start + at), affine)

    return copy_inside


def spread_taps(byte: ByteConv, rows: int):
    """Return the macro ``(image, origin, spread, to)`` that writes all taps of each pixel one behind the other.

    A run is copied whole by vectors as long as one or longer: what they write behind it is overwritten by the next run,
    or has weights of zero. So `image` can be read for a step behind its end.
    """
    conv = byte.conv
    width, taps = conv.padded_width * conv.inputs, round_up(conv.taps, byte.step)
    times, run = conv.runs
    runs = conv.kernel[0] * times
    # The last runs must not reach into the next pixel's.
    lanes = byte.step
    while lanes > 1 and (lanes >= 2 * run or (runs - 1) * run + round_up(run, lanes) > taps):
        lanes //= 2

    @inline
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
