"""Chains of convolutions of bytes or bf16: which there are, and the bands that `schedules.conv2d_chain` takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from schedules.conv2d_byte_tile import LANES, ByteTile, byte_cycles, byte_tiles
from schedules.conv2d_lines import SIZES, ByteConv
from schedules.cpu import Isa
from schedules.pool import MaxPool2d
from schedules.quantize import round_up

#: Share of the second level that all buffers may take: they and the weights have to stay there.
_SHARE = 0.5


@dataclass(frozen=True)
class ByteChain:
    """Convolutions of which each reads what the one before it writes, as the numbers that it multiplies.

    Attributes
    ----------
    convs : tuple of ByteConv
        Of one image, with strides and dilation of 1 and outputs as large as the input; nothing is added to any.
    pool : MaxPool2d or None
        What follows the last one; its windows do not overlap.
    room : int
        Bytes that all buffers may take.
    """

    convs: tuple[ByteConv, ...]
    pool: MaxPool2d | None
    room: int

    @property
    def first(self) -> ByteConv:
        """The one that reads the image."""
        return self.convs[0]

    @property
    def last(self) -> ByteConv:
        """The one whose result is pooled."""
        return self.convs[-1]

    @property
    def before(self) -> int:
        """Columns of padding at the left of each buffer."""
        return max(byte.conv.padding[1] for byte in self.convs)

    @property
    def pitch(self) -> int:
        """Columns of each buffer."""
        return self.first.conv.width + self.before + max(byte.conv.padding[3] for byte in self.convs)

    @property
    def every(self) -> int:
        """What rows of a band are a multiple of."""
        return self.pool.strides[0] if self.pool else 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """The row of each convolution's output at which the first band starts: zero or less."""
        below = np.cumsum([byte.conv.padding[2] for byte in self.convs[1:]], dtype=int)
        start = -(-int(below[-1]) % self.every)
        return (start, *(start - int(rows) for rows in below))

    @property
    def output_size(self) -> int:
        """Values of the result."""
        return self.pool.output_size if self.pool else self.last.conv.output_size

    @property
    def rows(self) -> int:
        """Output rows of a band."""
        conv = self.first.conv
        wide = [byte.conv.inputs * SIZES[byte.numbers] for byte in self.convs]
        kept = sum(self.pitch * pixel * (byte.conv.kernel[0] - 1) for pixel, byte in zip(wide, self.convs, strict=True))
        row = self.pitch * (sum(wide) + self.last.conv.outputs * SIZES[self.last.result])
        # What a band lacks that has none above it is made up for by the next.
        least = sum(byte.conv.kernel[0] - 1 for byte in self.convs)
        most = max(least, (self.room - kept) // row, self.every)
        every = conv.height - self.offsets[-1]
        return round_up(-(-every // -(-every // most)), self.every)

    @property
    def bands(self) -> int:
        """Bands of the image."""
        return -(-(self.first.conv.height - self.offsets[-1]) // self.rows)

    def tiles(self, isa: Isa) -> tuple[ByteTile, ...]:
        """Return the tile of each convolution."""
        found, length = [], (self.rows - 1) * self.pitch + self.first.conv.width
        for byte in self.convs:
            tiles = [tile for tile in byte_tiles(isa, byte) if tile.form == "whole"]
            best = min(tiles, key=lambda tile, byte=byte: byte_cycles(isa, byte, tile))
            pixels = min(best.pixels, length)
            found.append(replace(best, pixels=pixels, tiles=min(best.tiles, -(-length // pixels)), rows=self.rows))
        return tuple(found)


def chain_room(isa: Isa) -> int:
    """Return how many bytes all buffers of a chain may take."""
    return int(isa.second_level * _SHARE)


def can_chain(conv, batch: int = 1) -> bool:
    """Say whether a `Conv2d` can be part of a chain."""
    kept = (conv.out_height, conv.out_width) == (conv.height, conv.width)
    ones = {*conv.strides, *conv.dilation} == {1}
    return kept and ones and conv.batch == batch and not conv.residual and conv.outputs >= LANES


def can_pool(pool: MaxPool2d) -> bool:
    """Say whether a pooling can end a chain."""
    return pool.window == pool.strides
