"""FoldLayouts: constants are reshaped and transposed here and now.

TVM's own folding compiles a kernel for each, which takes a tenth of a second: for weights and biases of 64
convolutions 15 seconds.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.drop_idle_transposes import order_of
from relay_passes.main_function import mutated, tidied

_RESHAPES = {f"relax.{name}" for name in ("reshape", "expand_dims", "squeeze", "flatten")}


@tvm.transform.module_pass(opt_level=0, name="FoldLayouts")
class FoldLayouts:
    """The pass; it looks at ``main`` alone."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with constants in place of constants that are reshaped or transposed."""
        return tidied(mutated(_Folder(module), module))


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        name = getattr(call.op, "name", "")
        if name not in _RESHAPES and name != "relax.permute_dims":
            return call
        source = call.args[0]
        while isinstance(source, relax.Var) and (bound := self.lookup_binding(source)) is not None:
            source = bound
        if not isinstance(source, GenericConst):
            return call
        array = source.value.numpy()
        if name in _RESHAPES:
            shape = self.builder_.normalize(call).ty.shape
            return relax.const(array.reshape([int(extent) for extent in shape]), str(array.dtype))
        order = order_of(relax.Call(call.op, [source], call.attrs))
        return relax.const(np.ascontiguousarray(array.transpose(order)), str(array.dtype))
