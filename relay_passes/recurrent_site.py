"""What the rewrites of recurrent layers share: a planned site's matrices, and the products of both halves.

The same list of open rows serves the input's and the state's matrix; a matrix in an exact form
(``dense``, or ``columns`` where inputs are mostly zero) is computed whole, and the little module
predicts the other alone. Where a call sees a sequence, the exact half of the inputs is computed for
all of it at once, and the step that a loop repeats starts from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.expose_inputs import is_sequence
from relay_passes.products import Products
from relay_passes.sequence_call import BatchedProduct, SequenceCall
from relay_passes.site_plan import SiteForm, planned_bias, read_form, read_little
from relay_passes.site_rewriter import SiteCall, StepCall
from relay_passes.step import StepBuilder
from schedules.cpu import Isa

#: Thresholds of each gate of a recurrent layer; see `schedules.gate`.
LIMITS = 2


@dataclass(frozen=True, eq=False)
class RecurrentSite:
    """A planned recurrent layer.

    Attributes
    ----------
    form : SiteForm
    function, call : Function, Call
        Of ``main``: ``call(x, states..., weight, recurrence, bias)``.
    states : int
        How many states it carries: 1 for a GRU, 2 for an LSTM.
    weight, recurrence : ndarray, float32, (n, k) and (n, h)
    input_bias, hidden_bias : ndarray, float32, (n,)
        Corrected for quantized weights.
    """

    form: SiteForm
    function: relax.Function
    call: relax.Call
    states: int
    weight: np.ndarray
    recurrence: np.ndarray
    input_bias: np.ndarray
    hidden_bias: np.ndarray

    @property
    def isa(self) -> Isa:
        """Instruction set level to generate for."""
        return self.form.level()

    @property
    def n_inputs(self) -> int:
        """Length of the input vector."""
        return self.weight.shape[1]

    @property
    def hidden(self) -> int:
        """Number of units."""
        return self.recurrence.shape[1]

    @property
    def limits(self) -> tuple[int, int]:
        """Shape of the thresholds."""
        return len(self.weight) // self.hidden, LIMITS

    @property
    def predicts_both(self) -> bool:
        """Whether the little module predicts from input and state; otherwise from the state alone."""
        return self.form.input in ("rows", "little")

    @property
    def _nonnegative(self) -> bool:
        return bool(self.function.attrs["dual.nonnegative"])

    @property
    def is_sequence(self) -> bool:
        """Whether a call may see more than one vector."""
        return is_sequence(self.call)

    @property
    def _is_batched(self) -> bool:
        """Whether the inputs' half is computed for the whole sequence at once."""
        return self.is_sequence and self.form.input == "dense"

    def input(self, step: StepBuilder) -> relax.Var:
        """Declare what a step reads: an input, or its half of the pre-activations if that is known already."""
        return step.input("given", (len(self.weight),)) if self._is_batched else step.input("x", (self.n_inputs,))

    def given(self, products: Products, x: relax.Var) -> relax.Var:
        """Return the input's half of the pre-activations, exact; `x` is from `input`."""
        if self._is_batched:
            return x
        return products.exact(self.form.input, "input", x, self.weight, self.input_bias, nonnegative=self._nonnegative)

    def exact_hidden(self, products: Products, h: relax.Var) -> relax.Var:
        """Return the state's half of the pre-activations, exact."""
        return products.dense("hidden", h, self.recurrence, self.hidden_bias)

    def little(self, products: Products, x: relax.Var, h: relax.Var) -> relax.Var:
        """Return what the little module predicts."""
        inputs = [(x, self._nonnegative)] if self.predicts_both else []
        return products.little(read_little(self.function), [*inputs, (h, False)])

    def spread(self, step: StepBuilder) -> relax.Var:
        """Declare what the gate multiplies slopes by."""
        return step.operand("spread", self.function.attrs["dual.spread"].numpy())

    def open_rows(self, products: Products, x, h, closed, rows, count) -> tuple[relax.Var, relax.Var]:
        """Return both halves with the open rows of gated matrices computed; `closed` are both halves before."""
        given, hidden = closed
        state = (h, self.recurrence, self.hidden_bias)
        if self.form.input == "rows":
            input_ = (x, self._nonnegative, self.weight, self.input_bias)
            return products.gated_pairs("both", input_, state, rows, count, closed)
        return given, products.gated("hidden", *state, rows, count, hidden)

    def site_call(self, step: StepBuilder) -> SiteCall:
        """Return how ``main`` calls a finished step ``(x, states...[, limits]) -> (states..., counts...)``."""
        return self._sequence_call(step) if self.is_sequence else self._step_call(step)

    def _sequence_call(self, step: StepBuilder) -> SequenceCall:
        product = None
        if self._is_batched:
            product = BatchedProduct(
                self.isa, self.form.precision, self.form.threads, self.weight, self.input_bias, self._nonnegative
            )
        x, *states = self.call.args[: 1 + self.states]
        return SequenceCall(step, x, states, product, threshold=self.limits if self.form.gated else None)

    def _step_call(self, step: StepBuilder) -> StepCall:
        arguments, (y, *states) = self.call.args, self.call.ty.fields
        y, *states = ([int(extent) for extent in field.shape] for field in (y, *states))
        return StepCall(
            step,
            inputs=[(arguments[0], (self.n_inputs,)), *((a, (self.hidden,)) for a in arguments[1 : 1 + self.states])],
            # The output of one step is the new state h.
            outputs=[[y, states[0]], *([state] for state in states[1:])],
            threshold=self.limits if self.form.gated else None,
        )


def read_site(function: relax.Function, call: relax.Call, states: int) -> RecurrentSite | None:
    """Return a recurrent site as its function and its call in ``main`` describe it, None if it is not planned."""
    form = read_form(function)
    if form is None:
        return None
    weight, recurrence, bias = (argument.value.numpy() for argument in call.args[1 + states : 4 + states])
    n = len(weight)
    biases = planned_bias(function, 0, weight, bias[:n]), planned_bias(function, 1, recurrence, bias[n:])
    return RecurrentSite(form, function, call, states, weight, recurrence, *biases)
