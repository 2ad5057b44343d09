"""Convolutions on bytes and on bf16: with which scales, and which of them, under the quality budget.

Scale and zero point of what a convolution on bytes reads are fixed when the library is built: those that leave the
least mean square error on what it was seen to read, or those that hold all of it, whichever the whole model judges
better by. All convolutions are tried on bytes at once; if that loses too much, some go back to bf16, or to floats where
there are no tiles for bf16 (`fewest_back`). If bf16 loses too much in all of them, some go back from it to floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from schedules.conv2d_gated_tiles import can_gate_bytes
from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS, Isa
from tvm_dual.byte_scale import SHARES, byte_scale
from tvm_dual.cost import all_operations
from tvm_dual.errors import PlanError
from tvm_dual.forms import exact_form
from tvm_dual.model import Model
from tvm_dual.plan import Plan, SitePlan
from tvm_dual.quality import Quality
from tvm_dual.sites import Site
from tvm_dual.variants import Fits

#: Shares for all convolutions at once. Where a maximum over the image follows, few large values decide, and cutting
#: them off costs more than the error of all others: DNSMOS's score changes by 0.036 or by 0.015.
RANGES = (SHARES, SHARES[:1])

#: Share of the cost of all layers up to which one is next to nothing.
_NOTHING = 0.005


def choose_bytes(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> Model:
    """Return `model` with the convolutions that a build computes on bytes, and on bf16; one of bf16 has these alone."""
    convs = _convolutions(model)
    isa, phase = ISAS[model.compiler.isa], "convolutions on bytes"
    if not convs or model.options.mode not in ("dual", "dense"):
        return model
    dense = [n for n, site in model.sites.items() if not site.conv and not site.hidden and model.precision == "int8"]
    costs = {name: all_operations(model.sites[name]) for name in (*convs, *dense)}
    total, done = len(RANGES) + len(costs), 0

    def judged(trial: Model) -> float:
        nonlocal done
        progress(phase, min(done, total - 1), total)
        done += 1
        forms = {name: exact_form(site, site.nonnegative) for name, site in model.sites.items()}
        forms |= {name: exact_form(model.sites[name], False) for name in convs if trial.is_low(name)}
        return quality.judge(Fits(trial).judged(forms))

    def without(high: Model, low: Model) -> Model | None:
        """Return `high` but for the fewest layers that are as in `low`, None if all of them do not suffice."""

        def mixed(back: frozenset[str]) -> Model:
            on_bytes = {name: scale for name, scale in high.on_bytes.items() if name not in back}
            on_bf16, on_floats = (high.on_bf16 - back) | (low.on_bf16 & back), high.on_floats | back.intersection(dense)
            return replace(low, on_bytes=on_bytes, on_bf16=on_bf16, on_floats=on_floats)

        back = fewest_back(costs, lambda names: judged(mixed(names)), quality.accepts)
        return None if back is None else mixed(back)

    found = None
    halves = replace(model, on_bf16=frozenset(convs)) if isa.amx and model.precision in ("int8", "bf16") else model
    if model.precision == "int8":
        scales = (all_bytes(model, shares) for shares in RANGES)
        tried = [(judged(trial), trial) for trial in (replace(model, on_bytes=each) for each in scales)]
        best, whole = max(tried, key=lambda each: each[0])
        found = whole if quality.accepts(best) else without(whole, halves)
    if found is None and halves is not model:
        phase, total, done = "convolutions on bf16", 1 + len(costs), 0
        found = halves if quality.accepts(judged(halves)) else without(halves, model)
    progress(phase, total, total)
    return model if found is None else found


def all_bytes(model: Model, shares: np.ndarray = SHARES) -> dict[str, Affine]:
    """Return every convolution that may be on bytes, with the scale that `byte_scale` finds for what it reads."""
    return {name: byte_scale(model.observations[name].inputs[0], shares) for name in _convolutions(model)}


def _convolutions(model: Model) -> list[str]:
    return [name for name, site in model.sites.items() if site.conv and name not in model.options.keep_dense]


def fewest_back(
    costs: Mapping[str, float], judged: Callable[[frozenset[str]], float], accepts: Callable[[float], bool]
) -> frozenset[str] | None:
    """Return the layers that have to go back to numbers that are more exact, None if all of them do not suffice.

    Those whose going back alone gains most go first, as many as it takes until what is judged is accepted. Then each
    that the others have made needless stays after all, the most expensive first; those that cost next to nothing are
    not tried. Where one alone suffices it is the cheapest such.

    Parameters
    ----------
    costs : mapping of float
        By layer, what its going back costs; in any unit.
    judged : callable
        From the layers that have gone back to the quality of the rest as it is.
    accepts : callable
        Whether a quality is good enough; of none having gone back it is not.
    """
    alone = {name: judged(frozenset({name})) for name in costs}
    enough = [name for name, found in alone.items() if accepts(found)]
    if enough:
        return frozenset({min(enough, key=costs.get)})
    order = sorted(alone, key=alone.get, reverse=True)
    if not accepts(judged(frozenset(order))):
        return None
    # Of `few` layers it is not enough, of `count` it is.
    few, count = 1, len(order)
    while count - few > 1:
        middle = (few + count) // 2
        few, count = (few, middle) if accepts(judged(frozenset(order[:middle]))) else (middle, count)
    back, least = frozenset(order[:count]), _NOTHING * sum(costs.values())
    # The last one was needed beside all others.
    for name in sorted(order[: count - 1], key=costs.get, reverse=True):
        if len(back) > 2 and costs[name] > least and accepts(judged(back - {name})):
            back -= {name}
    return back


def check_level(plan: Plan, isa: Isa, sites: Mapping[str, Site]) -> None:
    """Refuse a plan of `sites` with convolutions on bf16, or gated on bytes, that a level has no kernels for.

    Raises
    ------
    PlanError
        Naming the first of them.
    """
    halves = [] if isa.amx else _planned(plan, "bf16")
    gated = [site for site in _planned(plan, "int8") if site.input == "rows" and site.name in sites]
    gated = [site for site in gated if not can_gate_bytes(isa, sites[site.name].conv)]
    for found, what, lacks in (
        (halves, "computed in bf16", "matrix tiles"),
        (gated, "gated on int8", "tiles of whole vectors for it"),
    ):
        if found:
            raise PlanError(
                f"plan: site {found[0].name} is {what}, and {isa.name} has no {lacks}; accepted: a plan made for "
                f"{isa.name}, or a target that has them ({plan.isa})"
            )


def planned_bytes(plan: Plan) -> dict[str, Affine]:
    """Return the convolutions that a plan computes on bytes."""
    return {site.name: Affine(site.scale, site.zero) for site in _planned(plan, "int8")}


def planned_bf16(plan: Plan) -> frozenset[str]:
    """Return the convolutions that a plan computes on bf16."""
    return frozenset(site.name for site in _planned(plan, "bf16"))


def planned_floats(plan: Plan) -> frozenset[str]:
    """Return the layers other than convolutions that a plan of int8 computes in floats."""
    sites = (site for site in plan.sites if site.kind != "conv2d" and site.input != "tvm" and plan.precision == "int8")
    return frozenset(site.name for site in sites if site.precision == "fp32")


def _planned(plan: Plan, precision: str) -> list[SitePlan]:
    return [site for site in plan.sites if site.kind == "conv2d" and site.precision == precision]


def bytes_reason(model: Model, site: Site, zeros: float) -> str:
    """Return why a convolution of an int8 or bf16 build without a gate has its form."""
    isa, int8 = ISAS[model.compiler.isa], model.precision == "int8"
    below = "at 8 bits quality is below the budget"
    if site.name in model.on_bytes:
        return "8-bit " + (
            "matrix tiles (AMX)" if isa.amx else "dot products (VNNI)" if isa.vnni else "products in pairs"
        )
    if site.name in model.on_bf16:
        return "bf16 matrix tiles (AMX)" + f": {below}" * int8
    if site.name in model.options.keep_dense:
        return "fp32: kept by option"
    if not (int8 or isa.amx):
        return f"fp32: {isa.name} has no bf16 matrix tiles (AMX); {zeros:.0%} of the inputs are zero"
    if model.options.mode not in ("dual", "dense"):
        return f"fp32: mode {model.options.mode}; {zeros:.0%} of the inputs are zero"
    if isa.amx:
        below = "at 8 bits and in bf16 quality is below the budget" if int8 else "in bf16 quality is below the budget"
    return f"fp32: {below}; {zeros:.0%} of the inputs are zero"
