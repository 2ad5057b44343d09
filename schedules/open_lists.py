"""Lists of the open pixels of a band, panel by panel, and the blocks that they are taken in."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.conv2d_lines import Lines
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import count_true, kept_first

#: Numbers that a task keeps: blocks, and small ones; where the list ends, and where the panel's begins.
COUNTS = 4
#: Entries that a vector writes at most.
_WIDEST = 16


@dataclass(frozen=True)
class OpenLists:
    """Lists of a band of `pixels` output pixels for `panels` panels, of which each of `threads` tasks has its own.

    Blocks of `block` pixels come first, those of `small` behind them, each in the order of panels. Of the last block of
    a panel, places without a pixel name its last one's.

    Attributes
    ----------
    panels, pixels : int
    width : int
        Columns of the output.
    threads : int
    block, small : int
        Pixels of a listed block, and of one where no more are left; 0 if all blocks are alike.
    """

    panels: int
    pixels: int
    width: int
    threads: int
    block: int
    small: int = 0

    @property
    def room(self) -> int:
        """Entries of a task's list; what vectors write behind it included."""
        return self.most * self.block + self.block + _WIDEST

    @property
    def most(self) -> int:
        """Blocks of either kind, at most."""
        return self.panels * -(-self.pixels // self.block)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of all buffers.

        They are places and bases of listed pixels; panels, beginnings and pixels of blocks; counts; bases of pixels.
        """
        each = (self.room, self.room, *(3 * [2 * self.most]), COUNTS, self.pixels)
        return tuple(self.threads * n for n in each)

    def prepare(self, lines: Lines):
        """Return the macro ``(buffers, task)`` that notes where what each pixel sees begins; once a task."""

        @inline
        def prepared(buffers, task):
            for pixel in T.serial(self.pixels):
                buffers[6][task * self.pixels + pixel] = (
                    T.truncdiv(pixel, self.width) * lines.line + T.truncmod(pixel, self.width) * lines.pixel
                )

        return prepared

    def listing(self, isa: Isa):
        """Return the macro ``(opened, to, buffers, task)`` that lists what is open of the band from the pixel `to` on.

        ``opened: u8[panels, pixels of all bands]``.
        """
        lanes, pixels, most, block = isa.lanes, self.pixels, self.most, self.block
        chunks, least = pixels // lanes, self.small or block

        def is_open(opened, panel, at):
            return opened[panel, T.ramp(at, 1, lanes)] != T.broadcast(T.uint8(0), lanes)

        def fill(values, end):
            """Name the last value on to the end of a block."""
            for vector in range(-(-block // lanes)):
                last = T.broadcast(values[end - 1], lanes)
                T.buffer_store(values, last, [T.ramp(end + vector * lanes, 1, lanes)])

        @inline
        def add(buffers, task, kind, panel, begin, real):
            at: T.let = (2 * task + kind) * most + buffers[5][COUNTS * task + kind]
            buffers[2][at] = panel
            buffers[3][at] = begin
            buffers[4][at] = real
            buffers[5][COUNTS * task + kind] = buffers[5][COUNTS * task + kind] + 1

        @inline
        def list_band(opened, to, buffers, task):
            places, bases, _panels, _begins, _real, found, base_of = buffers
            # No buffers of their own: TVM allocates these in the innermost loop around all uses but loops' extents.
            end: T.let = COUNTS * task + 2
            first: T.let = COUNTS * task + 3
            found[end] = task * self.room
            found[COUNTS * task] = 0
            found[COUNTS * task + 1] = 0
            for panel in T.serial(self.panels):
                found[first] = found[end]
                for c in T.serial(chunks):
                    own: T.let = task * pixels + c * lanes
                    places[T.ramp(found[end], 1, lanes)] = kept_first(
                        isa, "int32", T.ramp(c * lanes, 1, lanes), is_open(opened, panel, to + c * lanes)
                    )
                    bases[T.ramp(found[end], 1, lanes)] = kept_first(
                        isa, "int32", base_of[T.ramp(own, 1, lanes)], is_open(opened, panel, to + c * lanes)
                    )
                    found[end] = found[end] + count_true(isa, is_open(opened, panel, to + c * lanes))
                for p in T.serial(chunks * lanes, pixels):
                    places[found[end]] = p
                    bases[found[end]] = base_of[task * pixels + p]
                    found[end] = found[end] + T.Cast("int32", opened[panel, to + p])
                count: T.let = found[end] - found[first]
                if count > 0:
                    fill(places, found[end])
                    fill(bases, found[end])
                    blocks: T.let = (count + (block - self.small - 1)) // block
                    for n in T.serial(blocks):
                        add(buffers, task, 0, panel, found[first] + n * block, T.min(block, count - n * block))
                    if count > blocks * block:
                        add(buffers, task, 1, panel, found[first] + blocks * block, count - blocks * block)
                    found[end] = found[first] + (count + (least - 1)) // least * least

        return list_band
