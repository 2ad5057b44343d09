"""Families of kernels that are tuned: for each its template, its default knobs, and the values worth trying."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from schedules import columns, dense, little, matmul, panels, row_pairs
from schedules.conv_families import CONVOLUTIONS
from schedules.cpu import ISAS, Isa
from schedules.family import Family
from schedules.knobs import LITTLE, NEXT, ROWS, ColumnKnobs, Knobs, LittleKnobs, PanelKnobs, RowKnobs
from schedules.registry import kernel


@dataclass(frozen=True)
class Workload:
    """One kernel to tune, as far as its template's parameters say.

    Attributes
    ----------
    family : str
        A key of `FAMILIES`.
    shape : tuple of int
        What the family's `Family.axes` name.
    isa : str
        A key of `schedules.cpu.ISAS`.
    threads : int
    """

    family: str
    shape: tuple[int, ...]
    isa: str
    threads: int = 1

    @property
    def level(self) -> Isa:
        """Instruction set level to generate for."""
        return ISAS[self.isa]

    @property
    def extents(self) -> dict[str, int]:
        """Extents by the names of the axes."""
        return dict(zip(FAMILIES[self.family].axes, self.shape, strict=True))

    def __str__(self) -> str:
        """Return a short name for people: ``rows_int8 1800x600``."""
        label = FAMILIES[self.family].label(self.shape)
        return f"{self.family} {label}" + (f", {self.threads} threads" * (self.threads > 1))


def default_knobs(workload: Workload) -> Knobs:
    """Return the knobs of a build without records."""
    return FAMILIES[workload.family].default(workload)


def search_space(workload: Workload) -> list[Knobs]:
    """Return every combination worth trying, the default among them."""
    family, default = FAMILIES[workload.family], default_knobs(workload)
    values = family.space(workload)
    points = (family.knobs(**dict(zip(values, point, strict=True))) for point in itertools.product(*values.values()))
    return [knobs for knobs in points if knobs == default or family.fits(workload, knobs)]


def template(workload: Workload, knobs: Knobs) -> tirx.PrimFunc:
    """Return a workload's kernel with the given knobs."""
    return FAMILIES[workload.family].build(workload, knobs)


#: Bytes that rows read from end to end are fetched ahead.
_AHEAD = (1024, 2048, 4096, 8192, 16384)


def _row_space(ahead: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"side_by_side": (1, 2, 4, 8), "ahead": ahead, "unroll": (1, 2)}


def _rows(builder: Callable, default: Callable[[Workload], RowKnobs], every_ahead: tuple[int, ...] = ()) -> Family:
    """Rows of one matrix; `every` is 1 where all of them are open, in order, which allows `every_ahead` as well."""

    def space(workload: Workload) -> dict[str, tuple[int, ...]]:
        return _row_space((0, NEXT, *(every_ahead if workload.extents["every"] else ())))

    def build(workload: Workload, knobs: RowKnobs) -> tirx.PrimFunc:
        n, k, _ = workload.shape
        return kernel(builder, workload.level, n, k, workload.threads, knobs)

    return Family(("n", "k", "every"), RowKnobs, default, space, build, exact=("every",))


def _columns(builder: Callable, itemsize: int) -> Family:
    def default(workload: Workload) -> ColumnKnobs:
        return columns.default_columns(workload.level, workload.shape[0], itemsize)

    return _plain(builder, ("n", "k"), ColumnKnobs, default, lambda _: {"ahead": (0, NEXT), "unroll": (1, 2, 4, 8)})


def _matmul(builder: Callable) -> Family:
    def space(workload: Workload) -> dict[str, tuple[int, ...]]:
        # Sums, and what a product needs beside them, must find room in 16 registers, or 32.
        rows = (2, 3, 4, 6) if workload.level.vector_bytes == 32 else (4, 6, 8, 10)
        return {"rows": rows, "vectors": (1, 2, 3, 4), "ahead": (0, NEXT)}

    return _plain(builder, ("n", "k"), PanelKnobs, lambda w: panels.default_panels(w.level), space)


def _plain(
    builder: Callable, axes: tuple[str, ...], knobs: type[Knobs], default: Callable, space: Callable, **more
) -> Family:
    """Return a family whose builder takes the extents as they are."""

    def build(workload: Workload, chosen: Knobs) -> tirx.PrimFunc:
        return kernel(builder, workload.level, *workload.shape, workload.threads, chosen)

    return Family(axes, knobs, default, space, build, **more)


FAMILIES = {
    "rows_int8": _rows(dense.gated_rows_int8, lambda w: dense.default_rows_int8(*w.shape), _AHEAD),
    "rows_fp32": _rows(dense.gated_rows_fp32, lambda w: dense.default_rows_fp32(*w.shape)),
    "row_pairs_int8": _plain(
        row_pairs.row_pairs_int8, ("n", "k", "h"), RowKnobs, lambda _: ROWS, lambda _: _row_space((0, NEXT))
    ),
    "columns_int8": _columns(columns.columns_int8, 1),
    "columns_fp32": _columns(columns.columns_fp32, 4),
    "little": _plain(
        little.little_rows,
        ("n", "k", "bits"),
        LittleKnobs,
        lambda _: LITTLE,
        lambda _: {"loads": (1, 2, 3, 4), "unroll": (1, 2, 4)},
        exact=("bits",),
    ),
    "matmul_int8": _matmul(matmul.matmul_int8),
    "matmul_fp32": _matmul(matmul.matmul_fp32),
    **CONVOLUTIONS,
}
