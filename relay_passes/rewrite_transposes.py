"""RewriteTransposes: transpositions of matrices of floats become kernels in registers.

Images of many channels are transposed where a chain of convolutions begins or ends (`relay_passes.channels_last`): of
each image a matrix of channels by pixels. Others, of few channels too, are left to TVM.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.drop_idle_transposes import is_transposition, order_of
from relay_passes.main_function import mutated
from relay_passes.products import PARALLEL_BYTES
from relay_passes.site_rewriter import StepCall
from relay_passes.step import StepBuilder
from schedules.cpu import Isa
from schedules.registry import kernel
from schedules.transpose import can_transpose, transpose


@tvm.transform.module_pass(opt_level=0, name="RewriteTransposes")
class RewriteTransposes:
    """The pass; it looks at ``main`` alone."""

    def __init__(self, isa: Isa, threads: int) -> None:
        """Generate kernels for a level and a number of threads."""
        self._isa, self._threads = isa, threads

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with kernels in place of transpositions."""
        return mutated(_Rewriter(module, self._isa, self._threads), module)


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, module: IRModule, isa: Isa, threads: int) -> None:
        super().__init__(module)
        self._isa, self._threads, self._count = isa, threads, 0

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        found = _matrices(call)
        if found is None:
            return call
        size = (prod(found),)
        with StepBuilder() as step:
            x = step.input("x", size)
            tasks = self._threads if 4 * prod(found) >= PARALLEL_BYTES else 1
            step.finish(step.call("transpose", kernel(transpose, self._isa, *found, tasks), x))
        self._count += 1
        shape = [int(call.args[0].ty.shape[axis]) for axis in order_of(call)]
        planned = StepCall(step, [(call.args[0], size)], [[shape]])
        (turned,), _ = planned.emit(self.builder_, f"transpose{self._count - 1}", [])
        return turned


def _matrices(call: relax.Call) -> tuple[int, int, int] | None:
    """Return how many matrices of how many rows and columns are transposed, None if it is not that."""
    if not is_transposition(call) or str(call.args[0].ty.dtype) != "float32":
        return None
    extents = list(call.args[0].ty.shape)
    if not all(isinstance(extent, tvm.tirx.IntImm) for extent in extents):
        return None
    extents = [int(extent) for extent in extents]
    order = [axis for axis in order_of(call) if extents[axis] > 1]
    # Axes that stay behind each other are one: of the places in the order that they come from, runs.
    places = {axis: place for place, axis in enumerate(sorted(order))}
    order = [places[axis] for axis in order]
    extents = [extents[axis] for axis in sorted(places)]
    runs = _runs(order)
    if runs and runs[0][0] == 0:
        matrices, runs = prod(extents[axis] for axis in runs[0]), runs[1:]
    else:
        matrices = 1
    if len(runs) != 2:
        return None
    columns, rows = (prod(extents[axis] for axis in run) for run in runs)
    return (matrices, rows, columns) if can_transpose(rows, columns) else None


def _runs(order: list[int]) -> list[list[int]]:
    """Return an order's pieces in which each axis follows the one before it."""
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(order)) if b != a + 1), len(order)]
    return [order[first:last] for first, last in pairwise(starts) if first < last]
