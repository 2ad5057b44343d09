"""The forms that each layer may take, with time and loss, and the order in which to take them.

Losses of several layers are taken to add up, as errors do that have nothing to do with each other. Then the best order
to give quality away in is known without judging anything: step by step, the layer that saves most time for the loss
it adds, which is the greedy solution of the knapsack problem with one choice for each item (Sinha and Zoltners, 1979).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schedules.cpu import ISAS
from schedules.quantize import round_up
from tvm_dual.calibration import InputStream
from tvm_dual.closed_loss import closed_loss
from tvm_dual.fitting import SiteFit
from tvm_dual.forms import LITTLE_BYTES, singles_form
from tvm_dual.gates import FAR, OPEN
from tvm_dual.model import Model
from tvm_dual.quality import mean_square, outputs_of, power_of
from tvm_dual.search import LADDER
from tvm_dual.single_times import BOUNDS
from tvm_dual.site_times import SiteTimes
from tvm_dual.variants import Fits

#: Sizes of little modules, as multiples of the options', and of those on bytes.
MULTIPLES, BYTE_MULTIPLES = (1, 2, 4), (1, 2, 3, 4)
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
    microseconds : float
    form : tuple of str
        Gated, of the input's and the little module's matrix; empty of the exact form.
    """

    size: int
    limit: float
    loss: float
    microseconds: float
    form: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """From one form of a layer to the next, and the time that it saves for the loss that it adds."""

    name: str
    choice: Choice
    worth: float


def sizes_of(model: Model, name: str) -> tuple[int, ...]:
    """Return the sizes of a layer's little module to choose from: one if the options name it."""
    options, site = model.options, model.sites[name]
    rows, inputs = site.weight.shape
    least = options.site_size(name, min(inputs, rows) if site.conv else inputs, rows)
    named = name in options.site_dimensions or options.dimensions is not None or options.epsilon is not None
    lanes = ISAS[model.compiler.isa].lanes if site.conv else 1
    multiples = BYTE_MULTIPLES if name in model.on_bytes else MULTIPLES
    sizes = dict.fromkeys(round_up(least * multiple, lanes) for multiple in (multiples[:1] if named else multiples))
    return tuple(size for i, size in enumerate(sizes) if i == 0 or size < min(inputs, rows))


def steps(exact: Choice, choices: list[Choice]) -> list[tuple[Choice, float]]:
    """Return the forms from `exact` on that are worth taking, each with the worth of the step to it, which falls.

    They are the corners of the lower convex hull of time over loss.
    """
    at, found = exact, []
    while faster := [choice for choice in choices if choice.microseconds < at.microseconds]:
        best = max(faster, key=lambda choice: (_worth(at, choice), -choice.microseconds))
        worth = _worth(at, best)
        # Losses that are no losses make later steps look better than earlier ones.
        found.append((best, min(worth, found[-1][1]) if found else worth))
        at = best
    return found


def _worth(at: Choice, to: Choice) -> float:
    return (at.microseconds - to.microseconds) / max(to.loss - at.loss, NO_LOSS)


def merged(by_site: dict[str, list[tuple[Choice, float]]]) -> list[Step]:
    """Return the steps of all layers, the most worthwhile first."""
    every = [Step(name, choice, worth) for name, found in by_site.items() for choice, worth in found]
    return sorted(every, key=lambda step: -step.worth)


def choices_of(model: Model, rule: str, times: dict[str, SiteTimes], progress) -> dict[str, list[Choice]]:
    """Return the forms of each layer that may be gated, or behind its little module on bytes."""
    isa = ISAS[model.compiler.isa]
    gated = {name: found for name, found in times.items() if found.alone}
    middle = {name: list(found.alone)[len(found.alone) // 2] for name, found in gated.items()}
    alone = _alone_losses(model, times, middle, rule, progress)
    choices: dict[str, list[Choice]] = {}
    for name, found in gated.items():
        site, observed = model.sites[name], model.observations[name]
        limits, source = (FAR, *LADDER[rule]), model.on_bytes.get(name)
        if found.gated == LITTLE_BYTES:
            limits = limits[:1]
        kinds = (found, *found.others)
        fits = {(kind.gated, size): _fit(model, name, kind, size) for kind in kinds for size in kind.alone}
        local = {at: closed_loss(site, fit, observed, isa, rule, limits, source) for at, fit in fits.items()}
        scale = alone[name] / max(local[found.gated, middle[name]][0][1], 1e-30)
        choices[name] = [
            Choice(size, limit, scale * loss, _time(kind, size, limit, density), kind.gated)
            for kind in kinds
            for size in kind.alone
            for limit, (density, loss) in zip(limits, local[kind.gated, size], strict=True)
            if limit == FAR or "rows" in model.options.gates or not found.singles
        ]
        for size, times_ in found.singles.items():
            of_limits = closed_loss(site, fits[found.gated, size], observed, isa, rule, BOUNDS[rule], gate="singles")
            choices[name] += [
                Choice(size, limit, scale * loss, times_.at(density), singles_form(found.gated))
                for limit, (density, loss) in zip(BOUNDS[rule], of_limits, strict=True)
            ]
    return choices


def _fit(model: Model, name: str, kind: SiteTimes, size: int) -> SiteFit:
    """Return a little module of a kind, in its closed form."""
    return Fits(model.sized({name: size})).fit(name, kind.gated)


def _time(times: SiteTimes, size: int, limit: float, density: float) -> float:
    """Return the microseconds of a layer: with a gate, in proportion to the share of open tiles or rows."""
    if limit == FAR:
        # Without a gate it is no slower; what says so is noise.
        return min(times.alone[size], times.closed.get(size, times.alone[size]))
    return times.closed[size] + density * (times.opened[size] - times.closed[size])


def _alone_losses(
    model: Model, times: dict[str, SiteTimes], sizes: dict[str, int], rule: str, progress
) -> dict[str, float]:
    """Return the loss of the whole model behind one layer's little module alone, by layer."""
    fits = Fits(model.sized(sizes))
    on_bytes = [name for name in sizes if times[name].gated == LITTLE_BYTES]
    forms = {name: t.form if name in on_bytes or name not in sizes else t.gated for name, t in times.items()}
    variant = fits.variant(forms, rule)
    streams, opened = _probes(model.data.streams), dict.fromkeys((name for name in sizes if name not in on_bytes), OPEN)
    variant.set_limit(opened)
    wanted = outputs_of(variant.library, streams)
    power, found = power_of(wanted), {}
    for i, name in enumerate(sizes):
        progress("losses by layer", i, len(sizes))
        tried = variant
        if name in on_bytes:
            # Nothing to open and close: a library of its own.
            tried = fits.variant(forms | {name: LITTLE_BYTES}, rule)
            tried.set_limit(opened)
        else:
            variant.set_limit(opened | {name: FAR})
        errors = [a - b for a, b in zip(outputs_of(tried.library, streams), wanted, strict=True)]
        found[name] = mean_square(errors) / power
    progress("losses by layer", len(sizes), len(sizes))
    return found


def _probes(streams: tuple[InputStream, ...]) -> tuple[InputStream, ...]:
    """Return the beginnings of streams, `PROBE_CALLS` calls in all or somewhat more."""
    streams = streams[:PROBE_CALLS]
    return tuple(stream[: math.ceil(PROBE_CALLS / len(streams))] for stream in streams)
