"""Allocation: a bound and a little module for each layer, by quality lost against time or operations saved.

One bound for all layers opens some of them needlessly, because what an error of a layer does to the result differs
from layer to layer by orders of magnitude. So each layer of a model without states is looked at by itself: every form
that it may take (exact; behind a little module of some size, alone or gated at some bound) has a cost, measured
(`tvm_dual.site_times`) or counted (`tvm_dual.site_operations`), and a loss, which is what the model's outputs are off
by. `tvm_dual.site_choices` puts the steps from form to form in order; what is judged in the whole model is how many of
them the budget allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm_dual.byte_convs import fewest_back
from tvm_dual.errors import PlanError
from tvm_dual.forms import exact_form, trains
from tvm_dual.gates import OPEN
from tvm_dual.model import Model
from tvm_dual.plan import FineTuning, Trial
from tvm_dual.quality import Quality
from tvm_dual.site_choices import Choice, choices_of, merged, sizes_of, steps
from tvm_dual.site_costs import SiteCosts
from tvm_dual.site_operations import count_sites
from tvm_dual.site_times import time_sites
from tvm_dual.step_search import Judged, state_of, tuned, within_budget, worthwhile
from tvm_dual.variants import Fits, Variant


@dataclass(frozen=True, eq=False)
class Allocation:
    """What was found.

    Attributes
    ----------
    exact : Variant
        Every layer in its fastest exact form.
    variant : Variant or None
        The fastest within the budget; None if that is `exact`.
    found : Trial or None
        Of `variant`.
    fits : Fits or None
        Little modules of `variant`.
    trials : tuple of Trial
    finetuning : FineTuning or None
        None if nothing was trained.
    """

    exact: Variant
    variant: Variant | None
    found: Trial | None
    fits: Fits | None
    trials: tuple[Trial, ...]
    finetuning: FineTuning | None = None


def allocates(model: Model) -> bool:
    """Whether bounds are found layer by layer: in models without states that have convolutions with a gate."""
    sites = model.sites.values()
    return (
        model.options.closed_share is None
        and not any(site.hidden for site in sites)
        and any(site.conv and site.can_gate for site in sites)
    )


def check_countable(model: Model) -> None:
    """Check that a plan for few operations can be made of a model.

    Raises
    ------
    PlanError
        If the build is not of floats alone, or the model has one bound for all layers.
    """
    accepted = "fp32 builds of models of convolutions without states, with a quality budget"
    if model.precision != "fp32" or not allocates(model):
        found = f"precision {model.precision!r}, layers {', '.join(sorted({s.kind for s in model.sites.values()}))}"
        raise PlanError(f"options: minimize='operations' for {found}; accepted: {accepted}")


def allocate(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> Allocation:
    """Find a bound and a little module for each layer.

    Parameters
    ----------
    model : Model
        For which `allocates` holds.
    quality : Quality
        Judges each of about ``log2(steps) + options.search_steps + LOOKED_AT`` variants.
    progress : callable
        Called with ``(phase, done, total)``.
    """
    rule = "damage" if model.options.rule == "auto" else model.options.rule
    sizes = {name: sizes_of(model, name) for name in model.sites if model.gates(name) or model.littles_on_bytes(name)}
    counts = model.options.minimize == "operations"
    costs = count_sites(model, sizes) if counts else time_sites(model, sizes, progress)
    exact = _exact(model, costs)
    if model.precision != "fp32" and not quality.accepts(quality.judge(exact.library)):
        more = _more_skip(model, quality, costs)
        costs = time_sites(model, sizes, progress, back_to_floats=False) if more is None else more
        exact = _exact(model, costs)
    choices = choices_of(model, rule, costs, progress)
    path = merged({name: steps(Choice(0, OPEN, 0.0, costs[name].exact), found) for name, found in choices.items()})
    judged = Judged(model, quality, costs, rule, progress, math.ceil(math.log2(len(path) + 1)))
    taken, finetuning = within_budget([], path, judged), None
    if model.options.finetune_steps and any(trains(step.choice.form) for step in taken):
        taken, finetuning = tuned(taken, path, judged)
    taken = taken if counts else worthwhile(taken, judged)
    return Allocation(exact, *judged.held.get(state_of(taken), (None,) * 3), tuple(judged.trials), finetuning)


def _more_skip(model: Model, quality: Quality, costs: dict[str, SiteCosts]) -> dict[str, SiteCosts] | None:
    """Return costs with more layers that skip zeros as floats, so that the budget holds, None if none should.

    Layers that went back to floats, as fast as they are there, may leave what other layers' errors cancelled: then
    others follow, or all stay on bytes or bf16, whichever is faster.
    """
    low = {name: exact_form(site, True) for name, site in model.sites.items() if model.is_low(name)}
    rest = {name: form for name, form in low.items() if costs[name].form != form and form in costs[name].every}
    slower = {name: costs[name].every[form] - costs[name].exact for name, form in rest.items()}

    def skipping(names: frozenset[str]) -> dict[str, SiteCosts]:
        return costs | {name: costs[name].kept(low[name]) for name in names}

    def judged(names: frozenset[str]) -> float:
        return quality.judge(_exact(model, skipping(names)).library)

    back = fewest_back(slower, judged, quality.accepts) if rest else None
    if back is None:
        return None
    more, none = skipping(back), sum(costs[name].every[exact_form(model.sites[name], False)] for name in low)
    return more if sum(more[name].exact for name in low) < none else None


def _exact(model: Model, costs: dict[str, SiteCosts]) -> Variant:
    """Return the model with every layer in its fastest exact form."""
    return Fits(model).variant({name: found.form for name, found in costs.items()})
