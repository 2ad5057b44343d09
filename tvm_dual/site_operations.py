"""What each form of a layer costs in multiply-adds: counted on what it was observed to read, nothing is timed.

Papers compare networks by such counts; a machine may take longer for fewer of them. So every form skips zeros here,
whether or not that is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from relay_passes.site_plan import COARSE
from tvm_dual.cost import operations
from tvm_dual.forms import exact_form, gated_form, little_alone, singles_form
from tvm_dual.model import Model
from tvm_dual.site_costs import SingleCosts, SiteCosts
from tvm_dual.sites import Site
from tvm_dual.variants import Fits


def count_sites(model: Model, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, SiteCosts]:
    """Count what all layers of a model without states cost, in multiply-adds of a call.

    Parameters
    ----------
    model : Model
        Of precision fp32.
    sizes : mapping of tuple of int
        By layer that may be gated: directions of its little modules.
    """
    result = {}
    for name, site in model.sites.items():
        form = exact_form(site, site.nonnegative)
        count = operations(site, form, 1.0, model.observations[name], None)
        exact = SiteCosts(form, count, form, {}, {}, {})
        kinds = [_count(model, name, exact, gated, sizes[name]) for gated in _gated(model, name, sizes)]
        result[name] = replace(kinds[0], others=tuple(kinds[1:])) if kinds else exact
    return result


def _gated(model: Model, name: str, sizes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Return the gated forms of a layer, one for each kind of little module; copies multiply as often as the layer."""
    site = model.sites[name]
    if name not in sizes:
        return []
    forms = {"projection": _skipping(site), COARSE: ("rows", COARSE)}
    return [forms[kind] for kind in model.kinds(name) if kind in forms]


def _skipping(site: Site) -> tuple[str, str]:
    """Return the form with a gate of tiles or rows that skips what zeros it can."""
    if site.conv and site.nonnegative:
        return ("rows", "nonzeros")
    return gated_form(site, exact_form(site, False))


def _count(model: Model, name: str, exact: SiteCosts, form: tuple[str, str], sizes: tuple[int, ...]) -> SiteCosts:
    site, observed = model.sites[name], model.observations[name]
    closed, opened, alone, singles = {}, {}, {}, {}
    for size in sizes:
        little = Fits(model.sized({name: size})).fit(name, form).little
        closed[size], opened[size] = (operations(site, form, density, observed, little) for density in (0.0, 1.0))
        alone[size] = operations(site, little_alone(form), 0.0, observed, little)
        if site.conv and form[1] != COARSE and "singles" in model.options.gates:
            singles[size] = _line(operations(site, singles_form(form), share, observed, little) for share in (0.0, 1.0))
    return replace(exact, gated=form, closed=closed, opened=opened, alone=alone, singles=singles)


def _line(ends) -> SingleCosts:
    closed, opened = ends
    return SingleCosts(0.5, closed, (closed + opened) / 2, opened)
