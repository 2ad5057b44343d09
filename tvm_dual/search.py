"""Searching: the form of each matrix by measured time, the bound of the gates by measured quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from relay_passes.site_plan import GATED
from tvm_dual.calibration import InputStream
from tvm_dual.forms import Forms, exact_form, forms_beside, gated_form
from tvm_dual.gates import FAR
from tvm_dual.library import DualLibrary
from tvm_dual.measure import median_microseconds, open_share
from tvm_dual.model import Model
from tvm_dual.plan import Trial
from tvm_dual.quality import Quality
from tvm_dual.variants import Fits, Limits, Variant

#: A gated form must beat an exact one by this factor to be worth its error.
WORTH = 0.98
#: First bounds that the search tries, per rule, from closed to open.
LADDER = {
    "damage": tuple(1.6 / 2**i for i in range(11)),
    "activation": tuple(0.5 / 2**i for i in range(12)),
}
#: Bounds between which every share of closed rows lies, by either rule.
BRACKET = (1e-9, 1e4)
#: How close a wanted share must come, and halvings at most: a rule may jump.
TOLERANCE, HALVINGS = 0.004, 32
#: Calls of each stream that density is measured on.
DENSITY_CALLS = 200
#: Streams, and calls of each, that a share is measured on: once for every halving.
SHARE_STREAMS, SHARE_CALLS = 4, 100
#: Rows open while forms are compared, before the bound is known.
PROVISIONAL_DENSITY = 0.05


@dataclass(frozen=True, eq=False)
class Search:
    """The bound found for one rule: `found` is None if none met the budget."""

    variant: Variant
    trials: list[Trial]
    found: Trial | None


def search_limit(model: Model, quality: Quality, variant: Variant, progress, highest: float | None = None) -> Search:
    """Find the largest bound up to `highest`, that is the fewest open rows, within the quality budget."""
    ladder, trials = LADDER[variant.rule], []
    if variant.rule == "damage":
        # First the little modules alone: where they meet the budget, nothing needs a gate.
        ladder = (FAR, *ladder)
    if highest is not None:
        ladder = (highest, *(limit for limit in ladder if limit < highest))
    total = len(ladder) + model.options.search_steps

    def attempt(limit: float) -> Trial:
        progress(f"thresholds, rule {variant.rule}", len(trials), total)
        trials.append(try_limit(model, quality, variant, limit))
        return trials[-1]

    failed = found = None
    for limit in ladder:
        trial = attempt(limit)
        if quality.accepts(trial.quality):
            found = trial
            break
        failed = limit
    for _ in range(model.options.search_steps if found and failed not in (None, FAR) else 0):
        trial = attempt(float(np.sqrt(failed * found.limit)))
        if quality.accepts(trial.quality):
            found = trial
        else:
            failed = trial.limit
    progress(f"thresholds, rule {variant.rule}", total, total)
    return Search(variant, trials, found)


def try_limit(model: Model, quality: Quality, variant: Variant, limit: Limits) -> Trial:
    """Return what becomes of the model at a bound, or at one for each site."""
    variant.set_limit(limit)
    value = quality.judge(variant.library)
    density = _density(variant.library, model.data.streams)
    time = median_microseconds([variant.library], model.longest, rounds=3)[0]
    by_site = {"limit": 0.0, "limits": dict(limit)} if isinstance(limit, Mapping) else {"limit": limit}
    return Trial(variant.rule, density=density, quality=value, microseconds=time, **by_site)


def close_share(model: Model, quality: Quality, variant: Variant, progress) -> Search:
    """Take the bound that closes the wanted share of rows, whatever the quality."""
    phase = f"thresholds, rule {variant.rule}"
    progress(phase, 0, 1)
    trial = try_limit(model, quality, variant, limit_at_share(variant, model.options.closed_share))
    progress(phase, 1, 1)
    return Search(variant, [trial], trial)


def limit_at_share(variant: Variant, closed: float) -> float:
    """Return the bound at which the share `closed` of all gated rows is closed, above 0; 1 closes all.

    The share is reached on the calibration data, as far as the rule can: it may jump, and rows without a
    nonlinearity are always open to the activation rule. The thresholds of the variant's library are changed.
    """
    if closed == 1:
        return FAR
    low, high = BRACKET
    for _ in range(HALVINGS):
        limit = float(np.sqrt(low * high))
        variant.set_limit(limit)
        found = 1 - share_open(variant)
        if abs(found - closed) <= TOLERANCE:
            break
        # A higher bound closes more rows.
        low, high = (limit, high) if found < closed else (low, limit)
    return limit


def share_open(variant: Variant) -> float:
    """Return open rows / gated rows, as `limit_at_share` measures it."""
    streams = variant.model.data.streams[:SHARE_STREAMS]
    return _density(variant.library, tuple(stream[:SHARE_CALLS] for stream in streams))


def best_exact(model: Model, fits: Fits, progress) -> Variant:
    """Choose between every row and zero skipping, per matrix, in the whole model."""
    skips = {name: site.nonnegative and not model.is_low(name) for name, site in model.sites.items()}
    skipping = {name: exact_form(site, skips[name]) for name, site in model.sites.items()}
    choices = [skipping]
    for name, site in model.sites.items():
        if skips[name]:
            choices.append(skipping | {name: exact_form(site, False)})
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


def best_gated(model: Model, fits: Fits, exact: Variant, progress) -> Variant | None:
    """Choose which matrices are gated, by time in the whole model at the share of open rows to expect."""
    start = {}
    for name, site in model.sites.items():
        form = exact.forms[name]
        if model.gates(name):
            form = gated_form(site, form, model.options.gates[0])
        start[name] = form
    if start == exact.forms:
        return None
    limit = provisional_limit(model, fits.variant(start))
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
        more_gates = _gates(forms[name]) > _gates(start[name])
        # A gate costs quality, so it has to be clearly faster; an exact form only has to be faster.
        if time < spent[name] * (WORTH if more_gates else 1.0):
            best[name], spent[name] = forms[name], time
    if not any(map(_gates, best.values())):
        return None
    return variants[choices.index(best)] if best in choices else fits.variant(best)


def _gates(form: tuple[str, str]) -> int:
    """Return how many of a site's matrices have a gate."""
    return sum(part in GATED for part in form)


def _one_step_away(model: Model, start: Forms, exact: Forms) -> list[Forms]:
    """Forms that differ from `start` in one matrix of one site."""
    found = []
    for name, form in start.items():
        if not model.gates(name):
            continue
        others = forms_beside(model.sites[name], form, exact[name])
        # On bytes and bf16 nothing skips zeros.
        found += [start | {name: changed} for changed in ([exact[name]] if model.is_low(name) else others)]
    return found


def provisional_limit(model: Model, variant: Variant) -> float:
    """Return the bound that opens about `PROVISIONAL_DENSITY` of the gated rows, or as many as are wanted."""
    if model.options.closed_share is not None:
        return limit_at_share(variant, model.options.closed_share)
    ladder = LADDER[variant.rule]
    for limit in ladder:
        variant.set_limit(limit)
        if _density(variant.library, model.data.streams[:4]) >= PROVISIONAL_DENSITY:
            return limit
    return ladder[-1]


def _density(library: DualLibrary, streams: tuple[InputStream, ...]) -> float:
    """Open rows / gated rows of the whole model, on part of the data."""
    rows, shares = library.all_rows(), open_share(library, [stream[:DENSITY_CALLS] for stream in streams])
    return sum(shares[name] * rows[name] for name in rows) / max(1, sum(rows.values()))
