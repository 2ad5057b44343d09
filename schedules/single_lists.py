"""The gate of single outputs of a convolution, and the groups of open ones that are computed together.

An output is open if leaving it to the little module does too much harm: what the next layers multiply its channel by,
times the slope of the nonlinearity, times the error of the channel (`schedules.conv2d_gate`, for a channel by itself).
Closed ones are written at once. Open ones are listed by channel, over a run of pixels whose surroundings stay in L1,
in groups of pixels that share the channel's weights; the last group of a channel is filled up with its last pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.inlining import inline
from schedules.intrinsics import count_true, kept_first, span

#: Most lanes of a vector.
VECTOR = 16


@dataclass(frozen=True)
class Groups:
    """Sizes of the lists of a run of pixels.

    Attributes
    ----------
    outputs : int
        Channels.
    pixels : int
        Of a run.
    together : int
        Pixels of a group, a power of two.
    """

    outputs: int
    pixels: int
    together: int

    @property
    def room(self) -> int:
        """Entries of a channel's list; behind it there is room to fill up the last group, and to read whole vectors."""
        return self.slots * self.together + max(self.together, VECTOR)

    @property
    def slots(self) -> int:
        """Most groups of a channel."""
        return -(-self.pixels // self.together)

    @property
    def most(self) -> int:
        """Most groups of all channels, and room behind them to write whole vectors."""
        return self.outputs * self.slots + 2 * VECTOR


def open_outputs(isa: Isa, conv: Conv2d):
    """Return the macro ``(sums, residual, limits, y, to, found, count)`` for the pixel ``to`` of the output.

    It writes the activation of ``sums``, and the open channels to ``found: i32[outputs + lanes]``, of which
    ``count[0]`` receives how many. With the rows a, b and d of ``limits: f32[3, outputs]`` a channel is open if
    ``d * min(max(a * sum + b, 0), 1)`` exceeds 1.
    """
    lanes, outputs = isa.lanes, conv.outputs
    vectors, nonlinearity = outputs // lanes, NONLINEARITIES[conv.activation]

    def finish(residual, at, value):
        return nonlinearity(value + residual[at] if conv.residual else value)

    def is_open(sums, residual, limits, at, channel, width):
        def spread(value):
            return T.broadcast(T.float32(value), width) if width > 1 else T.float32(value)

        value = sums[span(at, width)] + residual[span(at, width)] if conv.residual else sums[span(at, width)]
        where = span(channel, width)
        slope = T.max(T.min(limits[0, where] * value + limits[1, where], spread(1)), spread(0))
        return limits[2, where] * slope > spread(1)

    def kept(sums, residual, limits, at, channel):
        mask = is_open(sums, residual, limits, at, channel, lanes)
        return kept_first(isa, "int32", T.ramp(channel, 1, lanes), mask)

    def kept_count(sums, residual, limits, at, channel):
        return count_true(isa, is_open(sums, residual, limits, at, channel, lanes))

    @inline
    def opened(sums, residual, limits, y, to, found, count):
        count[0] = 0
        for v in T.serial(vectors):
            at: T.let = to * outputs + v * lanes
            y[T.ramp(at, 1, lanes)] = finish(residual, T.ramp(at, 1, lanes), sums[T.ramp(at, 1, lanes)])
            found[T.ramp(count[0], 1, lanes)] = kept(sums, residual, limits, at, v * lanes)
            count[0] = count[0] + kept_count(sums, residual, limits, at, v * lanes)
        for c in T.serial(vectors * lanes, outputs):
            at: T.let = to * outputs + c
            y[at] = finish(residual, at, sums[at])
            found[count[0]] = c
            count[0] = count[0] + T.Cast("int32", is_open(sums, residual, limits, at, c, 1))

    return opened


def listed_groups(isa: Isa, groups: Groups):
    """Return the macros that list open outputs: ``add(found, count, pixel, ends, lists)`` and ``close``.

    ``add`` appends a pixel to the lists of its open channels. ``close(ends, lists, channels, pixels, number)`` writes
    the groups behind those that there are, whose number is ``number[0]``: to ``channels`` the channel of each, to
    ``pixels: i32[groups * together]`` its pixels; and empties the lists. ``ends: i32[outputs]``, ``lists: i32[outputs *
    room]``; operands are pairs of a buffer and where in it a thread's part begins.
    """
    room, together, slots, lanes = groups.room, groups.together, groups.slots, isa.lanes
    wide = min(lanes, 1 << (slots - 1).bit_length())

    @inline
    def add(found, count, pixel, ends, lists):
        for i in T.serial(count[0]):
            channel: T.let = found[0][found[1] + i]
            end: T.let = ends[0][ends[1] + channel]
            lists[0][lists[1] + channel * room + end] = pixel
            ends[0][ends[1] + channel] = end + 1

    @inline
    def close(ends, lists, channels, pixels, number):
        for channel in T.serial(groups.outputs):
            end: T.let = ends[0][ends[1] + channel]
            start: T.let = lists[1] + channel * room
            lists[0][span(start + end, together)] = (
                T.broadcast(lists[0][start + T.max(end - 1, 0)], together)
                if together > 1
                else lists[0][start + T.max(end - 1, 0)]
            )
            # More than there is, which the next channel overwrites: groups one by one would be a branch each.
            for i in T.serial(-(-slots // wide)):
                channels[0][span(channels[1] + number[0] + i * wide, wide)] = (
                    T.broadcast(channel, wide) if wide > 1 else channel
                )
            for i in T.serial(-(-slots * together // lanes)):
                pixels[0][T.ramp(pixels[1] + number[0] * together + i * lanes, 1, lanes)] = lists[0][
                    T.ramp(start + i * lanes, 1, lanes)
                ]
            number[0] = number[0] + (end + (together - 1)) // together
            ends[0][ends[1] + channel] = 0

    return add, close
