"""Planning: from a calibrated model and a quality budget to a plan, and the library that follows it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from relay_passes.site_plan import COARSE, COPIES
from schedules.cpu import ISAS
from tvm_dual.allocation import allocate, allocates, check_countable
from tvm_dual.byte_convs import check_level, choose_bytes, planned_bf16, planned_bytes, planned_floats
from tvm_dual.errors import BudgetError, PlanError
from tvm_dual.forms import APPROXIMATE, Forms, exact_form, little_alone, mode_form
from tvm_dual.gates import EFFORTS, FAR, GATES, RULES
from tvm_dual.judging import compare_in_budget, tune
from tvm_dual.library import DualLibrary
from tvm_dual.measure import median_microseconds, open_share
from tvm_dual.model import Model
from tvm_dual.permuting import in_order, permuted, planned_orders
from tvm_dual.plan import Plan, Trial
from tvm_dual.quality import Quality
from tvm_dual.search import WORTH, Search, best_exact, best_gated, close_share, search_limit, try_limit
from tvm_dual.site_plans import left_plan, site_plan
from tvm_dual.variants import Fits, Limits, Variant


def make_plan(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> DualLibrary:
    """Return the library of a model, with its plan.

    The steps: exact forms and gated forms of every matrix are timed in the whole model; the bound of
    the gates is searched under the quality budget, for each rule; the faster rule is kept, and all
    of it only if it beats the exact forms. Convolutions have bounds of their own (`tvm_dual.allocation`).
    """
    model = choose_bytes(model, quality, progress)
    fits = Fits(model)
    if model.options.mode != "dual":
        only = fits.variant({name: mode_form(site, model.options.mode) for name, site in model.sites.items()})
        return _final(fits, only, None, _plan(model, quality, only, None))
    if model.options.minimize == "operations":
        check_countable(model)
    given, model = model, permuted(model, progress)
    if allocates(model):
        return _allocated(given, model, quality, progress)
    exact = best_exact(model, fits, progress)
    exact_time = median_microseconds([exact.library], model.longest)[0]
    gated = best_gated(model, fits, exact, progress)
    searches, finetuning = [], None
    if gated is not None:
        finetuning = tune(model, quality, fits, gated, progress)
        rules = RULES if model.options.rule == "auto" else (model.options.rule,)
        bound = search_limit if model.options.closed_share is None else close_share
        searches = [bound(model, quality, fits.variant(gated.forms, rule), progress) for rule in rules]
    trials = [trial for found in searches for trial in found.trials]
    best = _best(model, searches)
    if best is not None:
        finetuning = compare_in_budget(model, quality, fits, gated, finetuning, best, progress)
    searched = {"trials": tuple(trials), "finetuning": finetuning}
    if best is None or best.found.microseconds > WORTH * exact_time:
        return _exact(given, quality, exact.forms, searched)
    if best.found.limit == FAR:
        alone = fits.variant({name: little_alone(form) for name, form in best.variant.forms.items()})
        return _final(fits, alone, None, _plan(model, quality, alone, None, **searched))
    return _final(fits, best.variant, best.found.limit, _plan(model, quality, best.variant, best.found, **searched))


def _allocated(given: Model, model: Model, quality: Quality, progress) -> DualLibrary:
    """Return the library of a model whose layers have bounds of their own, if that beats the exact forms.

    By operations it always does.

    `given` is the model with channels in the order that they came in.
    """
    result, counts = allocate(model, quality, progress), model.options.minimize == "operations"
    exact, best = result.exact if counts else _fastest_exact(result.exact, quality), result.variant
    searched = {"trials": result.trials, "finetuning": result.finetuning}
    if best is not None:
        exact_time, time = median_microseconds([exact.library, best.library], model.longest)
        if counts or time <= WORTH * exact_time:
            plan = _plan(best.model, quality, best, result.found, **searched)
            return _final(result.fits, best, result.found.bounds, plan)
    return _exact(given, quality, exact.forms, searched)


def _fastest_exact(exact: Variant, quality: Quality) -> Variant:
    """Return exact forms that were the fastest layer by layer, or every row, if the whole model is faster so."""
    model = exact.model
    forms = {name: mode_form(site, "dense") for name, site in model.sites.items()}
    if forms == exact.forms:
        return exact
    plain = Fits(model).variant(forms)
    time, plain_time = median_microseconds([exact.library, plain.library], model.longest)
    return plain if plain_time < time and quality.accepts(quality.judge(plain.library)) else exact


def _exact(model: Model, quality: Quality, forms: Forms, searched: dict) -> DualLibrary:
    """Return the library of the exact forms; `searched` is what else the plan should say."""
    fits = Fits(model)
    variant = fits.variant(forms)
    plan = _plan(model, quality, variant, None, **searched)
    _check_exact(quality, plan)
    return _final(fits, variant, None, plan)


def _best(model: Model, searches: list[Search]) -> Search | None:
    """Return the fastest within the budget; where equally many rows are closed, the one of the highest quality."""
    accepted = [search for search in searches if search.found is not None]
    if model.options.closed_share is not None:
        return max(accepted, key=lambda search: search.found.quality, default=None)
    return min(accepted, key=lambda search: search.found.microseconds, default=None)


def _check_exact(quality: Quality, plan: Plan) -> None:
    """Refuse a build whose precision alone breaks the budget."""
    if not quality.accepts(plan.quality):
        raise BudgetError(
            f"precision {plan.precision}: with every row computed, quality is {plan.quality:.4g}, "
            f"the dense fp32 model's {quality.dense:.4g}, the allowed drop {quality.max_drop:.4g}. "
            "Build with precision='fp32', or allow more"
        )


def apply_plan(model: Model, quality: Quality, plan: Plan, progress) -> DualLibrary:
    """Return the library of a model by the forms and bounds of an earlier plan.

    Raises
    ------
    PlanError
        If the plan's sites are not the model's, or need what the instruction set level lacks.
    """
    planned = {site.name: site for site in plan.sites if site.input != "tvm"}
    if {name: site.kind for name, site in model.sites.items()} != {name: site.kind for name, site in planned.items()}:
        raise PlanError(f"plan: sites {sorted(planned)}; the model has {sorted(model.sites)}. Plan this model anew")
    check_level(plan, ISAS[model.compiler.isa], model.sites)
    for site in planned.values():
        exact, approximate = ("dense", "columns"), ("rows", "little")
        hidden = ("dense", *approximate) if site.hidden else ("",)
        if site.kind == "conv2d":
            approximate = tuple(APPROXIMATE)
            littles = (*exact, *COPIES, COARSE) if site.precision == "fp32" else exact
            hidden = {"rows": (*littles, "nonzeros"), "singles": littles, "little": littles}.get(site.input, ("",))
        accepted = (*exact, *approximate) if model.sites[site.name].can_gate else exact
        if site.input not in accepted or site.hidden not in hidden:
            raise PlanError(
                f"plan: site {site.name} has the forms {site.input!r}, {site.hidden!r}; plan this model anew"
            )
    rules = {site.rule for site in plan.sites if site.rule} or {"damage"}
    limits = {site.name: site.limit for site in plan.sites if site.rule}
    limit = limits if len(set(limits.values())) > 1 else next(iter(limits.values()), None)
    factors = [zip(GATES[site.kind], site.gate_factors, strict=True) for site in planned.values() if site.gate_factors]
    # Without factors of one, which options leave out: modules trained under the same bounds are not trained anew.
    others = {gate: factor for gate, factor in itertools.chain(*factors) if factor != 1}
    trained = plan.finetuning if any(site.tuned for site in planned.values()) else None
    options = replace(model.options, gate_factors=others, finetune_steps=trained.steps if trained else 0)
    sizes = {name: site.dimensions for name, site in planned.items() if site.dimensions}
    low = {"on_bytes": planned_bytes(plan), "on_bf16": planned_bf16(plan), "on_floats": planned_floats(plan)}
    model = in_order(replace(model, options=options, **low).sized(sizes), planned_orders(plan))
    fits, forms = Fits(model), {name: (site.input, site.hidden) for name, site in planned.items()}
    if trained is not None:
        by_site = {name: limits.get(name, FAR) for name in planned}
        fits.finetune(forms, by_site if trained.tuned.limits else trained.tuned.limit, progress)
    rule = rules.pop()
    fits.refit(forms, rule, {name: limits.get(name, FAR) for name, site in planned.items() if site.refit})
    variant = fits.variant(forms, rule)
    found = None if limit is None else try_limit(model, quality, variant, limit)
    return _final(fits, variant, limit, _plan(model, quality, variant, found, finetuning=trained))


def _final(fits: Fits, variant: Variant, limit: Limits | None, plan: Plan) -> DualLibrary:
    return fits.variant(variant.forms, variant.rule, limit, plan).library


def _plan(model: Model, quality: Quality, variant: Variant, found: Trial | None, **searched) -> Plan:
    """Return the plan of a variant, gated at the bound of `found`; `searched` is what else the plan should say."""
    if found is not None:
        variant.set_limit(found.bounds)
    shares = open_share(variant.library, model.data.streams) if variant.fits else {}
    reference = model.compiler.compile(
        model.site_forms({name: exact_form(site, False) for name, site in model.sites.items()})
    )
    dense_time, time = median_microseconds([reference, variant.library], model.longest)
    sites = tuple(site_plan(model, site, variant, found, shares.get(name, 1.0)) for name, site in model.sites.items())
    return Plan(
        sites=(*sites, *(left_plan(site) for site in model.left)),
        precision=model.precision,
        isa=model.compiler.isa,
        threads=model.compiler.threads,
        quality_kind=quality.kind,
        dense_quality=quality.dense,
        quality=found.quality if found else quality.judge(variant.library),
        max_drop=quality.max_drop,
        dense_microseconds=dense_time,
        microseconds=time,
        efforts=EFFORTS,
        calibration_hash=model.data.digest,
        samples=model.data.calls,
        **searched,
    )
