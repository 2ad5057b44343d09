"""How ``main`` calls a recurrent layer that sees sequences: what all steps read at once, then one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from relay_passes.over_time import BatchStage, over_time
from relay_passes.site_rewriter import Emitted
from relay_passes.step import StepBuilder
from schedules.cpu import Isa
from schedules.history import chosen_knobs
from schedules.matmul import matmul_fp32, matmul_int8, pack_matmul_fp32, pack_matmul_int8, quantize_matrix
from schedules.quantize import round_up
from schedules.registry import kernel


class WholeSequence:
    """The inputs of all steps of a call, ``x: (steps, batch, k)``, and what is computed of them at once."""

    def __init__(self, builder: relax.BlockBuilder, name: str, x: relax.Expr, isa: Isa, nonnegative: bool) -> None:
        """Emit into `builder` kernels named after the site; `nonnegative` says that inputs are zero or more."""
        self._builder, self._name, self._x, self._isa, self._nonnegative = builder, name, x, isa, nonnegative
        self._bytes: list[relax.Expr] = []

    def vectors(self) -> list[relax.Expr]:
        """Return the inputs as they are, ``f32 (steps, batch, k)``."""
        return [self._x]

    def bytes(self) -> list[relax.Expr]:
        """Return the inputs quantized one by one: ``u8 (steps, batch, k padded)`` and ``f32 (steps, batch, 2)``."""
        return [self._by_step(value) for value in self._quantized()]

    def product(
        self, precision: str, threads: int, part: str, weight: np.ndarray, bias: np.ndarray
    ) -> list[relax.Expr]:
        """Return ``x weight^T + bias``, ``f32 (steps, batch, n)``, for ``weight: f32 (n, k)``; `part` names it."""
        inputs = self._quantized() if precision == "int8" else [self._flat()]
        stage, packed = _product(self._isa, precision, threads, weight, bias)
        target = self._builder.add_func(stage, f"{self._name}_{part}")
        operands = [*inputs, *(relax.const(array) for array in packed)]
        return [self._by_step(self._builder.emit(relax.call_tir(target, operands, _tensor((self._rows, len(weight))))))]

    @property
    def _rows(self) -> int | tirx.Expr:
        steps, batch, _ = self._x.ty.shape
        return steps * batch

    def _flat(self) -> relax.Expr:
        return self._builder.emit(relax.op.reshape(self._x, (self._rows, self._x.ty.shape[2])))

    def _quantized(self) -> list[relax.Expr]:
        if not self._bytes:
            k = int(self._x.ty.shape[2])
            stage = kernel(quantize_matrix, self._isa, k, self._nonnegative)
            target = self._builder.add_func(stage, f"{self._name}_quantize")
            types = [_tensor((self._rows, round_up(k, self._isa.row_bytes)), "uint8"), _tensor((self._rows, 2))]
            both = self._builder.emit(relax.call_tir(target, [self._flat()], types))
            self._bytes = [self._builder.emit(relax.TupleGetItem(both, i)) for i in range(2)]
        return self._bytes

    def _by_step(self, value: relax.Expr) -> relax.Expr:
        steps, batch, _ = self._x.ty.shape
        return self._builder.emit(relax.op.reshape(value, (steps, batch, value.ty.shape[1])))


def _product(
    isa: Isa, precision: str, threads: int, weight: np.ndarray, bias: np.ndarray
) -> tuple[tirx.PrimFunc, list[np.ndarray]]:
    """Return the kernel of a product of many vectors with ``weight: f32 (n, k)``, and its packed operands."""
    int8 = precision == "int8"
    knobs = chosen_knobs("matmul_int8" if int8 else "matmul_fp32", isa, weight.shape, threads)
    pack, builder = (pack_matmul_int8, matmul_int8) if int8 else (pack_matmul_fp32, matmul_fp32)
    return kernel(builder, isa, *weight.shape, threads, knobs), list(pack(isa, weight, bias, knobs))


#: From the inputs of a call to what its steps read of them: values ``(steps, batch, ...)``.
Preparation = Callable[[WholeSequence], list[relax.Expr]]


@dataclass(frozen=True, eq=False)
class StateProduct:
    """What the loop over time computes for all samples of a batch at once, and its weights."""

    stages: list[BatchStage]
    weights: list[np.ndarray]


def state_product(isa: Isa, precision: str, threads: int, weight: np.ndarray, bias: np.ndarray) -> StateProduct:
    """Return ``h weight^T + bias`` of all samples' states, for ``weight: f32 (n, h)``."""
    product, packed = _product(isa, precision, threads, weight, bias)
    stages = [BatchStage(product, 2)]
    if precision == "int8":
        stages.insert(0, BatchStage(kernel(quantize_matrix, isa, weight.shape[1], False), 0))
    return StateProduct(stages, packed)


@dataclass(frozen=True, eq=False)
class SequenceCall:
    """A finished step ``(inputs..., states...[, limits]) -> (states..., counts...)``, repeated over time and batch.

    Attributes
    ----------
    step : StepBuilder
    x : Expr
        The site's input, ``(steps, batch, k)``.
    states : list of Expr
        Initial states, ``(1, batch, h)`` each.
    isa : Isa
    nonnegative : bool
        Whether `x` is zero or more.
    preparations : list of Preparation
        What is done to `x` before the loop; the step's inputs are the results.
    state_product : StateProduct or None
        What every step begins with, for all samples at once; its result is the step's last input.
    threshold : shape or None
        As in `relay_passes.site_rewriter.SiteCall`.
    """

    step: StepBuilder
    x: relax.Expr
    states: list[relax.Expr]
    isa: Isa
    nonnegative: bool
    preparations: list[Preparation]
    state_product: StateProduct | None
    threshold: tuple[int, ...] | None

    def emit(self, builder: relax.BlockBuilder, name: str, limits: list[relax.Var]) -> Emitted:
        """Emit the call into ``main``; what the site gives are all states h, then the last states."""
        whole = WholeSequence(builder, name, self.x, self.isa, self.nonnegative)
        inputs = [value for prepare in self.preparations for value in prepare(whole)]
        product = self.state_product or StateProduct([], [])
        operands = [*inputs, *self.states, *limits, *self.step.arguments]
        step, states, n_operands = self.step.kernel(), len(self.states), len(operands) + bool(product.stages)
        steps, batch, _ = self.x.ty.shape
        target = builder.add_func(over_time(step, len(inputs), states, n_operands, product.stages), f"{name}_sequence")
        hidden = int(self.states[0].ty.shape[-1])
        counts = [_tensor((1,), "int32")] * (len(step.params) - n_operands - states)
        types = [_tensor((steps, 1, batch, hidden)), *([_tensor((1, batch, hidden))] * states), *counts]
        operands += [relax.const(weight) for weight in product.weights]
        result = builder.emit(relax.call_tir(target, operands, types))
        values = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]
        return values[: 1 + states], [builder.emit_output(count) for count in values[1 + states :]]


def _tensor(shape: tuple[int | tirx.Expr, ...], dtype: str = "float32") -> relax.TensorType:
    return relax.TensorType(list(shape), dtype)
