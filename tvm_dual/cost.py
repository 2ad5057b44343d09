"""Bytes of weights that a site reads per call, and products that it computes."""

from __future__ import annotations

import numpy as np

from relay_passes.site_plan import COARSE, COPIES
from schedules.coarse import coarse_projection, coarse_spread
from schedules.cpu import Isa
from schedules.quantize import round_up
from tvm_dual.little import FittedLittle
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

#: Bytes of a row that a dot product of bytes reads.
BYTES_AT_ONCE = 4


def element_bytes(precision: str) -> int:
    """Return the size of one weight in bytes."""
    return {"fp32": 4, "bf16": 2, "int8": 1}[precision]


def weight_bytes(site: Site, precision: str) -> int:
    """Return the bytes of all weights of a site's big module."""
    return site.weight_count * element_bytes(precision)


def all_operations(site: Site) -> int:
    """Return the multiply-adds of a call of a site's big module; per vector, if a call may see any number."""
    return site.weight_count * (site.rows_per_call or 1)


def little_operations(site: Site, kind: str, size: int) -> float:
    """Return the multiply-adds of a call of a little module of `size` directions, for each vector or block."""
    rows = site.rows_per_call or 1
    if kind == COARSE:
        parts = coarse_projection(site.conv, size), coarse_spread(site.conv, size)
        return float(sum(conv.taps * conv.output_size for conv in parts))
    return float(rows * size * (site.n_inputs + len(site.weight)))


def operations(
    site: Site, forms: tuple[str, str], density: float, observed: Observations, little: FittedLittle | None
) -> float:
    """Return the multiply-adds of a call, per vector if a call may see any number; mean over the calibration data.

    Parameters
    ----------
    site : Site
    forms : tuple of str
        Of the input's and the state's matrix.
    density : float
        Open rows, tiles or outputs / all.
    observed : Observations
    little : FittedLittle or None
    """
    nonzero = [float((values != 0).mean()) for values in observed.inputs]
    matrices = (site.weight, site.recurrence) if site.recurrence is not None else (site.weight,)
    total = 0.0
    for matrix, form, share in zip(matrices, forms, nonzero, strict=False):
        opened = density * share if forms[1] == "nonzeros" else density
        total += matrix.size * {"dense": 1.0, "rows": opened, "singles": opened, "little": 0.0, "columns": share}[form]
    if little is not None:
        module = little.module
        if forms[1] == COARSE:
            return total * site.rows_per_call + little_operations(site, COARSE, len(module.center))
        # Of a convolution the second form is the projection's.
        share = nonzero[0] if site.conv and forms[1] in ("columns", "nonzeros") else 1.0
        total += share * sum(p.size for p in module.projections) + module.weight.size
    return total * (site.rows_per_call or 1)


def bytes_read(
    site: Site,
    forms: tuple[str, str],
    precision: str,
    density: float,
    observed: Observations,
    little: FittedLittle | None,
    isa: Isa,
) -> float:
    """Return the bytes of weights read per call, padding included, mean over the calibration data.

    Parameters
    ----------
    site : Site
    forms : tuple of str
        Of the input's and the state's matrix.
    precision : str
    density : float
        Open rows / all rows.
    observed : Observations
        What the site read; its nonzero values are what zero skipping reads columns for.
    little : FittedLittle or None
    isa : Isa
    """
    total = 0.0
    matrices = (site.weight, site.recurrence) if site.recurrence is not None else (site.weight,)
    for matrix, form, values in zip(matrices, forms, observed.inputs, strict=False):
        n, k = matrix.shape
        size = element_bytes(precision)
        whole = n * round_up(k * size, isa.row_bytes)
        if form == "columns":
            nonzero = float((values != 0).mean())
            total += nonzero * k * round_up(n * size, isa.row_bytes)
        else:
            total += whole * {"dense": 1.0, "rows": density, "singles": density, "little": 0.0}[form]
    copied = site.conv is not None and forms[1] in COPIES
    if little is not None and site.conv and (copied or precision in ("int8", "bf16")):
        # Both are convolutions of such numbers; tiles read whole rows, dot products four bytes at a time.
        unit = isa.row_bytes if isa.amx else BYTES_AT_ONCE
        size = element_bytes("int8" if copied else precision)
        matrices = (*little.module.projections, little.module.weight)
        total += sum(n * round_up(k * size, unit) for n, k in (matrix.shape for matrix in matrices))
    elif little is not None:
        module = little.module
        size = element_bytes("fp32" if module.bits == 32 else "int8")
        total += sum(p.shape[0] * round_up(p.shape[1] * size, isa.row_bytes) for p in module.projections)
        total += np.prod(module.weight.shape) * module.bits / 8
    return float(total)
