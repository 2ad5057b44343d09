"""Knobs: what a kernel's template leaves open, one frozen dataclass for each family.

The defaults are what a build uses where no tuning record applies; the values worth trying are in
`schedules.families`. Knobs change how a kernel runs, never what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass

#: `RowKnobs.ahead` and `ColumnKnobs.ahead`: fetch what the next iteration of the outer loop will read.
NEXT = -1


@dataclass(frozen=True)
class RowKnobs:
    """Of rows times a vector (`schedules.dense`, `schedules.row_pairs`).

    Attributes
    ----------
    side_by_side : int
        Rows in flight, a power of two. Out of cache 2, 4 and 8 were within 3 % of each other, inside 4 was best.
    ahead : int
        What is fetched meanwhile: `NEXT`, the rows of the next group; 0, nothing; more, so many bytes ahead, and the
        rows of a group, which must be neighbours, are computed one after another.
    unroll : int
        Cache lines, for floats vectors, of a row for each turn of the inner loop.
    """

    side_by_side: int = 4
    ahead: int = NEXT
    unroll: int = 1


@dataclass(frozen=True)
class ColumnKnobs:
    """Of columns of nonzero inputs (`schedules.columns`).

    Attributes
    ----------
    ahead : int
        `NEXT` fetches the columns of the next four inputs; 0 nothing.
    unroll : int
        Blocks of outputs for each turn of the inner loop.
    """

    ahead: int = 0
    unroll: int = 1


@dataclass(frozen=True)
class LittleKnobs:
    """Of little modules (`schedules.little`).

    Attributes
    ----------
    loads : int
        Loads per input and group of rows: with fewer accumulators the dot products would wait for each other.
    unroll : int
        Quads of inputs for each turn of the inner loop.
    """

    loads: int = 2
    unroll: int = 1


@dataclass(frozen=True)
class PanelKnobs:
    """Of products of many vectors with one matrix (`schedules.matmul`).

    Attributes
    ----------
    rows : int
        Vectors of x in a register tile.
    vectors : int
        Registers of outputs in a panel.
    ahead : int
        `NEXT` fetches the next panel while tiles of one are computed; 0 nothing.
    """

    rows: int
    vectors: int = 3
    ahead: int = NEXT


@dataclass(frozen=True)
class ConvTile:
    """Of convolutions of every pixel or of open ones (`schedules.conv2d`, `schedules.conv2d_gated`).

    Attributes
    ----------
    pixels, vectors : int
        Of a register tile.
    rows : int
        Output rows of a band.
    """

    pixels: int
    vectors: int
    rows: int


@dataclass(frozen=True)
class DotTile:
    """Of convolutions of bytes in registers (`schedules.conv2d_dot4`).

    Attributes
    ----------
    pixels, vectors : int
        Of a register tile; a vector is 16 outputs.
    rows : int
        Output rows of a band.
    form : int
        How pixels are read, in the order of `schedules.conv2d_lines.FORMS`.
    """

    pixels: int
    vectors: int
    rows: int
    form: int


@dataclass(frozen=True)
class GatedDotTile:
    """Of gated convolutions of bytes in registers (`schedules.conv2d_gated_bytes`).

    Attributes
    ----------
    pixels : int
        Of a register tile, which are listed.
    rows : int
        Output rows of a band, over which lists go.
    spread_pixels : int
        Of a register tile that spreads the few channels.
    """

    pixels: int
    rows: int
    spread_pixels: int


@dataclass(frozen=True)
class SkipTile:
    """Of convolutions that skip zeros (`schedules.conv2d_skip`).

    Attributes
    ----------
    outputs, vectors : int
        Of the sums in registers: neighbouring pixels of the output, at most, and vectors of channels.
    """

    outputs: int
    vectors: int


@dataclass(frozen=True)
class SingleTile:
    """Of convolutions of open outputs (`schedules.conv2d_single`).

    Attributes
    ----------
    together : int
        Pixels that share a channel's weights, a power of two.
    pixels : int
        Of a run, in which those are looked for.
    rows : int
        Output rows of a band.
    vectors : int
        Of an output's taps that are taken at once: all of them, or of one row of the kernel at most.
    """

    together: int
    pixels: int
    rows: int
    vectors: int


#: The defaults.
ROWS, COLUMNS, LITTLE = RowKnobs(), ColumnKnobs(), LittleKnobs()

Knobs = RowKnobs | ColumnKnobs | LittleKnobs | PanelKnobs | ConvTile | DotTile | GatedDotTile | SkipTile | SingleTile
