"""DropIdleTransposes: a transposition that only moves axes of length one moves no values.

Models that swap batch and time around recurrent layers are full of them once both are one. They
become reshapes, which cost nothing, or vanish where the shape stays.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@tvm.transform.module_pass(opt_level=0, name="DropIdleTransposes")
class DropIdleTransposes:
    """The pass; it looks at ``main`` alone."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` without idle transpositions."""
        dropper = _Dropper(module)
        main = dropper.visit_expr(module["main"])
        dropper.builder_.update_func(module.get_global_var("main"), main)
        return relax.transform.CanonicalizeBindings()(dropper.builder_.get())


@mutator
class _Dropper(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.permute_dims":
            return call
        source = call.args[0]
        if not isinstance(source, relax.Var) or source.ty.shape is None:
            return call
        extents = list(source.ty.shape)
        axes = call.attrs.axes
        order = list(range(len(extents)))[::-1] if axes is None else [int(axis) % len(extents) for axis in axes]
        long = [axis for axis in order if not (isinstance(extents[axis], tvm.tirx.IntImm) and int(extents[axis]) == 1)]
        if long != sorted(long):
            return call
        shape = [extents[axis] for axis in order]
        if all(tvm_ffi.structural_equal(a, b) for a, b in zip(shape, extents, strict=True)):
            return source
        return relax.op.reshape(source, shape)
