"""How a convolution of bytes or of bf16 is divided into bands, blocks and tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from schedules.bf16_vectors import BF16
from schedules.conv2d_bytes import ByteBands
from schedules.conv2d_lines import FORMS, SIZES, STEP, ByteConv, image_lines
from schedules.conv2d_panels import panel_count
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.knobs import DotTile
from schedules.words import word_groups

#: Outputs of a vector.
LANES = 16
#: Share of the second level that a band may read and write: with panels of weights it has to stay there, since each
#: panel of outputs reads all of it again, and writes a part of each cache line.
_BAND_SHARE = 5 / 16
#: Tiles of pixels and vectors of outputs that eight tile registers hold, sums included.
_AMX_BLOCKS = ((2, 2), (3, 1), (1, 2), (2, 1), (1, 1))
#: By the bytes of a register: vectors of sums, of 32 registers 24, of 16 at AVX2 twelve, two for each.
_SUMS = {64: 24, 32: 6}
#: The same of outputs of a register tile, without and with words. At AVX2 tiles of two and three vectors take 1.3 to
#: 1.9 times as long as of one or four without words, and with them those of four longer than of one or two.
_VECTORS = {64: ((1, 2, 3, 4), (1, 2, 3, 4)), 32: ((1, 4), (1, 2, 4))}
#: Bytes of weights of a panel that the first level holds, and what share of a register comes from the second a cycle.
_FIRST_LEVEL, _FAR = 32 << 10, 0.92
#: Cycles of a cache line of weights, which come from the second level, and of pixels, which come from the first.
_WEIGHT_LINE, _PIXEL_LINE = 1.5, 0.5
#: Cycles of a product of tiles of no pixels: each three of these take another one.
_PRODUCT = 10.5
#: Cycles of a block beside its products, of a pixel whose place in the output is looked for, and of a line that is
#: copied once more.
_BLOCK, _LOOK, _COPY = 100, 2, 4
#: Cycles of four products in each lane of a register without VNNI, and where words are added up first: two
#: multiplications and an addition, of which two a cycle are done of 64 bytes, and of 32 bytes two multiplications
#: beside an addition; with words one multiplication less in two.
_PAIRS = {64: (1.5, 1.25), 32: (1.0, 0.8)}
#: Cycles that the broadcast of a pixel's taps adds to these.
_BROADCAST = 0.1
#: How much longer products take where words have fewer registers than sums.
_CROWDED = 1.1
#: Cycles of what follows a vector of sums, by the type of the result.
_FINISH = {"uint8": 4, BF16: 2.5, "float32": 4}


@dataclass(frozen=True)
class ByteTile:
    """How a convolution of bytes or of bf16 is divided.

    Attributes
    ----------
    pixels : int
        Of a tile, at most 16; without AMX of a register tile.
    tiles, vectors : int
        Tiles of pixels, and vectors of outputs, that are computed together; without AMX one tile.
    rows : int
        Output rows of a band.
    form : str
        How pixels are read: `schedules.conv2d_lines.image_lines`.
    matrix : bool
        Whether tiles are those of AMX, where it exists; of few taps sums take less time than what a tile costs.
    """

    pixels: int
    tiles: int
    vectors: int
    rows: int
    form: str
    matrix: bool = True


def dot_tile(tile: ByteTile) -> DotTile:
    """Return the knobs of a tile of registers."""
    return DotTile(tile.pixels, tile.vectors, tile.rows, FORMS.index(tile.form))


def byte_tile(knobs: DotTile) -> ByteTile:
    """Return the tile of registers that knobs say."""
    return ByteTile(knobs.pixels, 1, knobs.vectors, knobs.rows, FORMS[knobs.form], False)


def default_byte_tile(isa: Isa, byte: ByteConv) -> ByteTile:
    """Return the tile that takes least time by what products, loads and copies cost."""
    return min(byte_tiles(isa, byte), key=lambda tile: byte_cycles(isa, byte, tile))


def byte_tiles(isa: Isa, byte: ByteConv) -> list[ByteTile]:
    """Return the tiles that are worth a thought; of bf16 there are none without AMX."""
    matrix = [True] * isa.amx + [False] * (byte.numbers != BF16)
    return [tile for each in matrix for tile in _choices(isa, byte, each)]


def byte_cycles(isa: Isa, byte: ByteConv, tile: ByteTile) -> float:
    """Return how many cycles a convolution is expected to take."""
    return _amx_cycles(byte, tile) if isa.amx and tile.matrix else _dot4_cycles(isa, byte, tile)


def most_sums(isa: Isa, conv: Conv2d) -> int:
    """Return how many vectors of sums a register tile may have: words take as many registers again."""
    return _SUMS[isa.vector_bytes] // (2 if _adds_words(isa, conv) else 1)


def band_rows(isa: Isa, byte: ByteConv, form: str) -> int:
    """Return output rows of a band, so that all bands have as many but for the last, which has hardly fewer."""
    conv, size = byte.conv, SIZES[byte.numbers]
    row = conv.padded_width * conv.inputs * size
    read, written = conv.strides[0] * row, conv.out_width * conv.outputs * SIZES[byte.result]
    if form == "spread":
        read += image_lines(byte, 1, form).pixel * conv.out_width * size
    room = int(isa.second_level * _BAND_SHARE)
    most = (room - (conv.reach[0] - conv.strides[0]) * row) // (read + written)
    return -(-conv.out_height // -(-conv.out_height // max(1, min(most, conv.out_height))))


def _choices(isa: Isa, byte: ByteConv, matrix: bool) -> Iterator[ByteTile]:
    conv = byte.conv
    forms = ["rows", "spread"] + ["whole"] * (conv.strides == (1, 1))
    # A panel that is not full overlaps the one before it.
    most = max(1, conv.outputs // LANES)
    words = _adds_words(isa, conv)
    blocks = _AMX_BLOCKS if matrix else [(1, vectors) for vectors in _VECTORS[isa.vector_bytes][words]]
    for form in forms:
        rows = band_rows(isa, byte, form)
        lines = image_lines(byte, rows, form)
        for tiles, vectors in blocks:
            tallest = 16 if matrix else max(1, most_sums(isa, conv) // vectors)
            # With words tiles are so low that fewer pixels may leave fewer over at the end of a line.
            heights = range(-(-tallest // (2 if words and not matrix else 1)), tallest + 1)
            for pixels in sorted({-(-lines.length // -(-lines.length // high)) for high in heights}):
                if vectors <= most and tiles <= lines.count * -(-lines.length // pixels):
                    yield ByteTile(pixels, tiles, vectors, rows, form, matrix)


def _amx_cycles(byte: ByteConv, tile: ByteTile) -> float:
    lines = image_lines(byte, tile.rows, tile.form)
    sums, rows = tile.tiles * tile.vectors, tile.tiles * tile.pixels
    products = sums * (_PRODUCT + tile.pixels / 3)
    step = max(products, 16 * tile.vectors * _WEIGHT_LINE + rows * _PIXEL_LINE)
    blocks = -(-lines.count * -(-lines.length // tile.pixels) // tile.tiles)
    # What follows the sums takes units that products leave alone.
    finish = sums * tile.pixels * _FINISH[byte.result] - 0.75 * lines.steps * step
    look = _LOOK * rows if lines.across != byte.conv.out_width else 0
    block = lines.steps * step + max(_BLOCK, finish) + look
    panels = panel_count(byte.conv.outputs, tile.vectors * LANES)
    return ByteBands(byte, tile.rows, tile.form).count * (panels * blocks * block + _copied(byte, tile))


def _dot4_cycles(isa: Isa, byte: ByteConv, tile: ByteTile) -> float:
    """With VNNI two products a cycle, hardly as many loads, and a product is done after five; else see `_PAIRS`."""
    lines, registers = image_lines(byte, tile.rows, tile.form), LANES // isa.lanes * tile.vectors
    pairs = (_PAIRS[isa.vector_bytes][_adds_words(isa, byte.conv)], _BROADCAST, 1)
    product, broadcast, latency = (0.5, 0, 5) if isa.vnni else pairs
    near = lines.steps * tile.vectors * LANES * STEP <= _FIRST_LEVEL
    far = 0 if near else tile.vectors * STEP / (_FAR * isa.vector_bytes)
    crowded = _CROWDED if tile.pixels * tile.vectors > most_sums(isa, byte.conv) else 1
    products = crowded * tile.pixels * (registers * product + broadcast)
    group = max(products, (tile.pixels + registers) / 1.6, far, latency)
    groups = sum(-(-length // 4) for _, length in lines.runs)
    panels = panel_count(byte.conv.outputs, tile.vectors * LANES)
    blocks = lines.count * -(-lines.length // tile.pixels)
    look = _LOOK * tile.pixels if lines.across != byte.conv.out_width else 0
    block = groups * group + tile.pixels * tile.vectors * 3 + look
    return ByteBands(byte, tile.rows, tile.form).count * (panels * blocks * block + _copied(byte, tile))


def _adds_words(isa: Isa, conv: Conv2d) -> bool:
    return word_groups(isa, conv.runs[1]) > 1


def _copied(byte: ByteConv, tile: ByteTile) -> float:
    bands, wide = ByteBands(byte, tile.rows, tile.form), SIZES[byte.numbers]
    size = (bands.copy_size if bands.copied else 0) * wide / 64
    if tile.form == "spread":
        times, run = byte.conv.runs
        # Each run is a copy of its own, of at least one line.
        size += tile.rows * byte.conv.out_width * byte.conv.kernel[0] * times * (1 + run * wide / 64)
    return size * _COPY
