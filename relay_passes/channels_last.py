"""ChannelsLast: convolutions read and write images pixel by pixel (NHWC), and so does what lies between them.

What a kernel broadcasts or skips is then one run of memory. Images are transposed where they enter or leave a chain
of convolutions, depthwise ones among them, never within it. Other convolutions in groups stay as they come, and so do
transposed ones that `relay_passes.subpixel_convs` leaves.
"""

from __future__ import annotations

from math import inf

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.dpl import is_op, rewrite_call, wildcard

from relay_passes.conv2d_site import is_depthwise
from relay_passes.drop_idle_transposes import DropIdleTransposes
from relay_passes.fold_layouts import FoldLayouts

_COMMUTATIVE = {f"relax.{name}" for name in ("add", "multiply", "maximum", "minimum")}


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
class ChannelsLast:
    """The pass; run it where weights are constants.

    Clips and leaky ReLUs have no layout to TVM: ReLU6 becomes ``minimum(relu(x), 6)``, others likewise. Nor has a
    vector of one value: what is added to all of an image becomes a scalar, and the image keeps its layout. Of two
    operands TVM follows the layout of the first, so constants stand second. It crashes at stacks, which become
    concatenations, and at axes that are counted from the end.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with its convolutions channels last; one without any as it is."""
        if not _has_convolutions(module["main"]):
            return module
        result = IRModule(module.functions, attrs=module.attrs)
        clip = is_op("relax.clip")(wildcard(), wildcard(), wildcard())
        result["main"] = rewrite_call(clip, lambda call, _: _without_clip(call), module["main"])
        leaky = is_op("relax.nn.leakyrelu")(wildcard())
        result["main"] = rewrite_call(leaky, lambda call, _: _without_leak(call), result["main"])
        for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
            by_value = is_op(f"relax.{name}")(wildcard(), wildcard())
            result["main"] = rewrite_call(by_value, lambda call, _: _with_constant(call), result["main"])
        stack = is_op("relax.stack")(wildcard())
        result["main"] = rewrite_call(stack, lambda call, _: _without_stack(call), result["main"])
        squeeze = is_op("relax.squeeze")(wildcard())
        result["main"] = rewrite_call(squeeze, lambda call, _: _counted_from_start(call), result["main"])
        passes = [
            relax.transform.ConvertLayout({}, _layouts),
            # Weights are constants, and are laid out anew here.
            FoldLayouts(),
            relax.transform.FoldConstant(),
            DropIdleTransposes(),
        ]
        return tvm.transform.Sequential(passes)(result)


def _has_convolutions(main: relax.Function) -> bool:
    found = []

    def look(value: relax.Expr) -> None:
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op):
            found.append(value.op.name == "relax.nn.conv2d")

    relax.analysis.post_order_visit(main, look)
    return any(found)


def _without_clip(call: relax.Call) -> relax.Expr:
    """Return a clip of floats as operators that each have one operand to lay out."""
    value, (low, high) = call.args[0], (float(bound.value) for bound in call.args[1:])
    if str(call.ty.dtype.dtype) != "float32":
        return call
    if low > -inf:
        value = relax.op.maximum(value, relax.const(low, "float32")) if low else relax.op.nn.relu(value)
    return relax.op.minimum(value, relax.const(high, "float32")) if high < inf else value


def _without_leak(call: relax.Call) -> relax.Expr:
    """Return a leaky ReLU as operators that each have one operand to lay out."""
    (value,), alpha = call.args, float(call.attrs.alpha)
    if str(call.ty.dtype.dtype) != "float32":
        return call
    leak = relax.op.multiply(value, relax.const(alpha, "float32"))
    return relax.op.maximum(value, leak) if alpha <= 1 else relax.op.minimum(value, leak)


def _with_constant(call: relax.Call) -> relax.Expr:
    """Return an operator of two operands with a constant behind a value; a scalar if it has one value for all."""
    operands = list(call.args)
    constants = [isinstance(operand, GenericConst) for operand in operands]
    if sum(constants) != 1:
        return call
    at, swapped = constants.index(True), call.op.name in _COMMUTATIVE and constants[0]
    array = operands[at].value.numpy()
    if array.size == 1 and 0 < array.ndim <= len(operands[1 - at].ty.shape or ()):
        operands[at] = relax.const(array.reshape(()), str(array.dtype))
    elif not swapped:
        return call
    return relax.Call(call.op, operands[::-1] if swapped else operands, call.attrs)


def _without_stack(call: relax.Call) -> relax.Expr:
    """Return tensors put beside each other along a new axis of theirs."""
    axis, (values,) = int(call.attrs.axis), call.args
    if not isinstance(values, relax.Tuple):
        return call
    return relax.op.concat([relax.op.expand_dims(value, axis) for value in values.fields], axis)


def _counted_from_start(call: relax.Call) -> relax.Expr:
    """Return a squeeze whose axes are not negative."""
    (value,), axes = call.args, call.attrs.axis
    if axes is None or all(int(axis) >= 0 for axis in axes):
        return call
    return relax.op.squeeze(value, [int(axis) % len(value.ty.shape) for axis in axes])


def _layouts(call: relax.Call) -> dict[str, list[str]]:
    """Return the layouts of the input and weights of a convolution."""
    if call.op.name == "relax.nn.conv2d_transpose":
        return {call.op.name: ["NCHW", "IOHW"]}
    if call.op.name != "relax.nn.conv2d":
        return {}
    last = int(call.attrs.groups) == 1 or is_depthwise(call)
    return {call.op.name: ["NHWC", "OHWI"] if last else ["NCHW", "OIHW"]}
