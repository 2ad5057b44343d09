"""RewriteLstm: a planned LSTM site becomes one step of kernels.

Dual form: project, little, one gate for the rows of all four gates, open rows, pointwise update. A
little module that sees input and state predicts the sum of their halves.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.products import Products
from relay_passes.recurrent_site import RecurrentSite, read_site
from relay_passes.site_rewriter import SiteCall, SiteRewriter
from relay_passes.step import StepBuilder
from schedules.lstm import lstm_pointwise
from schedules.lstm_gate import lstm_gate
from schedules.registry import kernel


@tvm.transform.module_pass(opt_level=0, name="RewriteLstm")
class RewriteLstm:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned LSTM site as a step of kernels."""
        return SiteRewriter(module, {"dual.lstm": _rewrite}).run()


def _rewrite(function: relax.Function, call: relax.Call) -> SiteCall | None:
    site = read_site(function, call, states=2)
    if site is None:
        return None
    with StepBuilder() as step:
        products = Products(step, site.isa, site.form.precision, site.form.threads)
        x, h, c = site.input(step, products), step.input("h", (site.hidden,)), step.input("c", (site.hidden,))
        halves, counts = _halves(site, step, products, x, h), []
        if site.form.gated:
            limits, spread = step.input("limits", site.limits), site.spread(step)
            stage = kernel(lstm_gate, site.isa, site.hidden, site.form.rule)
            rows, count = step.call("gate", stage, *halves, c, spread, limits)
            halves = site.open_rows(products, x, h, halves, rows, count)
            counts.append(count)
        states = step.call("pointwise", kernel(lstm_pointwise, site.isa, site.hidden), *halves, c)
        step.finish(*states, *counts)
    return site.site_call(step, x)


def _halves(site: RecurrentSite, step, products, x, h) -> tuple[relax.Var, relax.Var]:
    """Return both halves, exact or as the little module predicts them; their sum counts as the input's."""
    if site.predicts_both:
        nothing = step.operand("nothing", np.zeros(len(site.weight), "float32"))
        return site.little(products, x, h), nothing
    given = site.given(products, x)
    return given, site.little(products, x, h) if site.form.needs_little else site.exact_hidden(products, x, h)
