"""What each form of a layer costs: time (`tvm_dual.site_times`) or multiply-adds (`tvm_dual.site_operations`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SingleCosts:
    """Costs of a convolution whose outputs have a gate each, by the share of them that is open.

    A few open outputs cost more each than many, which share what is read for them: so costs are taken to rise along
    two lines, by way of a density that real gates have.

    Attributes
    ----------
    density : float
        Of `some`.
    closed, some, opened : float
        With every output closed, with that share of them open, and with all.
    """

    density: float
    closed: float
    some: float
    opened: float

    def at(self, density: float) -> float:
        """Return the cost at a share of open outputs."""
        return float(np.interp(density, (0.0, self.density, 1.0), (self.closed, self.some, self.opened)))


@dataclass(frozen=True)
class SiteCosts:
    """Costs of one layer, all of one unit.

    Attributes
    ----------
    form : tuple of str
        The cheapest exact form.
    exact : float
        In that form.
    gated : tuple of str
        The form with a gate, on bytes the little module alone where no gate pays; as `form` if there is none.
    closed, opened, alone : dict of float
        Gated, with no tile or row open, and with all of them, and the little module alone, by its directions. Without a
        gate the last is all there is.
    singles : dict of SingleCosts
        Of a convolution that is gated output by output, by directions of the little module.
    others : tuple of SiteCosts
        The same of further kinds of little modules; copies have no directions, and stand under 0.
    every : dict of (tuple of str, float)
        Costs of all exact forms that were measured.
    """

    form: tuple[str, str]
    exact: float
    gated: tuple[str, str]
    closed: dict[int, float]
    opened: dict[int, float]
    alone: dict[int, float]
    singles: dict[int, SingleCosts] = field(default_factory=dict)
    others: tuple[SiteCosts, ...] = ()
    every: dict[tuple[str, str], float] = field(default_factory=dict)

    def kept(self, form: tuple[str, str]) -> SiteCosts:
        """Return what the layer costs if it takes one of the exact forms, and no other."""
        return SiteCosts(form, self.every[form], form, {}, {}, {}, every=self.every)
