"""Bounds of convolutions whose outputs have a gate each."""

from __future__ import annotations

import numpy as np

from schedules.cpu import Isa
from tvm_dual.closed_loss import closed_loss
from tvm_dual.fitting import SiteFit
from tvm_dual.gates import OPEN
from tvm_dual.observations import Observations
from tvm_dual.search import LADDER
from tvm_dual.sites import Site

#: Bounds that are looked at, per rule, from closed to open: closer together than those of tiles, since by itself a
#: channel opens at one bound for nearly all positive sums.
BOUNDS = {**LADDER, "damage": tuple(1.6 / 2 ** (i / 4) for i in range(44))}
#: Share of open outputs at which such a gate is most likely to pay.
LIKELY = 0.1


def likely_bound(site: Site, fit: SiteFit, observed: Observations, isa: Isa) -> tuple[float, float]:
    """Return the bound of the damage rule that opens nearest to `LIKELY` of the outputs, and the share that it opens.

    Where no bound opens a few, that is the one that opens all.
    """
    limits = BOUNDS["damage"]
    found = closed_loss(site, fit, observed, isa, "damage", limits, gate="singles")
    by_limit = [(limit, density) for limit, (density, _) in zip(limits, found, strict=True) if 0 < density < 1]
    return min(by_limit, key=lambda at: abs(np.log(at[1] / LIKELY)), default=(OPEN, 1.0))
