"""VectorFunctions: exponentials of loops that TVM made become polynomials.

LLVM calls the C library for each value of ``exp``, ``tanh`` or ``sigmoid``; of plain arithmetic it makes vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import IRModule, ir, tirx

from schedules.intrinsics import exp, sigmoid, tanh

#: Ends of the arguments whose exponentials are neither zero nor infinite.
_LEAST, _GREATEST = -87.3, 88.7
#: By name, of one float32; within 4e-7 of the values, relative for exponentials.
_FUNCTIONS = {"exp": lambda x: _between(x, exp(x)), "sigmoid": sigmoid, "tanh": tanh}


@tvm.transform.module_pass(opt_level=0, name="VectorFunctions")
class VectorFunctions:
    """The pass; run it behind `relay_passes.schedule_loops`. Kernels of this project call none of these functions."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with arithmetic in place of calls."""
        result = IRModule(module.functions, attrs=module.attrs)
        for name, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc):
                body = tvm_ffi.structural_map(function.body, (ir.Call, _written_out), order="post")
                if not body.same_as(function.body):
                    result.update_func(name, function.with_body(body))
        return result


def _written_out(call: ir.Call) -> ir.Expr:
    name = call.op.name.split(".")[-1] if isinstance(call.op, ir.Op) else ""
    if name not in _FUNCTIONS or str(call.ty.dtype) != "float32":
        return call
    return _of_value(_FUNCTIONS[name], call.args[0])


def _of_value(function: Callable, argument: ir.Expr) -> ir.Expr:
    """Return a function of an argument that is computed once."""
    value = tirx.Var("value", "float32")
    return tirx.Let(value, argument, function(value))


def _between(x: tirx.Var, exponential: ir.Expr) -> ir.Expr:
    """Return an exponential that is zero, infinite or no number where the function is."""
    zero, infinite = (tirx.const(value, "float32") for value in (0.0, float("inf")))
    below = tirx.Select(x < tirx.const(_LEAST, "float32"), zero, exponential)
    above = tirx.Select(x > tirx.const(_GREATEST, "float32"), infinite, below)
    return tirx.Select(tirx.isnan(x), x, above)
