"""MarkSites: give every layer that could be rewritten a private function with a name of its own.

Before, a dense layer or convolution is a chain of operators and recurrent layers share a function if they look
alike. After, each is one call of its own private function with the attributes ``Composite``
(``dual.dense``, ``dual.conv2d``, ``dual.gru`` or ``dual.lstm``), ``dual.site`` (its name: kind and number in
graph order) and ``dual.nonnegative`` (whether the input can only be zero or more, so that zeros can be skipped).
Weights stay arguments of the call.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.dpl import is_const, is_op, wildcard
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.conv2d_site import COMPOSITE, DEPTHWISE, OPERATORS, conv2d_patterns
from relay_passes.main_function import mutated
from relay_passes.patterns import is_read_once

#: Nonlinearities of dense layers; convolutions have some more.
ACTIVATIONS = {"relax.nn.relu": "relu", "relax.sigmoid": "sigmoid", "relax.tanh": "tanh"}
_ALL_ACTIVATIONS = {operator: name for name, operator in OPERATORS.items()}
#: Operators that give nothing negative if they are given nothing negative.
_KEEP_SIGN = {
    "relax.squeeze",
    "relax.reshape",
    "relax.permute_dims",
    "relax.expand_dims",
    "relax.flatten",
    "relax.max",
    "relax.mean",
    "relax.nn.max_pool2d",
    "relax.nn.avg_pool2d",
    "relax.nn.adaptive_avg_pool2d",
}


@tvm.transform.module_pass(opt_level=0, name="MarkSites")
class MarkSites:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every site in a function of its own."""
        patterns = [*_dense_patterns(), *conv2d_patterns()]
        module = relax.transform.FuseOpsByPattern(patterns, bind_constants=False, entry_functions=["main"])(module)
        return relax.transform.DeadCodeElimination(["main"])(mutated(_Marker(module), module))


def _dense_patterns() -> list[tuple]:
    """Matrix product with a constant, then bias and nonlinearity if there are any; longest first."""
    patterns = []
    for activation in (*ACTIVATIONS, None):
        for bias_first in (True, False, None):
            result = is_op("relax.matmul")(wildcard(), is_const())
            if bias_first is not None:
                operands = (is_const(), result) if bias_first else (result, is_const())
                result = is_op("relax.add")(*operands)
            if activation:
                result = is_op(activation)(result)
            patterns.append(("dual.dense", result, {}, _is_dense))
    return patterns


def _is_dense(context: relax.transform.PatternCheckContext) -> bool:
    """Accept float32 products with a matrix, and biases that are one value per output."""
    if not is_read_once(context):
        return False
    for call in [context.matched_expr, *context.matched_bindings.values()]:
        if not isinstance(call, relax.Call) or call.op.name not in ("relax.matmul", "relax.add"):
            continue
        if any(str(argument.ty.dtype.dtype) != "float32" for argument in call.args):
            return False
        constants = [a for a in call.args if isinstance(a, GenericConst)]
        if call.op.name == "relax.matmul" and any(len(a.ty.shape) != 2 for a in constants):
            return False
        if call.op.name == "relax.add":
            # Anything else, a scalar say, would be broadcast.
            one_each = len({int(a.ty.shape[-1]) for a in call.args if len(a.ty.shape)}) == 1
            if not one_each or any(len(a.ty.shape) != 1 for a in constants):
                return False
    return True


@mutator
class _Marker(PyExprMutator):
    """Clones the composite function of each call, and follows which values cannot be negative."""

    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self._module = module
        self._counts: dict[str, int] = {}
        self._nonnegative: set = set()

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            function = self._module[value.op]
            kind = function.attrs.get("Composite") if function.attrs else None
            if kind is not None:
                value = self._named(value, function, str(kind))
                if layer_activation(function) in ("relu", "relu6", "sigmoid"):
                    self._nonnegative.add(binding.var)
                super().visit_var_binding_(relax.VarBinding(binding.var, value))
                return
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op):
            source = value.args[0] if value.args else None
            if value.op.name in ("relax.nn.relu", "relax.sigmoid") or (
                value.op.name in _KEEP_SIGN and source in self._nonnegative
            ):
                self._nonnegative.add(binding.var)
        super().visit_var_binding_(binding)

    def _named(self, call: relax.Call, function: relax.Function, kind: str) -> relax.Call:
        label = kind.removeprefix("dual.")
        name = f"{label}{self._counts.setdefault(label, 0)}"
        self._counts[label] += 1
        attributes = {"dual.site": name, "dual.nonnegative": int(call.args[0] in self._nonnegative)}
        clone = relax.utils.copy_with_new_vars(function).with_attrs(attributes)
        target = self.builder_.add_func(clone, name)
        return relax.Call(target, list(call.args))


def layer_activation(function: relax.Function) -> str | None:
    """Return the nonlinearity of a dense site or convolution: relu, relu6, sigmoid, tanh, silu, hard_swish or None."""
    if function.attrs["Composite"] not in ("dual.dense", COMPOSITE, DEPTHWISE):
        return None
    names = {getattr(getattr(binding.value, "op", None), "name", "") for binding in function.body.blocks[0].bindings}
    if "relax.minimum" in names:
        return "relu6"
    return next((_ALL_ACTIVATIONS[name] for name in names if name in _ALL_ACTIVATIONS), None)
