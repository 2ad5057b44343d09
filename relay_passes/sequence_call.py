"""How ``main`` calls a recurrent layer that sees sequences: one product for all inputs, then one loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from relay_passes.over_time import over_time
from relay_passes.site_rewriter import Emitted
from relay_passes.step import StepBuilder
from schedules.cpu import Isa
from schedules.matmul import matmul_fp32, matmul_int8, pack_matmul_fp32, pack_matmul_int8, quantize_matrix
from schedules.quantize import round_up
from schedules.registry import kernel


@dataclass(frozen=True, eq=False)
class BatchedProduct:
    """``x W^T + b`` for all vectors of a call.

    Attributes
    ----------
    isa : Isa
    precision : str
        ``fp32`` or ``int8``.
    threads : int
    weight : ndarray, float32, (n, k)
    bias : ndarray, float32, (n,)
    nonnegative : bool
        Whether inputs are zero or more.
    """

    isa: Isa
    precision: str
    threads: int
    weight: np.ndarray
    bias: np.ndarray
    nonnegative: bool

    def emit(self, builder: relax.BlockBuilder, name: str, x: relax.Expr) -> relax.Expr:
        """Emit the product of ``x: (steps, batch, k)``, a value ``(steps, batch, n)``."""
        n, k = self.weight.shape
        steps, batch, _ = x.ty.shape
        rows = steps * batch
        flat = builder.emit(relax.op.reshape(x, (rows, k)))
        if self.precision == "int8":
            quantize = builder.add_func(kernel(quantize_matrix, self.isa, k, self.nonnegative), f"{name}_quantize")
            types = [_tensor((rows, round_up(k, self.isa.row_bytes)), "uint8"), _tensor((rows, 2))]
            quantized = builder.emit(relax.call_tir(quantize, [flat], types))
            inputs = [builder.emit(relax.TupleGetItem(quantized, i)) for i in range(2)]
            family, packed = matmul_int8, pack_matmul_int8(self.isa, self.weight, self.bias)
        else:
            inputs, family, packed = [flat], matmul_fp32, pack_matmul_fp32(self.isa, self.weight, self.bias)
        target = builder.add_func(kernel(family, self.isa, n, k, self.threads), f"{name}_inputs")
        operands = [*inputs, *(relax.const(array) for array in packed)]
        given = builder.emit(relax.call_tir(target, operands, _tensor((rows, n))))
        return builder.emit(relax.op.reshape(given, (steps, batch, n)))


@dataclass(frozen=True, eq=False)
class SequenceCall:
    """A finished step ``(x, states...[, limits]) -> (states..., counts...)``, to be repeated over time and batch.

    Attributes
    ----------
    step : StepBuilder
    x : Expr
        The site's input, ``(steps, batch, k)``.
    states : list of Expr
        Initial states, ``(1, batch, h)`` each.
    product : BatchedProduct or None
        What is done to `x` before the loop.
    threshold : shape or None
        As in `relay_passes.site_rewriter.SiteCall`.
    """

    step: StepBuilder
    x: relax.Expr
    states: list[relax.Expr]
    product: BatchedProduct | None
    threshold: tuple[int, ...] | None

    def emit(self, builder: relax.BlockBuilder, name: str, limits: list[relax.Var]) -> Emitted:
        """Emit the call into ``main``; what the site gives are all states h, then the last states."""
        x = self.product.emit(builder, name, self.x) if self.product else self.x
        operands = [x, *self.states, *limits, *self.step.arguments]
        step, states = self.step.kernel(), len(self.states)
        steps, batch, _ = x.ty.shape
        target = builder.add_func(over_time(step, 1, states, len(operands)), f"{name}_sequence")
        hidden = int(step.params[1].shape[-1])
        counts = [_tensor((1,), "int32")] * (len(step.params) - len(operands) - states)
        types = [_tensor((steps, 1, batch, hidden)), *([_tensor((1, batch, hidden))] * states), *counts]
        result = builder.emit(relax.call_tir(target, operands, types))
        values = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]
        return values[: 1 + states], [builder.emit_output(count) for count in values[1 + states :]]


def _tensor(shape: tuple[int | tirx.Expr, ...], dtype: str = "float32") -> relax.TensorType:
    return relax.TensorType(list(shape), dtype)
