"""What a gate leaves of a little module's error, by bound: computed from what the layer was observed to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedules.conv2d_gated import gate_panels
from schedules.conv2d_int8 import Affine
from schedules.cpu import Isa
from tvm_dual.closed_fit import NONLINEARITIES, gate_table
from tvm_dual.conv_littles import predicted
from tvm_dual.fitting import SiteFit
from tvm_dual.gates import EFFORTS
from tvm_dual.observations import Observations
from tvm_dual.sites import Site
from tvm_dual.tile_gates import open_channels

#: Observed vectors, or pixels, that are looked at.
SAMPLES = 2000


def after(site: Site, sums: np.ndarray) -> np.ndarray:
    """Return what a layer's nonlinearity makes of its sums."""
    return NONLINEARITIES[site.activation](sums)


def closed_loss(
    site: Site,
    fit: SiteFit,
    observed: Observations,
    isa: Isa,
    rule: str,
    limits: Sequence[float],
    source: Affine | None = None,
    gate: str = "rows",
) -> list[tuple[float, float]]:
    """Return density and loss of a gated layer without states at each of some bounds.

    Parameters
    ----------
    site : Site
        A dense layer or a convolution.
    fit : SiteFit
    observed : Observations
    isa : Isa
    rule : str
    limits : sequence of float
    source : Affine, optional
        Of the bytes that a convolution reads whose little module is of bytes.
    gate : str
        ``rows``, or ``singles`` of a convolution whose outputs have a gate each.

    Returns
    -------
    list of (float, float)
        Open tiles / all tiles, or outputs, or rows of a dense layer, and the mean over samples of the summed squares of
        what the consumers' sums are off by.
    """
    exact, rough, added = predicted(site, fit, observed, SAMPLES, source)
    exact, rough = exact + added, rough + added
    errors = ((after(site, exact) - after(site, rough)) * fit.weights) ** 2
    found = []
    for limit in limits:
        table = gate_table(site, rule, limit, fit, gate=gate)[EFFORTS.index(1.0)]
        if site.conv:
            panels = None if gate == "singles" else gate_panels(isa, site.conv)
            opened, density = open_channels(table, rough, panels)
        else:
            opened = (rough > table[0]) & (rough < table[1])
            density = float(opened.mean())
        found.append((density, float((errors * ~opened).sum(axis=1).mean())))
    return found
