"""Lists of the nonzero values of an image's rows, which convolutions that skip zeros run over.

A register tile computes a few neighbouring pixels of the output, which read the same weights from as many
neighbouring pixels of the input. So a list holds, position by position, the channels in which any of these pixels
is not zero, each with the values of all of them. What a kernel row reads of it is one run of the list.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.intrinsics import count_true, kept_first, span


def positions(conv: Conv2d, pixels: int) -> int:
    """Return the columns, padding included, that a row's list goes through."""
    return (conv.out_width - pixels) * conv.strides[1] + conv.reach[1]


def list_room(isa: Isa, conv: Conv2d, pixels: int) -> int:
    """Return the length of the memory for a row's list: a whole vector is stored at the end of the list."""
    return positions(conv, pixels) * conv.inputs + isa.lanes


def list_row(isa: Isa, conv: Conv2d, pixels: int, scale: int):
    """Return the macro ``(row, of, values, places, at, starts, first)`` that lists one row.

    The row's pixels, padding included, lie in ``row`` from `of` on. Of each value of the list, that of the p-th of
    the `pixels` is written to ``values[p]`` from `at` on, and its place, position in the row times `scale`, to
    ``places: i32``. Where the values of each position begin in these is written to ``starts: i32`` from `first` on,
    behind them the end.
    """
    lanes, inputs, step = isa.lanes, conv.inputs, conv.strides[1] * conv.inputs
    chunks, columns = inputs // lanes, positions(conv, pixels)

    def any_nonzero(row, start, width):
        """Whether one of the pixels' values is not zero, whatever its sign, for `width` channels from `start` on."""
        bits = T.int32(0)
        for p in range(pixels):
            value = row[span(start + p * step, width)]
            bits = bits | T.reinterpret(value, dtype=f"int32x{width}" if width > 1 else "int32")
        return bits & T.int32(0x7FFFFFFF) != T.int32(0)

    @T.inline
    def listed(row, of, values, places, at, starts, first):
        end = T.alloc_buffer((1,), "int32", scope="local")
        end[0] = at
        for column in T.serial(columns):
            starts[first + column] = end[0]
            # Expressions, not variables: TVM cannot bind a vector of conditions.
            for chunk in T.serial(chunks):
                here: T.let = column * inputs + chunk * lanes
                for p in T.unroll(pixels):
                    values[p, T.ramp(end[0], 1, lanes)] = kept_first(
                        isa,
                        "float32",
                        row[T.ramp(of + here + p * step, 1, lanes)],
                        any_nonzero(row, of + here, lanes),
                    )
                places[T.ramp(end[0], 1, lanes)] = kept_first(
                    isa, "int32", T.ramp(here * scale, scale, lanes), any_nonzero(row, of + here, lanes)
                )
                end[0] = end[0] + count_true(isa, any_nonzero(row, of + here, lanes))
            for rest in T.serial(inputs - chunks * lanes):
                place: T.let = column * inputs + chunks * lanes + rest
                for p in T.unroll(pixels):
                    values[p, end[0]] = row[of + place + p * step]
                places[end[0]] = place * scale
                end[0] = end[0] + T.Cast("int32", any_nonzero(row, of + place, 1))
        starts[first + columns] = end[0]

    return listed
