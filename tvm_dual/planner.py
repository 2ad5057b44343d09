"""Planning: the form of each matrix by measured time, the bound of the gates by measured quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schedules.cpu import ISAS
from tvm_dual.calibration import CalibrationData, Observations
from tvm_dual.compiler import Compiler
from tvm_dual.cost import bytes_read, weight_bytes
from tvm_dual.errors import PlanError
from tvm_dual.fitting import SiteFit, fit_site
from tvm_dual.gates import EFFORTS, RULES, thresholds
from tvm_dual.library import DualLibrary
from tvm_dual.measure import median_microseconds, open_share
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan, SitePlan, Trial
from tvm_dual.quality import Quality
from tvm_dual.sites import Site

Forms = dict[str, tuple[str, str]]
#: A gated form must beat an exact one by this factor to be worth its error.
WORTH = 0.98
#: First bounds that the search tries, per rule, from closed to open.
LADDER = {
    "damage": tuple(1.6 / 2**i for i in range(11)),
    "activation": tuple(0.5 / 2**i for i in range(12)),
}
#: Rows open while forms are compared, before the bound is known.
PROVISIONAL_DENSITY = 0.15


@dataclass(frozen=True, eq=False)
class Model:
    """What planning works on.

    Attributes
    ----------
    sites : dict of Site
    observations : dict of Observations
    data : CalibrationData
    compiler : Compiler
    precision : str
    options : AdvancedOptions
    """

    sites: dict[str, Site]
    observations: dict[str, Observations]
    data: CalibrationData
    compiler: Compiler
    precision: str
    options: AdvancedOptions

    @property
    def longest(self) -> np.ndarray:
        """The longest stream, for timing."""
        return max(self.data.streams, key=len)


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to compute the model, compiled, whose bound can still change."""

    forms: Forms
    fits: dict[str, SiteFit]
    rule: str
    library: DualLibrary
    model: Model

    def set_limit(self, limit: float) -> None:
        """Gate at `limit`."""
        tables = _tables(self.model, self.forms, self.fits, self.rule, limit)
        one = EFFORTS.index(1.0)
        self.library.set_thresholds({name: table[one : one + 1] for name, table in tables.items()})


