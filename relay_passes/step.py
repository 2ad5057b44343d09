"""Building the step function of a rewritten site: stages of kernel calls with explicit operands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import IRModule, relax, tirx


class StepBuilder:
    """Builds one private Relax function out of kernel calls on vectors.

    The function carries the attribute ``Primitive``, so that ``FuseTIR`` joins its stages into one
    kernel. Weights are parameters of the function; `arguments` are the values for them, in order.
    """

    def __init__(self) -> None:
        """Start an empty step."""
        self._builder = relax.BlockBuilder()
        self._inputs: list[relax.Var] = []
        self._operands: list[relax.Var] = []
        self._scopes = []
        self.arguments: list[relax.Expr] = []

    def __enter__(self) -> StepBuilder:
        """Open the function."""
        self._scopes = [self._builder.function("step", private=True), self._builder.dataflow()]
        for scope in self._scopes:
            scope.__enter__()
        return self

    def __exit__(self, *failure) -> None:
        """Close the function; `finish` has been called unless something failed."""
        for scope in reversed(self._scopes):
            scope.__exit__(*failure)

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> relax.Var:
        """Declare what the caller passes at run time."""
        variable = relax.Var(name, relax.TensorType(list(shape), dtype))
        self._inputs.append(variable)
        return variable

    def operand(self, name: str, value: np.ndarray) -> relax.Var:
        """Declare a constant operand and its value."""
        variable = relax.Var(name, relax.TensorType(list(value.shape), str(value.dtype)))
        self._operands.append(variable)
        self.arguments.append(relax.const(np.ascontiguousarray(value)))
        return variable

    def call(self, name: str, kernel: tirx.PrimFunc, *operands: relax.Var) -> relax.Var | tuple[relax.Var, ...]:
        """Emit a kernel call; its results are the kernel's parameters behind `operands`."""
        buffers = kernel.params[len(operands) :]
        types = [relax.TensorType([int(extent) for extent in b.shape], str(b.dtype)) for b in buffers]
        target = self._builder.add_func(kernel, name)
        result = self._builder.emit(relax.call_tir(target, list(operands), types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return result
        return tuple(self._builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types)))

    def finish(self, *results: relax.Var) -> None:
        """Return `results` from the step function."""
        output = self._builder.emit_output(relax.Tuple(list(results)))
        self._scopes.pop().__exit__(None, None, None)
        self._builder.emit_func_output(output, params=[*self._inputs, *self._operands])

    def kernel(self) -> tirx.PrimFunc:
        """Return all stages as one kernel: inputs, operands, then results are its parameters."""
        module, step = self.module()
        builder = relax.BlockBuilder(module)
        parameters = [relax.Var(p.name, p.ty) for p in step.params]
        target = module.get_global_var("step")
        builder.update_func(target, step)
        with builder.function("main", parameters):
            with builder.dataflow():
                result = builder.emit_output(relax.Call(target, parameters))
            builder.emit_func_output(result)
        fused = relax.transform.DeadCodeElimination(["main"])(relax.transform.FuseTIR()(builder.get()))
        (kernel,) = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc)]
        # Parameters that no stage reads have been left out.
        read = list(fused["main"].body.blocks[0].bindings[0].value.args[1].fields)
        known = dict(zip(read, kernel.params, strict=False))
        given = [
            known[p] if p in known else tirx.decl_buffer(list(p.ty.shape), str(p.ty.dtype.dtype), p.name)
            for p in fused["main"].params
        ]
        return tirx.PrimFunc([*given, *kernel.params[len(read) :]], kernel.body, kernel.ret_type, kernel.attrs)

    def module(self) -> tuple[IRModule, relax.Function]:
        """Return the kernels and the step function."""
        module = self._builder.get()
        function = module["step"].with_attr("Primitive", True)
        return module, function
