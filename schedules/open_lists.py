"""Lists of the open pixels of a band, panel by panel, and the blocks that they are taken in."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.conv2d_lines import Lines
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import compress, count_true

#: Pixels of a listed block, and of one where no more are left.
PAIR, SINGLE = 32, 16
LANES = 16
#: Numbers that a task keeps: blocks of 32, and of 16; where the list ends, and where the panel's begins.
COUNTS = 4


@dataclass(frozen=True)
class OpenLists:
    """Lists of a band of `pixels` output pixels for `panels` panels, of which each of `threads` tasks has its own.

    Blocks of 32 pixels come first, those of 16 behind them, each in the order of panels. Of the last blocks of
    a panel, places without a pixel name its last one's.
    """

    panels: int
    pixels: int
    width: int
    threads: int

    @property
    def room(self) -> int:
        """Entries of a task's list; what vectors write behind it included."""
        return self.panels * -(-self.pixels // PAIR) * PAIR + PAIR + LANES

    @property
    def most(self) -> int:
        """Blocks of either kind, at most."""
        return self.panels * -(-self.pixels // PAIR)

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
        chunks, pixels, most = self.pixels // LANES, self.pixels, self.most

        def is_open(opened, panel, at):
            return opened[panel, T.ramp(at, 1, LANES)] != T.broadcast(T.uint8(0), LANES)

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
                    own: T.let = task * pixels + c * LANES
                    places[T.ramp(found[end], 1, LANES)] = compress(
                        isa, "int32", T.ramp(c * LANES, 1, LANES), is_open(opened, panel, to + c * LANES)
                    )
                    bases[T.ramp(found[end], 1, LANES)] = compress(
                        isa, "int32", base_of[T.ramp(own, 1, LANES)], is_open(opened, panel, to + c * LANES)
                    )
                    found[end] = found[end] + count_true(isa, is_open(opened, panel, to + c * LANES))
                for p in T.serial(chunks * LANES, pixels):
                    places[found[end]] = p
                    bases[found[end]] = base_of[task * pixels + p]
                    found[end] = found[end] + T.Cast("int32", opened[panel, to + p])
                count: T.let = found[end] - found[first]
                if count > 0:
                    for half in T.unroll(PAIR // LANES):
                        places[T.ramp(found[end] + half * LANES, 1, LANES)] = T.broadcast(places[found[end] - 1], LANES)
                    pairs: T.let = (count + (PAIR - SINGLE - 1)) // PAIR
                    for block in T.serial(pairs):
                        add(buffers, task, 0, panel, found[first] + block * PAIR, T.min(PAIR, count - block * PAIR))
                    if count > pairs * PAIR:
                        add(buffers, task, 1, panel, found[first] + pairs * PAIR, count - pairs * PAIR)
                    found[end] = found[first] + (count + (SINGLE - 1)) // SINGLE * SINGLE

        return list_band
