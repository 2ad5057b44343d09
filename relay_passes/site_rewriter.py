"""What the rewrites share: finding the calls of sites in ``main`` and putting step calls in place.

A rewritten site whose gate decides at run time takes its thresholds as a new parameter of ``main``
and gives the number of open rows as a new output, so that the effort can change, and the density
be read, while the library runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.main_function import extend_main
from relay_passes.step import StepBuilder


@dataclass(frozen=True)
class StepCall:
    """A finished step and how ``main`` calls it.

    Attributes
    ----------
    step : StepBuilder
    inputs : list of (Expr, shape)
        Values of ``main`` that the step reads, and the shape it wants them in.
    outputs : list of list of shape
        For each of the step's first results, the shapes in which ``main`` expects it, in the order of the
        fields of what the site gives; the step's other results are counts.
    threshold : shape or None
        Shape of the thresholds operand, the step's last input.
    """

    step: StepBuilder
    inputs: list[tuple[relax.Expr, tuple[int, ...]]]
    outputs: list[list[Sequence[int]]]
    threshold: tuple[int, ...] | None = None


Rewrite = Callable[[relax.Function, relax.Call], StepCall | None]


class SiteRewriter:
    """Applies one rewrite to all sites of a kind."""

    def __init__(self, module: IRModule, composite: str, rewrite: Rewrite) -> None:
        """Rewrite the calls in ``main`` of functions whose ``Composite`` is `composite`."""
        self._module, self._composite, self._rewrite = module, composite, rewrite

    def run(self) -> IRModule:
        """Return the rewritten module."""
        mutator_ = _CallMutator(self._module, self._composite, self._rewrite)
        main = mutator_.visit_expr(self._module["main"])
        if not mutator_.changed:
            return self._module
        main = _with_gates(main, mutator_.thresholds, mutator_.counts)
        mutator_.builder_.update_func(self._module.get_global_var("main"), main)
        return relax.transform.DeadCodeElimination(["main"])(mutator_.builder_.get())


@mutator
class _CallMutator(PyExprMutator):
    def __init__(self, module: IRModule, composite: str, rewrite: Rewrite) -> None:
        super().__init__(module)
        self._module, self._composite, self._rewrite = module, composite, rewrite
        self.thresholds: list[tuple[str, relax.Var]] = []
        self.counts: list[tuple[str, relax.Var]] = []
        self.changed = False

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not isinstance(call.op, tvm.ir.GlobalVar):
            return call
        function = self._module[call.op]
        if not isinstance(function, relax.Function) or not function.attrs:
            return call
        if function.attrs.get("Composite") != self._composite:
            return call
        planned = self._rewrite(function, call)
        if planned is None:
            return call
        self.changed = True
        return self._step_call(planned, str(function.attrs["dual.site"]))

    def _step_call(self, planned: StepCall, name: str) -> relax.Expr:
        emit = self.builder_.emit
        kernels, function = planned.step.module()
        renamed = {}
        for target, kernel in kernels.functions.items():
            if isinstance(kernel, tvm.tirx.PrimFunc):
                renamed[target] = self.builder_.add_func(kernel, f"{name}_{target.name_hint}")
        function = _Retarget(renamed).visit_expr(function).with_attr("dual.site", name)
        step = self.builder_.add_func(relax.utils.copy_with_new_vars(function), f"{name}_step")
        arguments = [emit(relax.op.reshape(value, shape)) for value, shape in planned.inputs]
        if planned.threshold is not None:
            threshold = relax.Var(f"{name}_thresholds", relax.TensorType(list(planned.threshold), "float32"))
            self.thresholds.append((name, threshold))
            arguments.append(threshold)
        result = emit(relax.Call(step, [*arguments, *planned.step.arguments]))
        values = [emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
        for value in values[len(planned.outputs) :]:
            self.counts.append((name, self.builder_.emit_output(value)))
        shaped = [
            emit(relax.op.reshape(value, shape))
            for value, shapes in zip(values, planned.outputs, strict=False)
            for shape in shapes
        ]
        return shaped[0] if len(shaped) == 1 else relax.Tuple(shaped)


@mutator
class _Retarget(PyExprMutator):
    """Points kernel calls at their names in another module."""

    def __init__(self, renamed: dict) -> None:
        super().__init__(None)
        self._renamed = renamed

    def visit_global_var_(self, target: tvm.ir.GlobalVar) -> relax.Expr:
        return self._renamed.get(target, target)


def _with_gates(main: relax.Function, thresholds: Sequence, counts: Sequence) -> relax.Function:
    """Return `main` with thresholds as further parameters and counts as further outputs."""
    names = {
        "dual.thresholds": [*main.attrs.get("dual.thresholds", []), *(name for name, _ in thresholds)],
        "dual.counts": [*main.attrs.get("dual.counts", []), *(name for name, _ in counts)],
    }
    return extend_main(main, [v for _, v in thresholds], [v for _, v in counts], names)
