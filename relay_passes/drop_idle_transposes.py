"""DropIdleTransposes: transpositions that move no values go.

One that only moves axes of length one moves none. Models that swap batch and time around recurrent layers are full of
them once both are one. They become reshapes, which cost nothing, or vanish where the shape stays. Two in a row are
one: a model that takes its images channels last and transposes them for its convolutions has its own undone by
`relay_passes.channels_last`, and would move each image twice for nothing.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.main_function import mutated, tidied


@tvm.transform.module_pass(opt_level=0, name="DropIdleTransposes")
class DropIdleTransposes:
    """The pass; it looks at ``main`` alone."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` without idle transpositions."""
        # The first of two that became one may be read by nobody.
        return tidied(mutated(_Dropper(module), module))


@mutator
class _Dropper(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not is_transposition(call):
            return call
        source = call.args[0]
        order, before = order_of(call), self.lookup_binding(source)
        if is_transposition(before):
            inner = order_of(before)
            source, order = before.args[0], [inner[axis] for axis in order]
            call = relax.op.permute_dims(source, order)
        extents = list(source.ty.shape)
        long = [axis for axis in order if not (isinstance(extents[axis], tvm.tirx.IntImm) and int(extents[axis]) == 1)]
        if long != sorted(long):
            return call
        shape = [extents[axis] for axis in order]
        if all(tvm_ffi.structural_equal(a, b) for a, b in zip(shape, extents, strict=True)):
            return source
        return relax.op.reshape(source, shape)


def is_transposition(value: relax.Expr | None) -> bool:
    """Whether a value is a transposition of a variable of known shape."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.permute_dims":
        return False
    return isinstance(value.args[0], relax.Var) and value.args[0].ty.shape is not None


def order_of(call: relax.Call) -> list[int]:
    """Return for each axis of a transposition's result the axis of its operand."""
    rank, axes = len(call.args[0].ty.shape), call.attrs.axes
    return list(range(rank))[::-1] if axes is None else [int(axis) % rank for axis in axes]
