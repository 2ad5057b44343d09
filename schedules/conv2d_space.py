"""Tiles of convolutions that are worth trying: sums that find room in registers, and bands around the default."""

from __future__ import annotations

from schedules.conv2d import default_tile
from schedules.conv2d_byte_tile import LANES, ByteTile, default_byte_tile, dot_tile, most_sums
from schedules.conv2d_gated import default_gated_tile
from schedules.conv2d_gated_tiles import default_gated_tiles, gated_tiles, spread_conv
from schedules.conv2d_lines import FORMS, ByteConv, image_lines
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_single import default_single_tile, taken_at_once
from schedules.conv2d_skip import default_skip_tile
from schedules.conv2d_walk import across, outputs_at_once
from schedules.cpu import Isa
from schedules.knobs import ConvTile, DotTile, GatedDotTile, SingleTile, SkipTile
from schedules.panels import panel_size

#: Sums that hide an addition's latency of four cycles at two a cycle.
_FEWEST_SUMS = 8


def tile_space(isa: Isa, conv: Conv2d) -> dict[str, tuple[int, ...]]:
    """Return the values of a `ConvTile` that computes every pixel."""
    default = default_tile(isa, conv)
    return {"pixels": _pixels(isa, default), "vectors": _up_to(isa, conv, (1, 2, 3, 4)), "rows": _rows(conv, default)}


def tile_fits(isa: Isa, _conv: Conv2d, tile: ConvTile) -> bool:
    """Say whether a tile uses most registers and no more than there are."""
    return tile.pixels * tile.vectors >= isa.registers // 2 and _fits(isa, tile)


def gated_space(isa: Isa, conv: Conv2d) -> dict[str, tuple[int, ...]]:
    """Return the values of a `ConvTile` that computes open pixels; the gate decides on panels, so vectors are none."""
    default = default_gated_tile(isa, conv)
    return {"pixels": _pixels(isa, default), "vectors": (default.vectors,), "rows": _rows(conv, default)}


def gated_fits(isa: Isa, _conv: Conv2d, tile: ConvTile) -> bool:
    """Say whether a tile has sums enough, and registers: lists are filled up to whole tiles, so small ones may win."""
    return tile.pixels * tile.vectors >= _FEWEST_SUMS and _fits(isa, tile)


def skip_space(isa: Isa, conv: Conv2d) -> dict[str, tuple[int, ...]]:
    """Return the values of a `SkipTile`."""
    default, every = default_skip_tile(isa, conv), outputs_at_once(across(conv))
    outputs = sorted({default.outputs, *(-(-every // walks) for walks in (1, 2, 3) if -(-every // walks) <= 8)})
    return {"outputs": tuple(outputs), "vectors": _up_to(isa, conv, (1, 2, 4, 6, 8), default.vectors)}


def skip_fits(isa: Isa, _conv: Conv2d, tile: SkipTile) -> bool:
    """Say whether a tile has half the sums that hide latency at least, and registers for them."""
    sums = tile.outputs * tile.vectors
    return _FEWEST_SUMS // 2 <= sums <= isa.registers - 4


def dot_space(isa: Isa, byte: ByteConv) -> dict[str, tuple[int, ...]]:
    """Return the values of a `DotTile`."""
    default, most = dot_tile(default_byte_tile(isa, byte)), max(1, byte.conv.outputs // LANES)
    pixels, vectors = ((4, 6, 8, 12), (1, 2, 3, 4)) if isa.vector_bytes == 64 else ((1, 2, 3, 4, 5, 6), (1, 2, 4))
    return {
        "pixels": tuple(sorted({default.pixels, *pixels})),
        "vectors": tuple(n for n in vectors if n <= most),
        "rows": _rows(byte.conv, default),
        "form": tuple(n for n, form in enumerate(FORMS) if form != "whole" or byte.conv.strides == (1, 1)),
    }


def dot_fits(isa: Isa, byte: ByteConv, tile: DotTile) -> bool:
    """Say whether a tile has half the sums that registers hold at least, no more than these, and pixels for it."""
    most, sums = most_sums(isa, byte.conv), tile.pixels * tile.vectors
    return most // 2 <= sums <= most and tile.pixels <= image_lines(byte, tile.rows, FORMS[tile.form]).length


def gated_dot_space(isa: Isa, byte: ByteConv, few: int) -> dict[str, tuple[int, ...]]:
    """Return the values of a `GatedDotTile`; vectors are those of the gate's panels."""
    tiles = default_gated_tiles(isa, byte, few)
    pixels, spread = ((2, 4, 6, 8, 12), (4, 6, 8, 12)) if isa.vector_bytes == 64 else ((1, 2, 3, 4, 6), (1, 2, 3, 4))
    return {
        "pixels": tuple(sorted({tiles.open.pixels, *pixels})),
        "rows": _rows(byte.conv, tiles.open),
        "spread_pixels": tuple(sorted({tiles.spread.pixels, *spread})),
    }


def gated_dot_fits(isa: Isa, byte: ByteConv, few: int, tile: GatedDotTile) -> bool:
    """Say whether tiles have no more sums than registers hold; lists are filled up to whole ones, so small may win."""
    tiles, spread = gated_tiles(isa, byte, few, tile), spread_conv(byte, few)
    length = image_lines(spread, tiles.spread.rows, tiles.spread.form).length
    return (
        tile.pixels * tiles.open.vectors <= most_sums(isa, byte.conv)
        and tile.spread_pixels * tiles.spread.vectors <= most_sums(isa, spread.conv)
        and tile.spread_pixels <= length
    )


def single_space(isa: Isa, conv: Conv2d) -> dict[str, tuple[int, ...]]:
    """Return the values of a `SingleTile`."""
    default = default_single_tile(isa, conv)
    others = (default.vectors // 2, 2 * default.vectors)
    # Of few taps all are taken at once, whatever the most.
    apart = {taken_at_once(isa, conv, vectors): vectors for vectors in (*others, default.vectors)}
    return {
        "together": (2, 4, 8),
        "pixels": (32, 64, 128),
        "rows": _rows(conv, default),
        "vectors": tuple(sorted(apart.values())),
    }


def single_fits(_isa: Isa, conv: Conv2d, tile: SingleTile) -> bool:
    """Say whether a run of pixels is less than two bands long: of longer ones a band is one run all the same."""
    return tile.pixels // 2 < tile.rows * conv.out_width


def _fits(isa: Isa, tile: ConvTile) -> bool:
    """Say whether sums, a vector of weights each, and a value of the input find room in registers."""
    return tile.pixels * tile.vectors + tile.vectors + 1 <= isa.registers


def _pixels(isa: Isa, default: ConvTile) -> tuple[int, ...]:
    few = (4, 6, 7, 8, 12, 14, 24) if isa.vector_bytes == 64 else (2, 3, 4, 6, 12)
    return tuple(sorted({default.pixels, *few}))


def _up_to(isa: Isa, conv: Conv2d, vectors: tuple[int, ...], *others: int) -> tuple[int, ...]:
    """Return the numbers of vectors that a panel of this convolution can have."""
    return tuple(sorted({panel_size(isa, conv.outputs, n) // isa.lanes for n in (*vectors, *others)}))


def _rows(conv: Conv2d, default: ConvTile | DotTile | SingleTile | ByteTile) -> tuple[int, ...]:
    """Return the heights of half as many bands as by default, of as many, twice and four times as many."""
    bands = -(-conv.out_height // default.rows)
    heights = (-(-conv.out_height // count) for count in (max(1, bands // 2), 2 * bands, 4 * bands))
    return tuple(sorted({default.rows, *heights}))
