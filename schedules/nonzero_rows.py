"""Lists of the values of an image's rows that are not zero, which convolutions that skip zeros run over."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import count_true, kept_first, magnitude_bits, span
from schedules.quantize import round_up

#: Words of a cache line: every part of a row's list starts at one.
_LINE = 16


@dataclass(frozen=True)
class RowLists:
    """Where things lie in the lists of an image, one ``float32`` buffer whose integers are reinterpreted.

    Each row has a block: where each pixel's values begin, and the last one's end; the values; their places in the row,
    pixel by pixel and channel by channel.

    Attributes
    ----------
    rows : int
        Of all images.
    width, channels : int
    """

    rows: int
    width: int
    channels: int

    @property
    def values(self) -> int:
        """Where in a block the values begin."""
        return round_up(self.width + 1, _LINE)

    @property
    def places(self) -> int:
        """Where in a block the values' places begin."""
        return self.values + self._room

    @property
    def block(self) -> int:
        """Words of a row's block."""
        return self.places + self._room

    @property
    def size(self) -> int:
        """Words of all blocks."""
        return self.rows * self.block

    @property
    def _room(self) -> int:
        # A whole vector is stored at the end of a list.
        return round_up(self.width * self.channels + _LINE, _LINE)


def output_lists(conv: Conv2d) -> RowLists:
    """Return the layout of lists of what a convolution gives."""
    return RowLists(conv.batch * conv.out_height, conv.out_width, conv.outputs)


def list_row(isa: Isa, layout: RowLists):
    """Return the macro ``(row, of, lists, at)`` that lists one row.

    The row's pixels lie in ``row`` from `of` on, channel by channel; its block begins at `at` in ``lists``.
    """
    lanes, channels, width = isa.lanes, layout.channels, layout.width
    chunks, values, places = channels // lanes, layout.values, layout.places

    def nonzero(row, start, width_):
        """Whether values are not zero, whatever its sign."""
        return magnitude_bits(row[span(start, width_)], width_) != T.int32(0)

    def word(place):
        # TVM folds the only place to a constant, of which it cannot reinterpret zero.
        return T.float32(0) if width * channels == 1 else T.reinterpret(place, dtype="float32")

    @inline
    def listed(row, of, lists, at):
        end = T.alloc_buffer((1,), "int32")
        end[0] = 0
        for pixel in T.serial(width):
            lists[at + pixel] = T.reinterpret(end[0], dtype="float32")
            # Expressions, not variables: TVM cannot bind a vector of conditions.
            for chunk in T.serial(chunks):
                here: T.let = of + pixel * channels + chunk * lanes
                lists[T.ramp(at + values + end[0], 1, lanes)] = kept_first(
                    isa, "float32", row[T.ramp(here, 1, lanes)], nonzero(row, here, lanes)
                )
                lists[T.ramp(at + places + end[0], 1, lanes)] = T.reinterpret(
                    kept_first(
                        isa, "int32", T.ramp(pixel * channels + chunk * lanes, 1, lanes), nonzero(row, here, lanes)
                    ),
                    dtype=f"float32x{lanes}",
                )
                end[0] = end[0] + count_true(isa, nonzero(row, here, lanes))
            for rest in T.serial(channels - chunks * lanes):
                place: T.let = pixel * channels + chunks * lanes + rest
                lists[at + values + end[0]] = row[of + place]
                lists[at + places + end[0]] = word(place)
                end[0] = end[0] + T.Cast("int32", nonzero(row, of + place, 1))
        lists[at + width] = T.reinterpret(end[0], dtype="float32")

    return listed
