"""ExposeInputs: let ``main`` also give what each site reads, so that calibration can observe it."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.main_function import extend_main

#: How many states the recurrent layers read.
_STATES = {"dual.gru": 1, "dual.lstm": 2}


@tvm.transform.module_pass(opt_level=0, name="ExposeInputs")
class ExposeInputs:
    """The pass; run it on marked sites, before they are rewritten.

    ``main`` gains one output per value that a site reads at run time, and the attribute
    ``dual.observed`` with their names: ``site.0`` is the input, ``site.1`` a recurrent state h, ``site.2``
    an LSTM's c. Of a layer that sees sequences these are the initial states, and ``site.y`` is the state h
    after each step.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with the further outputs."""
        exposer = _Exposer(module)
        main = exposer.visit_expr(module["main"])
        main = extend_main(main, [], exposer.values, {"dual.observed": exposer.names})
        exposer.builder_.update_func(module.get_global_var("main"), main)
        return exposer.builder_.get()


@mutator
class _Exposer(PyExprMutator):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self._module = module
        self.names: list[str] = []
        self.values: list[relax.Var] = []

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not isinstance(call.op, tvm.ir.GlobalVar):
            return call
        function = self._module[call.op]
        if not isinstance(function, relax.Function) or not function.attrs or "dual.site" not in function.attrs:
            return call
        name, live = str(function.attrs["dual.site"]), [a for a in call.args if not isinstance(a, GenericConst)]
        states = _STATES.get(str(function.attrs["Composite"]))
        if states:
            live = call.args[: 1 + states]  # a state may be a constant, and is read all the same
        for i, value in enumerate(live):
            self._expose(f"{name}.{i}", value)
        if states and is_sequence(call):
            call = self.builder_.emit(call)
            self._expose(f"{name}.y", self.builder_.emit(relax.TupleGetItem(call, 0)))
        return call

    def _expose(self, name: str, value: relax.Expr) -> None:
        self.names.append(name)
        # A copy: the same value may be read twice, and a parameter cannot be an output.
        self.values.append(self.builder_.emit_output(relax.op.multiply(value, relax.const(1.0, "float32"))))


def is_sequence(call: relax.Call) -> bool:
    """Whether a recurrent layer's call may see more than one vector."""
    return any(not isinstance(n, tvm.tirx.IntImm) or int(n) != 1 for n in list(call.args[0].ty.shape)[:2])
