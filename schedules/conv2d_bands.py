"""Bands of a convolution's output: so many rows at a time that what they read stays in L2.

What a band reads is first copied into a scratch of its own, with its padding, so that no tile has an edge. Without
padding the input is read where it is. The last band overlaps the one before it, rather than leave a remainder.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.inlining import inline

#: Bytes of padded input that a band may read: with a panel of weights it has to stay in L2.
BAND_BYTES = 192 << 10


#: How much more that may be where weights come from further away, since each band reads all of them: what a band reads
#: is then better taken from L3 once for every panel.
_HEAVY = 4


def heavy(conv: Conv2d) -> bool:
    """Whether the weights do not stay in L2 beside a band."""
    return conv.outputs * conv.taps * 4 > BAND_BYTES


def band_rows(conv: Conv2d) -> int:
    """Return the most output rows of a band; one at least."""
    return rows_within(conv, BAND_BYTES * _HEAVY if heavy(conv) else BAND_BYTES)


def rows_within(conv: Conv2d, room: int) -> int:
    """Return the most output rows that read no more than `room` bytes of padded input; one at least."""
    most = (room // (conv.padded_width * conv.inputs * 4) - conv.reach[0]) // conv.strides[0] + 1
    return max(1, min(most, conv.out_height))


@dataclass(frozen=True)
class Bands:
    """The bands of `rows` output rows each that a convolution is computed in."""

    conv: Conv2d
    rows: int

    @property
    def per_image(self) -> int:
        """Bands of one image."""
        return -(-self.conv.out_height // self.rows)

    @property
    def count(self) -> int:
        """Bands of all images."""
        return self.conv.batch * self.per_image

    @property
    def pixels(self) -> int:
        """Output pixels of a band."""
        return self.rows * self.conv.out_width

    @property
    def in_rows(self) -> int:
        """Rows of the padded input that a band reads."""
        return (self.rows - 1) * self.conv.strides[0] + self.conv.reach[0]

    @property
    def scratch_size(self) -> int:
        """Values of a thread's scratch; one, which nobody reads, without padding."""
        return self.in_rows * self.conv.padded_width * self.conv.inputs if any(self.conv.padding) else 1

    def each(self, compute):
        """Return the macro ``(x, scratch, context, task, first, last)`` over the bands from `first` to `last`.

        ``compute(image, origin, context, to)`` is the macro for one band: `image` holds its padded input from
        `origin` on, and `to` is its first pixel in the output. Each `task` has a scratch of its own.
        """
        conv, rows, per_image, size = self.conv, self.rows, self.per_image, self.scratch_size
        padded, copy = any(conv.padding), _copy(conv, self.in_rows)

        @inline
        def each_band(x, scratch, context, task, first, last):
            for band in T.serial(first, last):
                number: T.let = band // per_image
                row: T.let = T.min(band % per_image * rows, conv.out_height - rows)
                to: T.let = (number * conv.out_height + row) * conv.out_width
                if padded:
                    copy(x, scratch, task * size, number, row * conv.strides[0] - conv.padding[0])
                    compute(scratch, task * size, context, to)
                else:
                    origin: T.let = (number * conv.height + row * conv.strides[0]) * (conv.width * conv.inputs)
                    compute(x, origin, context, to)

        return each_band


def _copy(conv: Conv2d, rows: int):
    """Return the macro ``(x, scratch, origin, image, top)`` that copies `rows` padded rows from the row `top` on."""
    _, left, _, right = conv.padding
    before, inside, after = (columns * conv.inputs for columns in (left, conv.width, right))
    row_values = before + inside + after

    @inline
    def copy(x, scratch, origin, image, top):
        for row in T.serial(rows):
            to: T.let = origin + row * row_values
            y: T.let = top + row
            if (y >= 0) and (y < conv.height):
                for i in T.serial(before):
                    scratch[to + i] = T.float32(0)
                for i in T.serial(inside):
                    scratch[to + before + i] = x[(image * conv.height + y) * inside + i]
                for i in T.serial(after):
                    scratch[to + before + inside + i] = T.float32(0)
            else:
                for i in T.serial(row_values):
                    scratch[to + i] = T.float32(0)

    return copy
