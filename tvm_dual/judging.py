"""Judging fine-tuned little modules beside the closed form: which of them a plan uses."""

from __future__ import annotations

from dataclasses import replace

from tvm_dual.model import Model
from tvm_dual.plan import FineTuning
from tvm_dual.quality import Quality
from tvm_dual.search import Search, provisional_limit, search_limit, try_limit
from tvm_dual.variants import Fits, Variant

#: The bound that modules are trained around and compared at, as a multiple of the provisional one: trained
#: modules need fewer open rows.
TYPICAL = 2.0


def tune(model: Model, quality: Quality, fits: Fits, gated: Variant, progress) -> FineTuning | None:
    """Train little modules; `fits` goes on with them if they judge better than those of `gated` at one bound.

    Returns None if nothing was to be trained: no steps were asked for, or no recurrent layer is gated.
    """
    if not model.options.finetune_steps:
        return None
    limit = provisional_limit(model, gated)
    if model.options.closed_share is None:
        limit *= TYPICAL
    if not fits.finetune(gated.forms, limit, progress):
        return None
    trials = [try_limit(model, quality, variant, limit) for variant in (gated, fits.variant(gated.forms))]
    found = FineTuning(model.options.finetune_steps, *trials)
    if not found.kept:
        fits.forget_tuned()
    return found


def compare_in_budget(
    model: Model, quality: Quality, fits: Fits, gated: Variant, found: FineTuning | None, best: Search, progress
) -> FineTuning | None:
    """Return `found` with what the closed forms of `gated` come to within the budget, beside the tuned `best`."""
    if found is None or not found.kept or model.options.closed_share is not None:
        return found
    # What judges worse at one bound needs a lower one, so the search begins where the other ended.
    closed = search_limit(model, quality, fits.ruled(gated, best.variant.rule), progress, best.found.limit)
    return replace(found, closed_form_in_budget=closed.found, tuned_in_budget=best.found)
