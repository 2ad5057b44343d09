"""RewriteGru: a planned GRU site becomes one step of kernels.

Dual form: project, little; the update gate's rows are gated and computed first, then those of the
reset gate and the candidate, whose damage depends on the update gate; then the pointwise update.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.products import Products
from relay_passes.recurrent_site import RecurrentSite, read_site
from relay_passes.site_rewriter import SiteCall, SiteRewriter
from relay_passes.step import StepBuilder
from schedules import gate, recurrent
from schedules.registry import kernel


@tvm.transform.module_pass(opt_level=0, name="RewriteGru")
class RewriteGru:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned GRU site as a step of kernels."""
        return SiteRewriter(module, {"dual.gru": _rewrite}).run()


def _rewrite(function: relax.Function, call: relax.Call) -> SiteCall | None:
    site = read_site(function, call, states=1)
    if site is None:
        return None
    with StepBuilder() as step:
        products = Products(step, site.isa, site.form.precision, site.form.threads)
        x, h = site.input(step, products), step.input("h", (site.hidden,))
        if not int(function.attrs["linear_before_reset"]):
            result, counts = _early_reset(site, step, products, x, h), []
        elif site.form.gated:
            result, counts = _gated(site, step, products, x, h)
        else:
            result, counts = _ungated(site, step, products, x, h), []
        step.finish(result, *counts)
    return site.site_call(step, x)


def _predicted(site: RecurrentSite, step, products, x, h) -> tuple[relax.Var, relax.Var]:
    """Return predictions of both halves; an exact half is computed, not predicted."""
    if site.predicts_both:
        both = site.little(products, x, h)
        return step.call("split", kernel(gate.split_predictions, site.isa, site.hidden), both)
    return site.given(products, x), site.little(products, x, h)


def _ungated(site: RecurrentSite, step, products, x, h) -> relax.Var:
    """Both halves exact, or as the little module predicts them."""
    if site.form.needs_little:
        given, hidden = _predicted(site, step, products, x, h)
    else:
        given, hidden = site.given(products, x), site.exact_hidden(products, x, h)
    return step.call("pointwise", kernel(recurrent.gru_pointwise, site.isa, site.hidden), given, hidden, h)


def _gated(site: RecurrentSite, step, products, x, h) -> tuple[relax.Var, list[relax.Var]]:
    """Two gates in turn: update gate, then reset gate and candidate."""
    isa, n, rule = site.isa, site.hidden, site.form.rule
    limits, spread = step.input("limits", site.limits), site.spread(step)
    halves = _predicted(site, step, products, x, h)
    rows, first = step.call("update_gate", kernel(gate.gru_update_gate, isa, n, rule), *halves, h, spread, limits)
    halves = site.open_rows(products, x, h, halves, rows, first)
    rows, second = step.call("candidate_gate", kernel(gate.gru_candidate_gate, isa, n, rule), *halves, spread, limits)
    halves = site.open_rows(products, x, h, halves, rows, second)
    return step.call("pointwise", kernel(recurrent.gru_pointwise, isa, n), *halves, h), [first, second]


def _early_reset(site: RecurrentSite, step, products, x, h) -> relax.Var:
    """``linear_before_reset = 0``: the reset gate acts on the state before its product."""
    isa, n = site.isa, site.hidden
    recurrence, bias = site.recurrence, site.hidden_bias
    given = site.given(products, x)
    gates = products.dense("gates", h, recurrence[: 2 * n], bias[: 2 * n])
    reset = step.call("reset", kernel(recurrent.reset_state, isa, n), given, gates, h)
    candidate = products.dense("candidate", reset, recurrence[2 * n :], bias[2 * n :])
    return step.call("pointwise", kernel(recurrent.gru_pointwise_early, isa, n), given, gates, candidate, h)
