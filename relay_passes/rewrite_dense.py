"""RewriteDense: a planned dense site becomes project, little, gate, gated rows, epilogue.

A site whose form has no gate becomes its exact product and epilogue. Only sites that see one vector
per call are rewritten: the kernels are matrix-vector kernels.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from relay_passes.mark_sites import layer_activation
from relay_passes.products import Products
from relay_passes.site_plan import planned_bias, read_form, read_little
from relay_passes.site_rewriter import SiteRewriter, StepCall
from relay_passes.step import StepBuilder
from schedules.epilogue import activation
from schedules.gate import band_gate
from schedules.registry import kernel


@tvm.transform.module_pass(opt_level=0, name="RewriteDense")
class RewriteDense:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned dense site as a step of kernels."""
        return SiteRewriter(module, {"dual.dense": _rewrite}).run()


def _rewrite(function: relax.Function, call: relax.Call) -> StepCall | None:
    form = read_form(function)
    if form is None:
        return None
    weight, bias = _constants(call)
    bias = planned_bias(function, 0, weight, bias)
    n, k = weight.shape
    isa, nonnegative = form.level(), bool(function.attrs["dual.nonnegative"])
    with StepBuilder() as step:
        x = step.input("x", (k,))
        products = Products(step, isa, form.precision, form.threads)
        if form.needs_little:
            predicted = products.little(read_little(function), [(x, nonnegative)])
        counts = []
        if form.gated:
            band = step.input("band", (2, n))
            rows, count = step.call("gate", kernel(band_gate, isa, n), predicted, band)
            y = products.gated("big", x, weight, bias, rows, count, predicted, nonnegative=nonnegative)
            counts.append(count)
        elif form.needs_little:
            y = predicted
        else:
            y = products.exact(form.input, "big", x, weight, bias, nonnegative=nonnegative)
        step.finish(step.call("epilogue", kernel(activation, n, layer_activation(function)), y), *counts)
    return StepCall(
        step, inputs=[(call.args[0], (k,))], outputs=[[tuple(call.ty.shape)]], threshold=(2, n) if form.gated else None
    )


def _constants(call: relax.Call):
    """Return weight ``(n, k)`` and bias ``(n,)`` or None of a dense site's call."""
    arrays = [a.value.numpy() for a in call.args if isinstance(a, GenericConst)]
    weight = next(a for a in arrays if a.ndim == 2).T
    return weight, next((a for a in arrays if a.ndim == 1), None)
