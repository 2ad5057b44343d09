"""Streaming: the states of recurrent layers become inputs and outputs of ``main``.

Each call starts where the one before it ended: a call of one step (batch and time are 1), or of as many as
the model has fixed. It works
on the imported module, so it is the same for every importer.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.main_function import extend_main
from tvm_dual.errors import ModelError
from tvm_dual.frontend.recurrent import STATES

#: Operators that only select and arrange values, from which a state can come and into which it can go.
_MOVES = {
    f"relax.{name}"
    for name in ("squeeze", "reshape", "expand_dims", "permute_dims", "strided_slice", "split", "concat", "stack")
} | {"relax.take"}
_KINDS = {f"dual.{kind}": count for kind, count in STATES.items()}


def expose_states(module: IRModule) -> IRModule:
    """Make every recurrent state a parameter and a result of ``main``.

    States are named ``state0_h``, ``state0_c``, ``state1_h``, ... by layer, their results with ``_next`` behind;
    they stand behind inputs and outputs. A parameter that only gave initial states is gone, and so is an output that
    only gave final ones, unless no other would be left.

    Parameters
    ----------
    module : IRModule
        As importers give it, constants folded, all extents fixed.

    Raises
    ------
    ModelError
        If a layer sees an open number of steps, runs backwards, or starts from a state that the model computes.
    """
    main = module["main"]
    graph = _Graph(module)
    sources: set[relax.Var] = set()
    starts: list[np.ndarray] = []
    for call in [binding.value for binding in graph.bindings if graph.kind(binding.value)]:
        _check_extents(graph, call)
        starts += [_initial(graph, call, i, sources) for i in range(graph.kind(call))]
    inputs, outputs = list(map(str, main.attrs["input_names"])), list(map(str, main.attrs["output_names"]))
    finals = [i for i, field in enumerate(graph.results()) if graph.only_from(field, graph.is_final_state)]
    dropped = finals if len(finals) < len(outputs) else []
    exposer = _Exposer(graph, copies=finals != dropped)
    kept = [name for i, name in enumerate(outputs) if i not in dropped]
    parameters = {str(name) for name, parameter in zip(inputs, main.params, strict=True) if parameter in sources}
    main = exposer.visit_expr(main)
    attributes = {
        "num_states": len(exposer.parameters),
        "output_names": [*kept, *(f"{state.name}_next" for state in exposer.parameters)],
        "initial_states": [tvm.runtime.tensor(array) for array in starts],
    }
    main = extend_main(main, exposer.parameters, exposer.results, attributes, dropped_outputs=dropped)
    exposer.builder_.update_func(module.get_global_var("main"), main)
    passes = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    module = tvm.transform.Sequential(passes)(exposer.builder_.get())
    module["main"] = _without_sources(module["main"], inputs, parameters)
    return module


class _Graph:
    """``main``, and where its values come from."""

    def __init__(self, module: IRModule) -> None:
        self.module = module
        self.bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
        self._values = {binding.var: binding.value for binding in self.bindings}

    def kind(self, value: relax.Expr) -> int:
        """How many states a recurrent layer's call takes; 0 for any other value."""
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
            return 0
        attributes = self.module[value.op].attrs
        return _KINDS.get(str(attributes.get("Composite")), 0) if attributes else 0

    def label(self, call: relax.Call) -> str:
        return str(self.module[call.op].attrs["layer"])

    def value(self, expression: relax.Expr) -> relax.Expr:
        """What a variable is bound to, followed to its end."""
        while isinstance(expression, relax.Var) and expression in self._values:
            expression = self._values[expression]
        return expression

    def results(self) -> list[relax.Expr]:
        result = self.value(self.module["main"].body.body)
        return list(result.fields) if isinstance(result, relax.Tuple) else [result]

    def is_final_state(self, value: relax.Expr) -> bool:
        """Whether a value is the h or c that a recurrent layer ends with."""
        return (
            isinstance(value, relax.TupleGetItem) and value.index > 0 and bool(self.kind(self.value(value.tuple_value)))
        )

    def only_from(self, expression: relax.Expr, accepted) -> bool:
        """Whether an expression selects and arranges values that `accepted` holds for, and no others."""
        value = self.value(expression)
        if accepted(value):
            return True
        if isinstance(value, relax.Tuple):
            return all(self.only_from(field, accepted) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            return self.only_from(value.tuple_value, accepted)
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") in _MOVES:
            return self.only_from(value.args[0], accepted)
        return False


def _check_extents(graph: _Graph, call: relax.Call) -> None:
    label = graph.label(call)
    given = graph.value(call.args[0])
    if isinstance(given, relax.Call) and getattr(given.op, "name", "") == "relax.flip":
        raise ModelError(
            f"{label}: runs backwards in time; accepted with streaming=True: forward layers alone. "
            "Build whole sequences with streaming=False"
        )
    time, batch, _ = call.args[0].ty.shape
    fixed = [int(extent) if isinstance(extent, tvm.tirx.IntImm) else "any number of" for extent in (time, batch)]
    if not all(isinstance(extent, int) for extent in fixed):
        raise ModelError(
            f"{label}: sees {fixed[0]} steps of {fixed[1]} sequences per call; accepted with streaming=True: fixed "
            "numbers. Give the model's inputs open extents (dynamic_shapes, dim_param), which become 1, or fixed ones"
        )


def _initial(graph: _Graph, call: relax.Call, index: int, sources: set) -> np.ndarray:
    """Return what a state is before the first call; note in `sources` the parameter it comes from."""
    start, parameters = graph.value(call.args[1 + index]), set(graph.module["main"].params)
    if isinstance(start, GenericConst):
        return start.value.numpy()
    # TVM leaves zeros of more than 1024 elements unfolded.
    if isinstance(start, relax.Call) and getattr(start.op, "name", "") == "relax.zeros":
        return np.zeros([int(extent) for extent in start.ty.shape], "float32")
    found = []

    def is_parameter(value) -> bool:
        if value in parameters:
            found.append(value)
        return value in parameters

    if not graph.only_from(start, is_parameter):
        raise ModelError(
            f"{graph.label(call)}: starts from a state {'hc'[index]} that the model computes; accepted with "
            "streaming=True: zero, a constant, or an input"
        )
    sources.update(found)
    return np.zeros([int(extent) for extent in call.args[1 + index].ty.shape], "float32")


def _without_sources(main: relax.Function, names: list[str], sources: set[str]) -> relax.Function:
    """Return `main` without the inputs that gave initial states, which nothing reads any more."""
    used = set(relax.analysis.free_vars(main.body))
    inputs, states = main.params[: len(names)], main.params[len(names) :]
    for name, parameter in zip(names, inputs, strict=True):
        if name in sources and parameter in used:
            raise ModelError(
                f"input '{name}': gives an initial state and is read elsewhere, too; accepted with streaming=True: "
                "inputs that only give states"
            )
    kept = [(name, p) for name, p in zip(names, inputs, strict=True) if name not in sources]
    attributes = {
        "num_input": len(kept),
        "input_names": [*(name for name, _ in kept), *(state.name for state in states)],
    }
    function = relax.Function([*(p for _, p in kept), *states], main.body, main.ret_ty, is_pure=True)
    return function.with_attrs(dict(main.attrs) | attributes)


@mutator
class _Exposer(PyExprMutator):
    """Gives recurrent layers parameters to start from, and notes their final states."""

    def __init__(self, graph: _Graph, copies: bool) -> None:
        super().__init__(graph.module)
        self._graph, self._copies = graph, copies
        self.parameters: list[relax.Var] = []
        self.results: list[relax.Var] = []
        self._layers = 0

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        count = self._graph.kind(call)
        if not count:
            return call
        states = [
            relax.Var(f"state{self._layers}_{name}", argument.ty)
            for name, argument in zip("hc", call.args[1 : 1 + count], strict=False)
        ]
        self._layers += 1
        result = self.builder_.emit(relax.Call(call.op, [call.args[0], *states, *call.args[1 + count :]]))
        self.parameters += states
        for i in range(count):
            final = relax.TupleGetItem(result, 1 + i)
            # One value cannot be two results.
            final = relax.op.multiply(self.builder_.emit(final), relax.const(1.0, "float32")) if self._copies else final
            self.results.append(self.builder_.emit_output(final))
        return result
