"""FoldAffine: what a convolution's sums are multiplied by, and what is added to them, becomes its weights and bias.

Networks have learnable scales and shifts behind convolutions (of one value, or one a channel), and exporters write
batch normalization as such.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.inner_values import one_per_channel
from relay_passes.main_function import mutated, tidied

_COMMUTATIVE, _OTHERS = {"relax.add", "relax.multiply"}, {"relax.subtract", "relax.divide"}


@tvm.transform.module_pass(opt_level=0, name="FoldAffine")
class FoldAffine:
    """The pass; run it on convolutions in the layout NCHW whose weights are constants. It looks at ``main`` alone.

    Sums that are read elsewhere, too, stay as they are.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions that hold the scales and shifts behind them."""
        folder = _Folder(module)
        result = mutated(folder, module)
        return tidied(result) if folder.found else module


@dataclass(frozen=True, eq=False)
class _Sums:
    """A convolution's call, its weights ``(outputs, ...)`` and bias ``(outputs,)``."""

    conv: relax.Call
    weight: np.ndarray
    bias: np.ndarray

    def scaled(self, by: np.ndarray) -> _Sums:
        axes = (-1, *(1,) * (self.weight.ndim - 1))
        return replace(self, weight=self.weight * by.reshape(axes), bias=self.bias * by)

    def shifted(self, by: np.ndarray) -> _Sums:
        return replace(self, bias=self.bias + by)


@mutator
class _Folder(PyExprMutator):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.found = False
        self._sums: dict[relax.Var, _Sums] = {}
        self._reads: Counter = Counter()
        main = module["main"]
        for block in main.body.blocks:
            for binding in block.bindings:
                relax.analysis.post_order_visit(binding.value, self._note)
        self._note(main.body.body)

    def _note(self, value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            self._reads[value] += 1

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        given, call = call, super().visit_call_(call)
        name = getattr(call.op, "name", "")
        if name == "relax.nn.conv2d":
            return self._convolved(call)
        if name not in _COMMUTATIVE | _OTHERS:
            return call
        at = 1 if isinstance(call.args[1], GenericConst) or name in _OTHERS else 0
        values, sums = one_per_channel(call.args[at], call), self._known(call.args[1 - at])
        if values is None or sums is None or list(call.ty.shape) != list(call.args[1 - at].ty.shape):
            return call
        if self._reads[given.args[1 - at]] > 1 or (name == "relax.divide" and not values.all()):
            return call
        return self._folded(name, sums, values.astype("float64"))

    def _convolved(self, call: relax.Call) -> relax.Expr:
        weight, layouts = call.args[1], (call.attrs.data_layout, call.attrs.kernel_layout)
        if not isinstance(weight, GenericConst) or layouts != ("NCHW", "OIHW") or str(call.ty.dtype.dtype) != "float32":
            return call
        result, array = self.builder_.emit(call), weight.value.numpy()
        self._sums[result] = _Sums(call, array.astype("float64"), np.zeros(len(array)))
        return result

    def _folded(self, name: str, sums: _Sums, values: np.ndarray) -> relax.Expr:
        if name in ("relax.multiply", "relax.divide"):
            sums = sums.scaled(values if name == "relax.multiply" else 1 / values)
        else:
            sums = sums.shifted(values if name == "relax.add" else -values)
        self.found = True
        weight, bias = (array.astype("float32") for array in (sums.weight, sums.bias))
        conv = relax.Call(sums.conv.op, [sums.conv.args[0], relax.const(weight)], sums.conv.attrs)
        result = self.builder_.emit(relax.op.add(self.builder_.emit(conv), relax.const(bias.reshape(1, -1, 1, 1))))
        self._sums[result] = sums
        return result

    def _known(self, value: relax.Expr) -> _Sums | None:
        while isinstance(value, relax.Var) and value not in self._sums:
            value = self.lookup_binding(value)
        return self._sums.get(value) if isinstance(value, relax.Var) else None
