"""What the rewrites of recurrent layers share: a planned site's matrices, and the products of both halves.

The same list of open rows serves the input's and the state's matrix; a matrix in an exact form
(``dense``, or ``columns`` where inputs are mostly zero) is computed whole, and the little module
predicts the other alone. Where a call sees a sequence, what needs the inputs alone is computed for all
of it at once, and the step that a loop repeats starts from that: the exact half of the inputs, or their
bytes and their projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tvm import relax, tirx

from relay_passes.expose_inputs import is_sequence
from relay_passes.products import Products
from relay_passes.sequence_call import Preparation, SequenceCall, WholeSequence, state_product
from relay_passes.site_plan import SiteForm, planned_bias, read_form, read_little
from relay_passes.site_rewriter import SiteCall, StepCall
from relay_passes.step import StepBuilder
from schedules.cpu import Isa
from schedules.quantize import round_up

#: Thresholds of each gate of a recurrent layer; see `schedules.gate`.
LIMITS = 2


@dataclass(frozen=True, eq=False)
class StepInput:
    """What a step reads of its input; what it does not read is None.

    Attributes
    ----------
    vector : Var or None
        The input itself, or its bytes where `products` know them as such.
    given : Var or None
        The exact half of the pre-activations, if that is known before the step.
    projected : Var or None
        The input's share of what the little module starts from, if that is known before the step.
    hidden : Var or None
        The exact half of the state, if that is computed for all samples of a batch at once.
    preparations : tuple of Preparation
        Where a call sees a sequence: how it comes by these values, in the order in which they were declared.
    """

    vector: relax.Var | None = None
    given: relax.Var | None = None
    projected: relax.Var | None = None
    hidden: relax.Var | None = None
    preparations: tuple[Preparation, ...] = ()


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

    def input(self, step: StepBuilder, products: Products) -> StepInput:
        """Declare what a step reads beside its states."""
        found = self._input(step, products)
        return replace(found, hidden=step.input("hidden", (len(self.recurrence),))) if self._is_batched else found

    @property
    def _is_batched(self) -> bool:
        """Whether each step reads the state's matrix once for all samples: it is exact, and there may be several."""
        late_reset = int(self.function.attrs.get("linear_before_reset", 1))
        batch = self.call.args[0].ty.shape[1]
        return bool(
            self.form.hidden == "dense" and late_reset and not (isinstance(batch, tirx.IntImm) and int(batch) == 1)
        )

    def _input(self, step: StepBuilder, products: Products) -> StepInput:
        if not self.is_sequence:
            return StepInput(step.input("x", (self.n_inputs,)))
        if self.form.input == "dense":
            given = step.input("given", (len(self.weight),))
            return StepInput(given=given, preparations=(self._product("inputs", self.weight, self.input_bias),))
        if not self.predicts_both:
            return StepInput(step.input("x", (self.n_inputs,)), preparations=(WholeSequence.vectors,))
        little = read_little(self.function)
        project = self._product("projection", little.projections[0], -little.center, little.projection_precision)
        projected = step.input("projected", little.center.shape)
        if not self.form.gated:
            return StepInput(projected=projected, preparations=(project,))
        if self.form.precision == "int8":
            padded = round_up(self.n_inputs, self.isa.row_bytes)
            q, affine = step.input("q", (padded,), "uint8"), step.input("affine", (2,))
            products.know_bytes(q, affine)
            return StepInput(q, projected=projected, preparations=(project, WholeSequence.bytes))
        x = step.input("x", (self.n_inputs,))
        return StepInput(x, projected=projected, preparations=(project, WholeSequence.vectors))

    def _product(self, part: str, weight: np.ndarray, bias: np.ndarray, precision: str | None = None) -> Preparation:
        """Return a product of all inputs of a call."""
        options = {"precision": precision or self.form.precision, "threads": self.form.threads}
        return partial(WholeSequence.product, part=part, weight=weight, bias=bias, **options)

    def given(self, products: Products, x: StepInput) -> relax.Var:
        """Return the input's half of the pre-activations, exact; `x` is from `input`."""
        if x.given is not None:
            return x.given
        operands = x.vector, self.weight, self.input_bias
        return products.exact(self.form.input, "input", *operands, nonnegative=self._nonnegative)

    def exact_hidden(self, products: Products, x: StepInput, h: relax.Var) -> relax.Var:
        """Return the state's half of the pre-activations, exact."""
        if x.hidden is not None:
            return x.hidden
        return products.dense("hidden", h, self.recurrence, self.hidden_bias)

    def little(self, products: Products, x: StepInput, h: relax.Var) -> relax.Var:
        """Return what the little module predicts."""
        unknown = self.predicts_both and x.projected is None
        inputs = [(x.vector, self._nonnegative)] if unknown else []
        return products.little(read_little(self.function), [*inputs, (h, False)], x.projected)

    def spread(self, step: StepBuilder) -> relax.Var:
        """Declare what the gate multiplies slopes by."""
        return step.operand("spread", self.function.attrs["dual.spread"].numpy())

    def open_rows(self, products: Products, x: StepInput, h, closed, rows, count) -> tuple[relax.Var, relax.Var]:
        """Return both halves with the open rows of gated matrices computed; `closed` are both halves before."""
        given, hidden = closed
        state = (h, self.recurrence, self.hidden_bias)
        if self.form.input == "rows":
            input_ = (x.vector, self._nonnegative, self.weight, self.input_bias)
            return products.gated_pairs("both", input_, state, rows, count, closed)
        return given, products.gated("hidden", *state, rows, count, hidden)

    def site_call(self, step: StepBuilder, x: StepInput) -> SiteCall:
        """Return how ``main`` calls a finished step ``(inputs..., states...[, limits]) -> (states..., counts...)``."""
        if not self.is_sequence:
            return self._step_call(step)
        inputs, *states = self.call.args[: 1 + self.states]
        threshold = self.limits if self.form.gated else None
        product = None
        if self._is_batched:
            options = self.form.precision, self.form.threads
            product = state_product(self.isa, *options, self.recurrence, self.hidden_bias)
        return SequenceCall(step, inputs, states, self.isa, self._nonnegative, list(x.preparations), product, threshold)

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
