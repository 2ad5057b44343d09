"""Panels: how a product of many vectors with one matrix is cut into tiles that live in registers.

The weights are packed in panels of a few vectors' width, which stay in L2 while all rows of ``x``
pass; a tile of rows times panel lives in registers. What is left over at the edges is covered by a
last tile that overlaps the one before it.

Only the first tile of a panel would wait for memory, so while tiles of one panel are computed, the next
panel is fetched: measured on 35 rows of 1500 floats and 6000 outputs, 7.2 ms instead of 12.4.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import prefetch
from schedules.knobs import PanelKnobs

#: Vectors of a panel. With the rows of `tile_rows`, 35 rows of 1500 floats times 4500 outputs take 3.54 ms; with 4
#: vectors 3.74, with 8 rows, whose last tile computes some twice, 3.94.
_PANEL_VECTORS = 3
#: Bytes of a cache line.
_LINE = 64
#: Lines of the next panel that are asked for at once.
_LINES_AT_ONCE = 2


def tile_rows(isa: Isa) -> int:
    """Rows of a register tile: 18 of 32 registers hold sums at AVX-512, 12 of 16 at AVX2."""
    return 6 if isa.vector_bytes == 64 else 4


def panel_size(isa: Isa, n: int, vectors: int = _PANEL_VECTORS) -> int:
    """Return the outputs of a panel: `vectors`, at most `n` outputs unless that is less than one vector."""
    return isa.lanes * max(1, min(vectors, n // isa.lanes))


def split_panels(isa: Isa, weight: np.ndarray, vectors: int = _PANEL_VECTORS) -> list[np.ndarray]:
    """Return the rows of `weight` of each panel; the last panel overlaps the one before it."""
    size = panel_size(isa, len(weight), vectors)
    missing = max(0, size - len(weight))
    weight = np.concatenate([weight, np.zeros((missing, *weight.shape[1:]), weight.dtype)])
    last = len(weight) - size
    return [weight[min(i, last) :][:size] for i in range(0, len(weight), size)]


def store_vector(isa: Isa, n: int):
    """Return the macro ``(y, row, column, values)`` that writes a vector, or `n` values if that is less."""
    lanes = isa.lanes

    @inline
    def store(y, row, column, values):
        if n >= lanes:
            y[row, T.ramp(column, 1, lanes)] = values
        else:
            few = T.alloc_buffer((lanes,), "float32", scope="local")
            few[T.ramp(0, 1, lanes)] = values
            for i in T.serial(n):
                y[row, i] = few[i]

    return store


def fetch_next(rows: int, row: int, dtype: str, steps: int):
    """Return the macro ``(weight, panel, tile, step)`` that asks for lines of the panel behind `panel`.

    A statement for each of the `steps` of a tile's loop; the tiles of one panel count from 0. Two lines at once: with
    one, six tiles of 6 rows have fetched no more than half of the next panel, measured as 3.9 ms instead of 3.6 for 35
    rows of 1500 floats and 4500 outputs. More of them wait for each other.

    Parameters
    ----------
    rows, row : int
        Of a panel: its rows and their elements.
    dtype : str
    steps : int
    """
    per_line = _LINE // tvm.DataType(dtype).itemsize
    lines = rows * row // per_line

    @inline
    def fetch(weight, panel, tile, step):
        at: T.let = (tile * steps + step) * _LINES_AT_ONCE
        if at < lines:
            for i in T.unroll(_LINES_AT_ONCE):
                prefetch(weight[panel + 1, 0, (at + i) * per_line], 2)

    return fetch


def default_panels(isa: Isa) -> PanelKnobs:
    """Return the knobs of an untuned product."""
    return PanelKnobs(rows=tile_rows(isa), vectors=_PANEL_VECTORS)


def over_panels(isa: Isa, n: int, tile, knobs: PanelKnobs):
    """Return the macro ``(source, y, m, first, last)`` that computes the panels from `first` to `last`.

    ``tile(height)`` is the macro ``(source, y, panel, column, number, top)`` for `height` rows of a panel from the
    row `top` on; `number` counts the tiles of a panel, `source` are its operands.
    """
    size, rows = panel_size(isa, n, knobs.vectors), knobs.rows
    whole, last_rows = tile(rows), _last_rows(tile, rows - 1)

    @inline
    def all_panels(source, y, m, first, last):
        for panel in T.serial(first, last):
            column: T.let = T.min(panel * size, max(0, n - size))
            for i in T.serial(m // rows):
                whole(source, y, panel, column, i, i * rows)
            last_rows(source, y, panel, column, m // rows, m // rows * rows, m % rows)

    return all_panels


def _last_rows(tile, most: int):
    """Return the macro ``(source, y, panel, column, number, top, left)`` for `left` rows from `top` on."""
    if most == 0:

        @inline
        def none(source, y, panel, column, number, top, left):
            pass

        return none
    all_of_them, fewer = tile(most), _last_rows(tile, most - 1)

    @inline
    def last_rows(source, y, panel, column, number, top, left):
        if left == most:
            all_of_them(source, y, panel, column, number, top)
        fewer(source, y, panel, column, number, top, left)

    return last_rows
