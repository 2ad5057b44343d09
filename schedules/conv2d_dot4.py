"""Register tiles of bytes: four bytes of a pixel are broadcast, and meet the weights of a vector of outputs.

A vector is 16 outputs at every level, since weights are packed that way: two registers at AVX2. A value of the input is
only ever broadcast, so the pixels of a tile may lie anywhere.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_lines import STEP, Lines
from schedules.conv2d_panels import panel_column
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import add_pairs, dot4, multiply_pairs
from schedules.words import GROUP, word_groups

LANES = 16


class Dot4Tile:
    """What a register tile consists of; call its methods while a kernel is parsed."""

    def __init__(self, isa: Isa, lines: Lines, conv: Conv2d, tile) -> None:
        """Take `tile`'s pixels and vectors of outputs."""
        self._isa, self._lines, self._pixels = isa, lines, tile.pixels
        #: Groups of taps that are multiplied at once; of more than one products are first added up in 16 bits.
        self._groups = word_groups(isa, conv.runs[1])
        #: Registers of a vector, and of a pixel's sums.
        self._parts = LANES // isa.lanes
        self._registers = tile.vectors * self._parts

    def cleared(self) -> tuple[list, list]:
        """Allocate sums of zero: for each pixel its registers, each a buffer of its own (`schedules.conv2d_tile`).

        And those of 16 bits in which products are added up first: as many as registers are left for.
        """
        lanes, count = self._isa.lanes, self._pixels * self._registers
        sums = [T.alloc_buffer((lanes,), "int32") for _ in range(count)]
        for each in sums:
            T.buffer_store(each, T.broadcast(T.int32(0), lanes), [T.ramp(0, 1, lanes)])
        # Beside them are a broadcast value, weights and ones.
        room = max(1, self._isa.registers - count - 3)
        words = -(-count // -(-count // room)) if self._groups > 1 else 0
        return sums, [T.alloc_buffer((2 * lanes,), "int16") for _ in range(words)]

    def add_up(self):
        """Return the macro ``(total, image, weight, panel, place)`` that adds all products of a panel.

        ``place(p)``, of 64 bits, is where what the p-th pixel sees begins in `image`.
        """
        lines, (downs, times, steps) = self._lines, self._lines.loops
        down_by, across_by = lines.strides
        size, multiply = self._groups * GROUP, self._multiply
        products, per_step = -(-lines.runs[0][1] // size), STEP // size

        @inline
        def added(total, image, weight, panel, place):
            for down in T.serial(downs):
                for across in T.serial(times):
                    for step in T.serial(steps):
                        at: T.let = (down * times + across) * steps + step
                        skip: T.let = T.Cast("int64", down * down_by + across * across_by + step * STEP)
                        for n in T.serial(T.min(per_step, products - step * per_step)):
                            multiply(total, image, place, skip + T.Cast("int64", n * size), weight, (panel, at), n)

        return added

    def sums(self, total) -> list[list]:
        """Return for each pixel its vectors of 16 sums."""
        starts = [range(p * self._registers, (p + 1) * self._registers, self._parts) for p in range(self._pixels)]
        return [[self._vector(total[0], first) for first in row] for row in starts]

    def _multiply(self, total, image, place, skip, weight, panel, number):
        (sums, words), isa, lanes, size = total, self._isa, self._isa.lanes, self._isa.vector_bytes
        each = [(p, r) for p in range(self._pixels) for r in range(self._registers)]
        low, wide = T.ramp(0, 1, lanes), T.ramp(0, 1, 2 * lanes)

        def operands(p: int, r: int, g: int):
            """Taps of a pixel in all lanes, and the weights of a register."""
            value = T.reinterpret(image[T.ramp(place(p) + skip + g * GROUP, T.int64(1), GROUP)], dtype="int32")
            vector, part = r // self._parts, r % self._parts
            weights = weight[(*panel, vector, number * self._groups + g, T.ramp(part * size, 1, size))]
            return T.reinterpret(T.broadcast(value, lanes), dtype=f"int8x{size}"), weights

        if not words:
            for each_sums, (p, r) in zip(sums, each, strict=True):
                T.buffer_store(each_sums, dot4(isa, each_sums[low], *operands(p, r, 0)), [low])
            return
        for first in range(0, len(each), len(words)):
            some = list(zip(words, sums[first:], each[first:], strict=False))
            for g in range(self._groups):
                for word, _, (p, r) in some:
                    found = multiply_pairs(isa, *operands(p, r, g))
                    T.buffer_store(word, word[wide] + found if g else found, [wide])
            for word, each_sums, _ in some:
                T.buffer_store(each_sums, add_pairs(isa, each_sums[low], word[wide]), [low])

    def _vector(self, sums, first: int):
        found = [each[T.ramp(0, 1, self._isa.lanes)] for each in sums[first : first + self._parts]]
        return found[0] if self._parts == 1 else T.Shuffle(found, list(range(LANES)))


def dot4_panels(isa: Isa, lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` for a band and some panels.

    See `schedules.conv2d_amx.amx_panels`; here a tile is of registers.
    """
    width, pixels, per_line = tile.vectors * LANES, tile.pixels, -(-lines.length // tile.pixels)
    products = Dot4Tile(isa, lines, conv, tile)
    add_up = products.add_up()

    def neighbours(start):
        return lambda p: start + T.int64(p * lines.pixel)

    def finish(operands, y, to, channel, total, pixel):
        places = [(to + lines.place(pixel + p, conv.out_width)) * conv.outputs + channel for p in range(pixels)]
        store(operands, y, places, channel, products.sums(total))

    @inline
    def compute(image, origin, operands, y, to, first, last):
        for panel in T.serial(first, last):
            channel: T.let = panel_column(panel, conv.outputs, width)
            for number in T.serial(lines.count * per_line):
                total = products.cleared()
                line: T.let = number // per_line
                column: T.let = T.min(number % per_line * pixels, lines.length - pixels)
                start: T.let = T.Cast("int64", origin + line * lines.line + column * lines.pixel)
                add_up(total, image, operands[0], panel, neighbours(start))
                finish(operands, y, to, channel, total, line * lines.across + column)

    return compute
