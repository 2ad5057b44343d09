"""RewriteRecurrent: a planned GRU site becomes one step of kernels.

Dual form: project, little; the update gate's rows are gated and computed first, then those of the
reset gate and the candidate, whose damage depends on the update gate; then the pointwise update.
The same list of open rows serves the input's and the state's matrix; a matrix in an exact form
(``dense``, or ``columns`` where inputs are mostly zero) is computed whole, and the little module
predicts the other alone. Only sites that see one vector per call are rewritten.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.products import Products
from relay_passes.site_plan import SiteForm, planned_bias, read_form, read_little
from relay_passes.site_rewriter import SiteRewriter, StepCall
from relay_passes.step import StepBuilder
from schedules import gate, recurrent
from schedules.registry import kernel

#: Length of a GRU's thresholds: damage bound, sigmoid band (low, high), tanh band.
LIMITS = 4


@tvm.transform.module_pass(opt_level=0, name="RewriteRecurrent")
class RewriteRecurrent:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned GRU site as a step of kernels."""
        return SiteRewriter(module, "dual.gru", _rewrite).run()


def _rewrite(function: relax.Function, call: relax.Call) -> StepCall | None:
    form = read_form(function)
    if form is None:
        return None
    weight, recurrence, bias = (argument.value.numpy() for argument in call.args[2:5])
    hidden, k, n = recurrence.shape[1], weight.shape[1], weight.shape[0]
    biases = planned_bias(function, 0, weight, bias[:n]), planned_bias(function, 1, recurrence, bias[n:])
    cell = _Cell(form, weight, recurrence, biases, bool(function.attrs["dual.nonnegative"]))
    with StepBuilder() as step:
        x, h = step.input("x", (k,)), step.input("h", (hidden,))
        products = Products(step, form.level(), form.precision, form.threads)
        if not int(function.attrs["linear_before_reset"]):
            result, counts = cell.early_reset(step, products, x, h), []
        elif form.gated:
            result, counts = cell.gated(step, products, x, h, function)
        else:
            result, counts = cell.ungated(step, products, x, h, function), []
        step.finish(result, *counts)
    time, directions, batch, _ = (int(extent) for extent in call.ty.fields[0].shape)
    shapes = [(time, directions, batch, hidden), (1, batch, hidden)]
    return StepCall(
        step,
        inputs=[(call.args[0], (k,)), (call.args[1], (hidden,))],
        outputs=shapes,
        threshold=(LIMITS,) if form.gated else None,
    )


class _Cell:
    """The stages of one GRU cell."""

    def __init__(self, form: SiteForm, weight, recurrence, biases, nonnegative: bool) -> None:
        self._form, self._weight, self._recurrence, self._nonnegative = form, weight, recurrence, nonnegative
        self._input_bias, self._hidden_bias = biases
        self._hidden = recurrence.shape[1]

    def _given(self, products: Products, x) -> relax.Var:
        return products.exact(
            self._form.input, "input", x, self._weight, self._input_bias, nonnegative=self._nonnegative
        )

    def _predicted(self, step, products, x, h, function):
        """Return predictions of both halves; an exact half is computed, not predicted."""
        little, isa = read_little(function), self._form.level()
        if self._form.input in ("rows", "little"):
            both = products.little(little, [(x, self._nonnegative), (h, False)])
            return step.call("split", kernel(gate.split_predictions, isa, self._hidden), both)
        return self._given(products, x), products.little(little, [(h, False)])

    def ungated(self, step, products, x, h, function) -> relax.Var:
        """Both halves exact, or as the little module predicts them."""
        if self._form.needs_little:
            given, hidden = self._predicted(step, products, x, h, function)
        else:
            given = self._given(products, x)
            hidden = products.dense("hidden", h, self._recurrence, self._hidden_bias)
        return step.call(
            "pointwise", kernel(recurrent.gru_pointwise, self._form.level(), self._hidden), given, hidden, h
        )

    def gated(self, step, products, x, h, function) -> tuple[relax.Var, list[relax.Var]]:
        """Two gates in turn: update gate, then reset gate and candidate."""
        isa, rule = self._form.level(), self._form.rule
        limits = step.input("limits", (LIMITS,))
        spread = step.operand("spread", function.attrs["dual.spread"].numpy())
        given, hidden = self._predicted(step, products, x, h, function)
        stage = kernel(gate.gru_update_gate, isa, self._hidden, rule)
        rows, first = step.call("update_gate", stage, given, hidden, h, spread, limits)
        given, hidden = self._open_rows(products, x, h, given, hidden, rows, first)
        stage = kernel(gate.gru_candidate_gate, isa, self._hidden, rule)
        rows, second = step.call("candidate_gate", stage, given, hidden, spread, limits)
        given, hidden = self._open_rows(products, x, h, given, hidden, rows, second)
        result = step.call("pointwise", kernel(recurrent.gru_pointwise, isa, self._hidden), given, hidden, h)
        return result, [first, second]

    def _open_rows(self, products, x, h, given, hidden, rows, count):
        state = (h, self._recurrence, self._hidden_bias)
        if self._form.input == "rows":
            input_ = (x, self._nonnegative, self._weight, self._input_bias)
            return products.gated_pairs("both", input_, state, rows, count, (given, hidden))
        return given, products.gated("hidden", *state, rows, count, hidden)

    def early_reset(self, step, products, x, h) -> relax.Var:
        """``linear_before_reset = 0``: the reset gate acts on the state before its product."""
        n, isa = self._hidden, self._form.level()
        given = self._given(products, x)
        gates = products.dense("gates", h, self._recurrence[: 2 * n], self._hidden_bias[: 2 * n])
        reset = step.call("reset", kernel(recurrent.reset_state, isa, n), given, gates, h)
        candidate = products.dense("candidate", reset, self._recurrence[2 * n :], self._hidden_bias[2 * n :])
        return step.call("pointwise", kernel(recurrent.gru_pointwise_early, isa, n), given, gates, candidate, h)
