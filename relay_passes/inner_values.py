"""What follows a rearranged value is computed before the rearrangement, where it can be part of a site."""

from __future__ import annotations

import numpy as np
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator

from relay_passes.elementwise import EACH, PAIRS
from relay_passes.main_function import mutated, tidied

#: Operators that compute each value from one, or from two of the same channel.
_BY_VALUE = EACH | PAIRS | {"relax.power"}


class InnerValues(PyExprMutator):
    """Knows of values what they are arranged from; operators by value, and normalizations, go there.

    A subclass makes such values of operators of its own, with `arrange`, and says how values are arranged and what an
    operand of theirs is inside. A geometry is whatever it needs to know for that; values of one geometry can meet.
    """

    def __init__(self, module: IRModule) -> None:
        """Start with no such value."""
        super().__init__(module)
        self._inner: dict[relax.Var, tuple[relax.Var, object]] = {}

    def started(self, call: relax.Call) -> relax.Expr | None:
        """Return what stands for an operator that has an inner value of its own, None for others."""
        raise NotImplementedError

    def arranged(self, inner: relax.Var, geometry) -> relax.Expr:
        """Emit what stands for an inner value outside."""
        raise NotImplementedError

    def operand(self, value: relax.Expr, call: relax.Call, geometry) -> relax.Expr | None:
        """Return what an operand of `call` is inside, None if the operator has to stay outside."""
        raise NotImplementedError

    def statistics(self, values: list[np.ndarray], geometry) -> list[np.ndarray]:
        """Return the vectors of a normalization, one value a channel, inside."""
        return values

    def arrange(self, inner: relax.Expr, geometry) -> relax.Var:
        """Emit an inner value and what stands for it outside; return that."""
        inner = self.builder_.emit(inner)
        result = self.builder_.emit(self.arranged(inner, geometry))
        self._inner[result] = inner, geometry
        return result

    @property
    def any_inner(self) -> bool:
        """Whether there are inner values."""
        return bool(self._inner)

    def inner(self, value: relax.Expr) -> tuple[relax.Var, object] | None:
        """Return what a value is arranged from, and its geometry; None if it is not."""
        while isinstance(value, relax.Var) and value not in self._inner:
            value = self.lookup_binding(value)
        return self._inner.get(value) if isinstance(value, relax.Var) else None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Start an inner value, or move an operator by value inside."""
        call = super().visit_call_(call)
        started = self.started(call)
        if started is not None:
            return started
        return self._by_value(call) if getattr(call.op, "name", "") in _BY_VALUE else call

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        """Move a normalization by fixed statistics inside."""
        item = super().visit_tuple_getitem_(item)
        norm = self.lookup_binding(item.tuple_value) if isinstance(item.tuple_value, relax.Var) else item.tuple_value
        if item.index or getattr(getattr(norm, "op", None), "name", "") != "relax.nn.batch_norm":
            return item
        known, vectors = self.inner(norm.args[0]), norm.args[1:]
        fixed = not norm.attrs.training and all(isinstance(value, GenericConst) for value in vectors)
        if known is None or not fixed or int(norm.attrs.axis) != 1:
            return item
        inner, geometry = known
        inside = [relax.const(value) for value in self.statistics([v.value.numpy() for v in vectors], geometry)]
        both = self.builder_.emit(relax.Call(norm.op, [inner, *inside], norm.attrs))
        return self.arrange(relax.TupleGetItem(both, 0), geometry)

    def _by_value(self, call: relax.Call) -> relax.Expr:
        known = [self.inner(argument) for argument in call.args]
        geometries = {geometry for found in known if found for _, geometry in [found]}
        if len(geometries) != 1:
            return call
        (geometry,) = geometries
        shapes = [argument.ty.shape for argument, found in zip(call.args, known, strict=True) if found]
        if any(list(shape) != list(call.ty.shape) for shape in shapes):
            return call  # it is broadcast
        arguments = []
        for argument, found in zip(call.args, known, strict=True):
            is_bound = not isinstance(getattr(argument, "ty", None), relax.TensorType)
            given = found[0] if found else argument if is_bound else self.operand(argument, call, geometry)
            if given is None:
                return call
            arguments.append(given)
        return self.arrange(relax.Call(call.op, arguments, call.attrs), geometry)


def moved_inside(mover: InnerValues, module: IRModule) -> IRModule:
    """Return `module` as a mutator, made for it, changes ``main``; `module` itself where it starts no inner value."""
    result = mutated(mover, module)
    # What is arranged may be read by nobody any more, as what follows reads the inner values.
    return tidied(result) if mover.any_inner else module


def one_per_channel(value: relax.Expr, call: relax.Call) -> np.ndarray | None:
    """Return a constant operand's values, one for all channels of ``call``'s second axis or one each; else None."""
    if not isinstance(value, GenericConst):
        return None
    array = value.value.numpy()
    if array.size == 1:
        return array.reshape(1)
    rank = len(call.ty.shape)
    shape = (1,) * (rank - array.ndim) + array.shape
    return array.reshape(-1) if shape == (1, int(call.ty.shape[1]), *(1,) * (rank - 2)) else None
