"""The forms that each layer may take, with cost and loss, and the order in which to take them.

Losses of several layers are taken to add up, as errors do that have nothing to do with each other. Then the best order
to give quality away in is known without judging anything: step by step, the layer that saves most for the loss it
adds, which is the greedy solution of the knapsack problem with one choice for each item (Sinha and Zoltners, 1979).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from schedules.cpu import ISAS
from schedules.quantize import round_up
from tvm_dual.calibration import InputStream
from tvm_dual.closed_loss import closed_loss
from tvm_dual.fitting import SiteFit
from tvm_dual.forms import LITTLE_BYTES, exact_form, gated_form, singles_form
from tvm_dual.gates import FAR, OPEN
from tvm_dual.model import Model
from tvm_dual.quality import mean_square, outputs_of, power_of
from tvm_dual.search import LADDER
from tvm_dual.single_bounds import BOUNDS
from tvm_dual.site_costs import SiteCosts
from tvm_dual.variants import Fits

#: Sizes of little modules, as multiples of the options'; of those on bytes; and of those that nothing is timed of.
MULTIPLES, BYTE_MULTIPLES, COUNTED_MULTIPLES = (1, 2, 4), (1, 2, 3, 4), (1, 2, 3, 4, 6)
#: Calls that a layer's loss is measured on.
PROBE_CALLS = 96
#: Added to a loss that something is divided by: far below what any quality budget is spent on.
NO_LOSS = 1e-9


@dataclass(frozen=True)
class Choice:
    """One form of a layer.

    Attributes
    ----------
    size : int
        Directions of the little module, 0 without one.
    limit : float
        Bound of the gate; `FAR` is the little module alone.
    loss : float
        Mean square of what the model's outputs are off by, as a share of their own.
    cost : float
        Microseconds, or multiply-adds if those are to be few.
    form : tuple of str
        Gated, of the input's and the little module's matrix; empty of the exact form.
    """

    size: int
    limit: float
    loss: float
    cost: float
    form: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """From one form of a layer to the next, and the cost that it saves for the loss that it adds."""

    name: str
    choice: Choice
    worth: float


def sizes_of(model: Model, name: str) -> tuple[int, ...]:
    """Return the sizes of a layer's little module to choose from: one if the options name it."""
    options, site = model.options, model.sites[name]
    rows, inputs = site.weight.shape
    least = options.site_size(name, min(inputs, rows) if site.conv else inputs, rows)
    named = name in options.site_dimensions or options.dimensions is not None or options.epsilon is not None
    lanes = model.direction_vector(name) if site.conv else 1
    timed = BYTE_MULTIPLES if name in model.on_bytes else MULTIPLES
    multiples = COUNTED_MULTIPLES if options.minimize == "operations" else timed
    sizes = dict.fromkeys(round_up(least * multiple, lanes) for multiple in (multiples[:1] if named else multiples))
    return tuple(size for i, size in enumerate(sizes) if i == 0 or size < min(inputs, rows))


def steps(exact: Choice, choices: list[Choice]) -> list[tuple[Choice, float]]:
    """Return the forms from `exact` on that are worth taking, each with the worth of the step to it, which falls.

    They are the corners of the lower convex hull of cost over loss.
    """
    at, found = exact, []
    while faster := [choice for choice in choices if choice.cost < at.cost]:
        best = max(faster, key=lambda choice: (_worth(at, choice), -choice.cost))
        worth = _worth(at, best)
        # Losses that are no losses make later steps look better than earlier ones.
        found.append((best, min(worth, found[-1][1]) if found else worth))
        at = best
    return found


def _worth(at: Choice, to: Choice) -> float:
    return (at.cost - to.cost) / max(to.loss - at.loss, NO_LOSS)


def merged(by_site: dict[str, list[tuple[Choice, float]]]) -> list[Step]:
    """Return the steps of all layers, the most worthwhile first."""
    every = [Step(name, choice, worth) for name, found in by_site.items() for choice, worth in found]
    return sorted(every, key=lambda step: -step.worth)


