"""What the rewrites share: finding the calls of sites in ``main`` and putting step calls in place.

A rewritten site whose gate decides at run time takes its thresholds as a new parameter of ``main``
and gives the number of open rows as a new output, so that the effort can change, and the density
be read, while the library runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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

    def emit(self, builder: relax.BlockBuilder, name: str, limits: list[relax.Var]) -> Emitted:
        """Emit the call into ``main``; see `SiteCall`."""
        kernels, function = self.step.module()
        renamed = {}
        for target, kernel in kernels.functions.items():
            if isinstance(kernel, tvm.tirx.PrimFunc):
                renamed[target] = builder.add_func(kernel, f"{name}_{target.name_hint}")
        function = _Retarget(renamed).visit_expr(function).with_attr("dual.site", name)
        step = builder.add_func(relax.utils.copy_with_new_vars(function), f"{name}_step")
        arguments = [builder.emit(relax.op.reshape(value, shape)) for value, shape in self.inputs]
        result = builder.emit(relax.Call(step, [*arguments, *limits, *self.step.arguments]))
        values = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
        counts = [builder.emit_output(value) for value in values[len(self.outputs) :]]
        shaped = [
            builder.emit(relax.op.reshape(value, shape))
            for value, shapes in zip(values, self.outputs, strict=False)
            for shape in shapes
        ]
        return shaped, counts


#: What a site gives, and the numbers of open rows of its gates, as outputs of the dataflow block.
Emitted = tuple[list[relax.Expr], list[relax.Expr]]


class SiteCall(Protocol):
    """A rewritten site: a `StepCall`, or for sequences a `relay_passes.sequence_call.SequenceCall`.

    Attributes
    ----------
    threshold : shape or None
        Shape of the thresholds that it takes, if any.
    """

    threshold: tuple[int, ...] | None

    def emit(self, builder: relax.BlockBuilder, name: str, limits: list[relax.Var]) -> Emitted:
        """Emit what takes the place of the site `name` in ``main``; `limits` holds the thresholds, if it takes any."""


Rewrite = Callable[[relax.Function, relax.Call], SiteCall | None]


class SiteRewriter:
    """Applies rewrites to all sites of some kinds."""

    def __init__(self, module: IRModule, rewrites: dict[str, Rewrite]) -> None:
        """Rewrite the calls in ``main`` of functions whose ``Composite`` is a key of `rewrites`."""
        self._module, self._rewrites = module, rewrites

    def run(self) -> IRModule:
        """Return the rewritten module."""
        mutator_ = _CallMutator(self._module, self._rewrites)
        main = mutator_.visit_expr(self._module["main"])
        if not mutator_.changed:
            return self._module
        main = _with_gates(main, mutator_.thresholds, mutator_.counts)
        mutator_.builder_.update_func(self._module.get_global_var("main"), main)
        return relax.transform.DeadCodeElimination(["main"])(mutator_.builder_.get())


@mutator
class _CallMutator(PyExprMutator):
    def __init__(self, module: IRModule, rewrites: dict[str, Rewrite]) -> None:
        super().__init__(module)
        self._module, self._rewrites = module, rewrites
        self.thresholds: list[tuple[str, relax.Var]] = []
        self.counts: list[tuple[str, relax.Var]] = []
        self.changed = False

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        function = self._module[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
        if not isinstance(function, relax.Function) or not function.attrs:
            return super().visit_call_(call)
        rewrite = self._rewrites.get(function.attrs.get("Composite"))
        if rewrite is None:
            return super().visit_call_(call)
        # Not checked against the site's function: what a rewritten site gives may be bytes, which that does not take.
        given = relax.Call(call.op, [self.visit_expr(argument) for argument in call.args], ret_ty=call.ty)
        planned = rewrite(function, given)
        if planned is None:
            return super().visit_call_(call)
        self.changed = True
        return self._put(planned, str(function.attrs["dual.site"]))

    def _put(self, planned: SiteCall, name: str) -> relax.Expr:
        limits = []
        if planned.threshold is not None:
            limits.append(relax.Var(f"{name}_thresholds", relax.TensorType(list(planned.threshold), "float32")))
            self.thresholds.append((name, limits[0]))
        values, counts = planned.emit(self.builder_, name, limits)
        self.counts += [(name, count) for count in counts]
        return values[0] if len(values) == 1 else relax.Tuple(values)


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
