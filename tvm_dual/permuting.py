"""Channels in the order in which those that open together share a panel, where that opens fewer tiles.

Which outputs of a gated convolution would open is known from the observed pixels: their little module predicts the
sums, and these the harm of leaving each channel to it. The order is chosen on one half of the pixels and kept if it
lowers the share of open tiles at equal damage on the other half. The little modules of the new order are fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from relay_passes.permute_channels import SiteOrder, channel_groups, site_orders
from schedules.conv2d_gated import gate_panels
from schedules.cpu import ISAS
from tvm_dual.channel_order import Harms, channel_order, densities
from tvm_dual.closed_loss import after
from tvm_dual.errors import PlanError
from tvm_dual.model import ChannelOrder, Model
from tvm_dual.observations import Observations
from tvm_dual.plan import Plan
from tvm_dual.sites import Site, find_sites
from tvm_dual.tile_gates import tile_limits
from tvm_dual.variants import Fits

#: Observed pixels that are looked at: the first half judges, the second half chooses.
SAMPLES = 3000
#: An order has to lower density by this factor.
WORTH = 0.97


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the gate of one convolution expects of the observed pixels, and what these come to."""

    site: Site
    harms: np.ndarray
    errors: np.ndarray
    panels: list[slice]

    @property
    def work(self) -> float:
        """Products of a call."""
        return float(self.site.conv.taps * self.site.conv.output_size)

    def density(self, order: np.ndarray) -> float:
        """Return the mean share of open tiles at equal damage."""
        half = len(self.harms) // 2
        return float(densities(self.harms[:half, order], self.errors[:half, order], self.panels).mean())


def permuted(model: Model, progress: Callable[[str, int, int], None]) -> Model:
    """Return the model with channels in the order in which their gates open least.

    Convolutions that nothing gates in floats, and those whose order the rest of the model needs, stay as they are; the
    model's ``orders`` say why.
    """
    gated = [name for name, site in model.sites.items() if site.conv and model.gates(name) and not model.is_low(name)]
    if not gated or model.options.rule == "activation":
        return model
    found: dict[str, ChannelOrder] = {}
    groups, fits = channel_groups(model.compiler.module), Fits(model)
    for i, group in enumerate(groups):
        progress("channel orders", i, len(groups))
        names = [name for name in group.sites if name in gated]
        if group.stays:
            found |= dict.fromkeys(names, ChannelOrder((), f"channels keep their order: {group.stays}"))
        elif names:
            found |= _ordered([_seen(model, fits, name) for name in names], group.sites)
    progress("channel orders", len(groups), len(groups))
    return in_order(model, found)


def planned_orders(plan: Plan) -> dict[str, ChannelOrder]:
    """Return the orders that a plan has recorded.

    Raises
    ------
    PlanError
        If one is no order.
    """
    found = {site.name: site.order for site in plan.sites if site.order}
    for name, order in found.items():
        if sorted(order) != list(range(len(order))):
            raise PlanError(f"plan: site {name}: {len(order)} channels in no order; plan this model anew")
    return {name: ChannelOrder(order, "channels in the order of an earlier plan") for name, order in found.items()}


def in_order(model: Model, orders: Mapping[str, ChannelOrder]) -> Model:
    """Return the model with channels in the orders that are given by site.

    Raises
    ------
    PlanError
        If the model has no such channels, or needs them in the order that they have.
    """
    places = {name: np.array(order.places) for name, order in orders.items() if order.places}
    if not places:
        return replace(model, orders=dict(orders))
    for name, order in places.items():
        if name not in model.sites or not model.sites[name].conv or len(order) != len(model.sites[name].weight):
            raise PlanError(f"plan: an order of {len(order)} channels of site {name!r}; plan this model anew")
    try:
        changes = site_orders(model.compiler.module, places)
    except ValueError as error:
        raise PlanError(f"plan: {error}; plan this model anew") from error
    compiler = model.compiler.with_orders(places)
    sites = {site.name: site for site in find_sites(compiler.module)}
    return replace(
        model,
        sites={name: sites[name] for name in model.sites},
        observations={name: _moved(model.sites[name], seen, changes) for name, seen in model.observations.items()},
        compiler=compiler,
        # Of one order's little modules no other knows.
        known=model.known.setdefault(tuple(sorted((n, order.places) for n, order in orders.items())), {}),
        orders=dict(orders),
    )


def _seen(model: Model, fits: Fits, name: str) -> _Seen:
    site, observed = model.sites[name], model.observations[name]
    fit, every = fits.fit(name, ("rows", "dense")), np.arange(len(observed.inputs[0]))[-SAMPLES:]
    # Pixels of a call lie together: halves of different calls.
    x, module = observed.inputs[0][every], fit.little.module
    added = 0 if observed.residual is None else observed.residual[every]
    rough = (x @ module.projections[0].T - module.center) @ module.weight.T + module.bias + added
    shown = after(site, x @ site.weight.T + site.bias + added) - after(site, rough)
    limits = tile_limits(site.activation, "damage", 1.0, 1.0, fit.spread, fit.weights)
    harms = (limits[2] * np.clip(limits[0] * rough + limits[1], 0, 1)) ** 2
    panels = gate_panels(ISAS[model.compiler.isa], site.conv)
    return _Seen(site, harms.astype("float32"), ((shown * fit.weights) ** 2).astype("float32"), panels)


def _ordered(seen: list[_Seen], sites: tuple[str, ...]) -> dict[str, ChannelOrder]:
    """Return the order of a group's channels, by site, if it is worth having."""
    if all(len(part.panels) == 1 for part in seen):
        return dict.fromkeys((part.site.name for part in seen), ChannelOrder((), "all channels are of one panel"))
    chosen = [Harms(part.harms[len(part.harms) // 2 :], part.panels[0].stop, part.work) for part in seen]
    order, as_is = channel_order(chosen), np.arange(len(seen[0].site.weight))
    before, after_ = ([part.density(o) for part in seen] for o in (as_is, order))
    work = [part.work for part in seen]
    told = {
        part.site.name: f"{b:.0%} → {a:.0%} of the tiles at equal damage"
        for part, b, a in zip(seen, before, after_, strict=True)
    }
    if np.dot(after_, work) > WORTH * np.dot(before, work):
        kept = "channels keep their order: another opens"
        return {name: ChannelOrder((), f"{kept} {text}") for name, text in told.items()}
    places = tuple(map(int, order))
    return {name: ChannelOrder(places, f"channels permuted: {told.get(name, 'as others need them')}") for name in sites}


def _moved(site: Site, seen: Observations, changes: Mapping[str, SiteOrder]) -> Observations:
    """Return what a site was observed to read, in the new order."""
    order = changes[site.name]
    if order.read is None and order.given is None:
        return seen
    inputs, residual = seen.inputs, seen.residual
    if order.read is not None:
        x = seen.inputs[0].reshape(-1, len(order.read))[:, order.read].reshape(seen.inputs[0].shape)
        inputs = (x, *inputs[1:])
    if order.given is not None and residual is not None:
        residual = residual[:, order.given]
    examples = tuple(
        tuple(_taken(value, by) for value, by in zip(call, (order.read, order.given), strict=False))
        for call in seen.examples
    )
    return replace(seen, inputs=inputs, residual=residual, examples=examples)


def _taken(value: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return value if order is None else np.ascontiguousarray(value[..., order])
