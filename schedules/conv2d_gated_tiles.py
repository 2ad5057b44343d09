"""How a gated convolution of bytes or of bf16 is divided: its open pixels, and the spreading of the few channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from schedules.conv2d_amx import ROWS
from schedules.conv2d_byte_tile import LANES, ByteTile, band_rows, byte_cycles, byte_tiles, most_sums
from schedules.conv2d_gated import default_gated_tile
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.knobs import GatedDotTile
from schedules.panels import panel_size
from schedules.words import word_groups


@dataclass(frozen=True)
class GatedTiles:
    """How both parts of a gated convolution are divided; panels are those that the gate decides on.

    Attributes
    ----------
    open, spread : ByteTile
        Of the big module, whose pixels are listed, and of the product that spreads the few channels. The weights of
        each are packed for it.
    """

    open: ByteTile
    spread: ByteTile


def spread_conv(byte: ByteConv, few: int) -> ByteConv:
    """Return the product per pixel that spreads `few` channels over the outputs of a gated convolution."""
    conv = byte.conv
    size = (conv.batch, conv.out_height, conv.out_width, few, conv.outputs)
    one = Conv2d(*size, (1, 1), activation=conv.activation, residual=conv.residual)
    return ByteConv(one, byte.numbers, byte.result, byte.residual, byte.numbers)


def can_gate_bytes(isa: Isa, conv: Conv2d) -> bool:
    """Say whether the gate's tiles are whole vectors of outputs, as weights are packed; at AVX2 few layers' are not."""
    return panel_size(isa, conv.outputs, default_gated_tile(isa, conv).vectors) % LANES == 0


@lru_cache(maxsize=64)
def default_gated_tiles(isa: Isa, byte: ByteConv, few: int) -> GatedTiles:
    """Return tiles that suit most layers for open pixels, and those that take least time for `few` channels."""
    spread, vectors, sums = spread_conv(byte, few), panel_vectors(isa, byte.conv), most_sums(isa, byte.conv)
    # Two listed pixels of three: with a fifth open 14 layers took 0.93 of the time on Zen 3, 0.82 to 1.03.
    beside_words = isa.vector_bytes == 32 and word_groups(isa, byte.conv.runs[1]) > 1
    pixels, tiles = (ROWS, 2) if isa.amx else (max(1, (sums - beside_words) // vectors), 1)
    found = (tile for tile in byte_tiles(isa, spread) if tile.vectors == vectors)
    return GatedTiles(
        ByteTile(pixels, tiles, vectors, band_rows(isa, byte, "rows"), "rows", isa.amx),
        min(found, key=lambda tile: byte_cycles(isa, spread, tile)),
    )


def panel_vectors(isa: Isa, conv: Conv2d) -> int:
    """Return the vectors of 16 outputs of a tile of the gate."""
    return panel_size(isa, conv.outputs, default_gated_tile(isa, conv).vectors) // LANES


def gated_knobs(tiles: GatedTiles) -> GatedDotTile:
    """Return the knobs of tiles of registers."""
    return GatedDotTile(tiles.open.pixels, tiles.open.rows, tiles.spread.pixels)


def gated_tiles(isa: Isa, byte: ByteConv, few: int, knobs: GatedDotTile) -> GatedTiles:
    """Return the tiles of registers that knobs say."""
    default = default_gated_tiles(isa, byte, few)
    return GatedTiles(
        replace(default.open, pixels=knobs.pixels, rows=knobs.rows),
        replace(default.spread, pixels=knobs.spread_pixels),
    )
