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
from schedules.intrinsics import prefetch
from schedules.knobs import PanelKnobs

#: Vectors of a panel: 3, with the rows of `tile_rows`, is what leaves the fewest loads per product.
_PANEL_VECTORS = 3
#: Bytes of a cache line.
_LINE = 64


def tile_rows(isa: Isa) -> int:
    """Rows of a register tile: 24 of 32 registers hold sums at AVX-512, 12 of 16 at AVX2."""
    return 8 if isa.vector_bytes == 64 else 4


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

    @T.inline
    def store(y, row, column, values):
        if n >= lanes:
            y[row, T.ramp(column, 1, lanes)] = values
        else:
            few = T.alloc_buffer((lanes,), "float32", scope="local")
            few[T.ramp(0, 1, lanes)] = values
            for i in T.serial(n):
                y[row, i] = few[i]

    return store


def fetch_next(weight, panel, tile, step, steps: int, row: int):
    """Ask for one line of the panel behind `panel`; a statement for each of the `steps` of a tile's loop.

    Parameters
    ----------
    weight : Buffer, (panels, rows of a panel, `row` elements)
    panel, tile, step : PrimExpr
        Where the computation is: tiles of one panel count from 0.
    steps : int
    row : int
    """
    rows, per_line = int(weight.shape[1]), _LINE // tvm.DataType(str(weight.dtype)).itemsize
    # From the last line on the same one again, which costs nothing.
    at = T.min(tile * steps + step, rows * row // per_line - 1) * per_line
    return prefetch(weight[panel + 1, 0, at])


def default_panels(isa: Isa) -> PanelKnobs:
    """Return the knobs of an untuned product."""
    return PanelKnobs(rows=tile_rows(isa), vectors=_PANEL_VECTORS)


def over_panels(isa: Isa, n: int, tile, knobs: PanelKnobs):
    """Return the macro ``(source, y, m, first, last)`` that computes the panels from `first` to `last`.

    ``tile(height)`` is the macro ``(source, y, panel, column, number, top)`` for `height` rows of a panel from the
    row `top` on; `number` counts the tiles of a panel, `source` are its operands.
    """
    size, rows = panel_size(isa, n, knobs.vectors), knobs.rows
    whole, single = tile(rows), tile(1)

    @T.inline
    def all_panels(source, y, m, first, last):
        for panel in T.serial(first, last):
            column: T.let = T.min(panel * size, max(0, n - size))
            if m >= rows:
                for i in T.serial((m + (rows - 1)) // rows):
                    whole(source, y, panel, column, i, T.min(i * rows, m - rows))
            else:
                for i in T.serial(m):
                    single(source, y, panel, column, i, i)

    return all_panels