def make_plan(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> DualLibrary:
    """Return the library of a model, with its plan.

    The steps: exact forms and gated forms of every matrix are timed in the whole model; the bound of
    the gates is searched under the quality budget, for each rule; the faster rule is kept, and all
    of it only if it beats the exact forms.
    """
    fits = _Fits(model)
    if model.options.mode != "dual":
        only = fits.variant({name: _mode_form(site, model.options.mode) for name, site in model.sites.items()})
        return _final(model, only, None, _plan(model, quality, only, None, []))
    exact = _best_exact(model, fits, progress)
    exact_time = median_microseconds([exact.library], model.longest)[0]
    gated = _best_gated(model, fits, exact, progress)
    searches = []
    if gated is not None:
        rules = RULES if model.options.rule == "auto" else (model.options.rule,)
        searches = [_search(model, quality, fits.variant(gated.forms, rule), progress) for rule in rules]
    trials = [trial for found in searches for trial in found.trials]
    accepted = [found for found in searches if found.limit is not None]
    best = min(accepted, key=lambda found: found.microseconds, default=None)
    if best is None or best.microseconds > WORTH * exact_time:
        return _final(model, exact, None, _plan(model, quality, exact, None, trials))
    return _final(model, best.variant, best.limit, _plan(model, quality, best.variant, best, trials))


def apply_plan(model: Model, quality: Quality, plan: Plan) -> DualLibrary:
    """Return the library of a model by the forms and bounds of an earlier plan.

    Raises
    ------
    PlanError
        If the plan's sites are not the model's.
    """
    planned = {site.name: site for site in plan.sites}
    if {name: site.kind for name, site in model.sites.items()} != {name: site.kind for name, site in planned.items()}:
        raise PlanError(f"plan: sites {sorted(planned)}; the model has {sorted(model.sites)}. Plan this model anew")
    rules = {site.rule for site in plan.sites if site.rule} or {"damage"}
    limits = {site.limit for site in plan.sites if site.rule} or {None}
    variant = _Fits(model).variant({name: (site.input, site.hidden) for name, site in planned.items()}, rules.pop())
    limit = limits.pop()
    if limit is not None:
        variant.set_limit(limit)
    search = None if limit is None else Search(variant, [], limit, quality.judge(variant.library), 0.0)
    return _final(model, variant, limit, _plan(model, quality, variant, search, []))


class _Fits:
    """Little modules, each fitted once, and the variants built from them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[tuple[str, bool], SiteFit] = {}
        self._means = {
            name: tuple(values.mean(axis=0) for values in seen.inputs) for name, seen in model.observations.items()
        }

    def fit(self, name: str, forms: tuple[str, str]) -> SiteFit:
        model, both = self._model, forms[0] in ("rows", "little")
        if (name, both) not in self._known:
            site, options = model.sites[name], model.options
            inputs = site.n_inputs * both + site.hidden if site.kind == "gru" else site.n_inputs
            self._known[name, both] = fit_site(
                site,
                model.observations[name],
                model.sites,
                both=both,
                dimensions=options.site_size(name, inputs),
                projection=options.projection,
                bits=options.little_bits,
            )
        return self._known[name, both]

    def variant(
        self, forms: Forms, rule: str = "damage", limit: float | None = None, plan: Plan | None = None
    ) -> Variant:
        model = self._model
        fits = {name: self.fit(name, form) for name, form in forms.items() if {"rows", "little"} & set(form)}
        tables = {} if limit is None else _tables(model, forms, fits, rule, limit)
        library = model.compiler.compile(
            {name: model.compiler.form(model.precision, *form, rule) for name, form in forms.items()},
            {name: fit.little for name, fit in fits.items()},
            {name: fit.spread for name, fit in fits.items()},
            self._means,
            tables,
            plan=plan,
        )
        return Variant(forms, fits, rule, library, model)


@dataclass(frozen=True, eq=False)
class Search:
    """The result of a search for one rule: `limit` is None if no bound met the budget."""

    variant: Variant
    trials: list[Trial]
    limit: float | None
    quality: float
    microseconds: float


def _search(model: Model, quality: Quality, variant: Variant, progress) -> Search:
    """Find the largest bound, that is the fewest open rows, within the quality budget."""
    ladder, trials = LADDER[variant.rule], []
    total = len(ladder) + model.options.search_steps

    def attempt(limit: float) -> Trial:
        progress(f"thresholds, rule {variant.rule}", len(trials), total)
        variant.set_limit(limit)
        value = quality.judge(variant.library)
        density = _density(variant.library, model.data.streams)
        time = median_microseconds([variant.library], model.longest, rounds=3)[0]
        trials.append(Trial(variant.rule, limit, density, value, time))
        return trials[-1]

    failed = found = None
    for limit in ladder:
        trial = attempt(limit)
        if quality.accepts(trial.quality):
            found = trial
            break
        failed = limit
    for _ in range(model.options.search_steps if found and failed else 0):
        trial = attempt(float(np.sqrt(failed * found.limit)))
        if quality.accepts(trial.quality):
            found = trial
        else:
            failed = trial.limit
    progress(f"thresholds, rule {variant.rule}", total, total)
    if found is None:
        return Search(variant, trials, None, float("nan"), float("inf"))
    return Search(variant, trials, found.limit, found.quality, found.microseconds)


def _density(library: DualLibrary, streams: tuple[np.ndarray, ...]) -> float:
    """Open rows / gated rows of the whole model, on part of the data."""
    rows = library.all_rows()
    shares = open_share(library, tuple(stream[:200] for stream in streams))
    return sum(shares[name] * rows[name] for name in rows) / max(1, sum(rows.values()))


def _best_exact(model: Model, fits: _Fits, progress) -> Variant:
    """Choose between every row and zero skipping, per matrix, in the whole model."""
    skipping = {name: _exact_form(site, site.nonnegative) for name, site in model.sites.items()}
    choices = [skipping]
    for name, site in model.sites.items():
        if site.nonnegative:
            choices.append(skipping | {name: _exact_form(site, False)})
    variants = []
    for i, forms in enumerate(choices):
        progress("exact forms", i, len(choices))
        variants.append(fits.variant(forms))
    times = median_microseconds([v.library for v in variants], model.longest)
    progress("exact forms", len(choices), len(choices))
    best = dict(skipping)
    for forms, time in zip(choices[1:], times[1:], strict=True):
        if time < times[0]:
            best |= {name: form for name, form in forms.items() if form != skipping[name]}
    return variants[choices.index(best)] if best in choices else fits.variant(best)


def _best_gated(model: Model, fits: _Fits, exact: Variant, progress) -> Variant | None:
    """Choose which matrices are gated, by time in the whole model at a provisional density."""
    start = {}
    for name, site in model.sites.items():
        form = exact.forms[name]
        if site.can_gate and name not in model.options.keep_dense:
            form = tuple("rows" if part == "dense" else part for part in form)
        start[name] = form
    if start == exact.forms:
        return None
    limit = _provisional_limit(model, fits.variant(start))
    choices = [start, *_one_step_away(model, start, exact.forms)]
    variants = []
    for i, forms in enumerate(choices):
        progress("gated forms", i, len(choices))
        variants.append(fits.variant(forms))
        variants[-1].set_limit(limit)
    times = median_microseconds([v.library for v in variants], model.longest)
    progress("gated forms", len(choices), len(choices))
    best, spent = dict(start), dict.fromkeys(start, times[0])
    for forms, time in zip(choices[1:], times[1:], strict=True):
        (name,) = [n for n in forms if forms[n] != start[n]]
        more_gates = forms[name].count("rows") > start[name].count("rows")
        # A gate costs quality, so it has to be clearly faster; an exact form only has to be faster.
        if time < spent[name] * (WORTH if more_gates else 1.0):
            best[name], spent[name] = forms[name], time
    if not any("rows" in form for form in best.values()):
        return None
    return variants[choices.index(best)] if best in choices else fits.variant(best)


def _one_step_away(model: Model, start: Forms, exact: Forms) -> list[Forms]:
    """Forms that differ from `start` in one matrix: exact instead of gated, gated instead of skipping."""
    found = []
    for name, form in start.items():
        if not model.sites[name].can_gate or name in model.options.keep_dense:
            continue
        for part, value in enumerate(form):
            other = exact[name][part] if value == "rows" else "rows" if value == "columns" else None
            if other is not None:
                changed = (*form[:part], other, *form[part + 1 :])
                # The little module of a GRU predicts the state's half: it is gated if the input's is.
                if model.sites[name].kind == "dense" or changed != ("rows", "dense"):
                    found.append(start | {name: changed})
    return found


def _provisional_limit(model: Model, variant: Variant) -> float:
    """Return the bound that opens about `PROVISIONAL_DENSITY` of the gated rows."""
    ladder = LADDER[variant.rule]
    for limit in ladder:
        variant.set_limit(limit)
        if _density(variant.library, model.data.streams[:4]) >= PROVISIONAL_DENSITY:
            return limit
    return ladder[-1]


def _exact_form(site: Site, skip: bool) -> tuple[str, str]:
    return ("columns" if skip else "dense", "dense" if site.kind == "gru" else "")


def _mode_form(site: Site, mode: str) -> tuple[str, str]:
    """Return the form of a site where no choice is left: every row, zero skipping, or the little module."""
    if mode == "little" and site.can_gate:
        return ("columns", "little") if site.kind == "gru" and site.nonnegative else _little_form(site)
    return _exact_form(site, mode != "dense" and site.nonnegative)


def _little_form(site: Site) -> tuple[str, str]:
    if site.nonnegative:
        return ("columns", "")
    return ("little", "little" if site.kind == "gru" else "")


def _tables(model: Model, forms: Forms, fits: dict[str, SiteFit], rule: str, limit: float) -> dict[str, np.ndarray]:
    """Return the thresholds of all gated sites, for all efforts."""
    found = {}
    for name, fit in fits.items():
        if "rows" not in forms[name]:
            continue
        site, factor = model.sites[name], model.options.site_factors.get(name, 1.0) if rule == "damage" else 1.0
        spread = fit.little.spread if site.kind == "dense" else fit.spread
        found[name] = thresholds(site, rule, limit / factor, spread, fit.weights)
    return found


def _final(model: Model, variant: Variant, limit: float | None, plan: Plan) -> DualLibrary:
    fits = _Fits(model)
    fits._known = {(name, variant.forms[name][0] == "rows"): fit for name, fit in variant.fits.items()}
    return fits.variant(variant.forms, variant.rule, limit, plan).library


def _plan(model: Model, quality: Quality, variant: Variant, search: Search | None, trials: list[Trial]) -> Plan:
    if search is not None:
        variant.set_limit(search.limit)
    shares = open_share(variant.library, model.data.streams) if variant.fits else {}
    reference = model.compiler.compile(
        {name: model.compiler.form(model.precision, *_exact_form(site, False)) for name, site in model.sites.items()}
    )
    dense_time, time = median_microseconds([reference, variant.library], model.longest)
    sites = tuple(_site_plan(model, site, variant, search, shares.get(name, 1.0)) for name, site in model.sites.items())
    return Plan(
        sites=sites,
        precision=model.precision,
        isa=model.compiler.isa,
        threads=model.compiler.threads,
        quality_kind=quality.kind,
        dense_quality=quality.dense,
        quality=search.quality if search else quality.judge(variant.library),
        max_drop=quality.max_drop,
        dense_microseconds=dense_time,
        microseconds=time,
        efforts=EFFORTS,
        calibration_hash=model.data.digest,
        samples=model.data.calls,
        trials=tuple(trials),
    )


def _site_plan(model: Model, site: Site, variant: Variant, search: Search | None, density: float) -> SitePlan:
    forms, fit = variant.forms[site.name], variant.fits.get(site.name)
    gated = "rows" in forms
    read = bytes_read(
        site,
        forms,
        model.precision,
        density,
        model.observations[site.name],
        fit.little if fit else None,
        ISAS[model.compiler.isa],
    )
    plan = SitePlan(
        site.name,
        site.kind,
        *forms,
        model.precision,
        weight_bytes=weight_bytes(site, model.precision),
        bytes_read=read,
        reason=_reason(model, site, forms),
    )
    if not gated:
        return plan
    return replace(
        plan,
        rule=variant.rule,
        projection=model.options.projection,
        dimensions=fit.little.module.weight.shape[1],
        little_bits=model.options.little_bits,
        limit=search.limit,
        density=density,
    )


def _reason(model: Model, site: Site, forms: tuple[str, str]) -> str:
    zeros = float((model.observations[site.name].inputs[0] == 0).mean())
    parts = []
    if "columns" in forms:
        parts.append(f"{zeros:.0%} of the inputs are zero")
    if "rows" in forms:
        parts.append("gated rows were fastest in the whole model")
    if not parts:
        why = (
            "kept by option"
            if site.name in model.options.keep_dense
            else "exact was fastest, or no gate met the budget"
        )
        parts.append(why if site.can_gate else "this form of layer has no gated kernel")
    return "; ".join(parts)