def choices_of(model: Model, rule: str, costs: dict[str, SiteCosts], progress) -> dict[str, list[Choice]]:
    """Return the forms of each layer that may be gated, or behind its little module on bytes."""
    isa = ISAS[model.compiler.isa]
    gated = {name: found for name, found in costs.items() if found.alone}
    scales = _scales(model, costs, rule, progress)
    choices: dict[str, list[Choice]] = {}
    for name, found in gated.items():
        site, observed = model.sites[name], model.observations[name]
        limits, source = (FAR, *LADDER[rule]), model.on_bytes.get(name)
        if found.gated == LITTLE_BYTES:
            limits = limits[:1]
        kinds = (found, *found.others)
        fits = {(kind.gated, size): _fit(model, name, kind.gated, size) for kind in kinds for size in kind.alone}
        local = {at: closed_loss(site, fit, observed, isa, rule, limits, source) for at, fit in fits.items()}
        choices[name] = [
            Choice(size, limit, scales[name] * loss, _cost(kind, size, limit, density), kind.gated)
            for kind in kinds
            for size in kind.alone
            for limit, (density, loss) in zip(limits, local[kind.gated, size], strict=True)
            if limit == FAR or "rows" in model.options.gates or not found.singles
        ]
        for size, single in found.singles.items():
            of_limits = closed_loss(site, fits[found.gated, size], observed, isa, rule, BOUNDS[rule], gate="singles")
            choices[name] += [
                Choice(size, limit, scales[name] * loss, single.at(density), singles_form(found.gated))
                for limit, (density, loss) in zip(BOUNDS[rule], of_limits, strict=True)
            ]
    return choices


def _fit(model: Model, name: str, form: tuple[str, str], size: int) -> SiteFit:
    """Return a little module of a form, in its closed form."""
    return Fits(model.sized({name: size})).fit(name, form)


def _cost(costs: SiteCosts, size: int, limit: float, density: float) -> float:
    """Return the cost of a layer: with a gate, in proportion to the share of open tiles or rows."""
    if limit == FAR:
        # Without a gate it is no slower; what says so is noise.
        return min(costs.alone[size], costs.closed.get(size, costs.alone[size]))
    return costs.closed[size] + density * (costs.opened[size] - costs.closed[size])


def _scales(model: Model, costs: dict[str, SiteCosts], rule: str, progress) -> dict[str, float]:
    """Return what a layer's loss is multiplied by to give the whole model's, by layer.

    The model's is measured with one layer after another behind its little module alone, all in one library. What errors
    of a layer do to the result does not depend on how they came about: so a layer on bytes without a gate, whose little
    module cannot be taken away again, is one of floats there.
    """
    isa, sizes = ISAS[model.compiler.isa], {n: list(c.alone)[len(c.alone) // 2] for n, c in costs.items() if c.alone}
    floats = {name for name in sizes if costs[name].gated == LITTLE_BYTES}
    model = replace(model, on_bytes={name: levels for name, levels in model.on_bytes.items() if name not in floats})
    forms = {name: found.gated if name in sizes else found.form for name, found in costs.items()}
    forms |= {name: gated_form(model.sites[name], exact_form(model.sites[name], False)) for name in floats}
    variant, streams = Fits(model.sized(sizes)).variant(forms, rule), _probes(model.data.streams)
    opened, found = dict.fromkeys(sizes, OPEN), {}
    variant.set_limit(opened)
    wanted = outputs_of(variant.library, streams)
    for i, name in enumerate(sizes):
        progress("losses by layer", i, len(sizes))
        variant.set_limit(opened | {name: FAR})
        errors = [a - b for a, b in zip(outputs_of(variant.library, streams), wanted, strict=True)]
        layer = model.sites[name], variant.fits[name], model.observations[name]
        ((_, local),) = closed_loss(*layer, isa, rule, (FAR,), model.on_bytes.get(name))
        found[name] = mean_square(errors) / power_of(wanted) / max(local, 1e-30)
    progress("losses by layer", len(sizes), len(sizes))
    return found


def _probes(streams: tuple[InputStream, ...]) -> tuple[InputStream, ...]:
    """Return the beginnings of streams, `PROBE_CALLS` calls in all or somewhat more."""
    streams = streams[:PROBE_CALLS]
    return tuple(stream[: math.ceil(PROBE_CALLS / len(streams))] for stream in streams)
