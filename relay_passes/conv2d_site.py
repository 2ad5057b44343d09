"""Convolutions as sites: what is matched, and what a matched one consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.dpl import is_const, is_op, wildcard

from relay_passes.name_hard_swish import HARD_SWISH
from relay_passes.patterns import is_read_once
from schedules.conv2d_shape import Conv2d
from schedules.pool import MaxPool2d

COMPOSITE, DEPTHWISE = "dual.conv2d", "dual.depthwise"
_SIX = 6.0
#: By nonlinearity, the operator that it is.
OPERATORS = {
    **{"relu": "relax.nn.relu", "sigmoid": "relax.sigmoid", "tanh": "relax.tanh"},
    **{"silu": "relax.nn.silu", "hard_swish": HARD_SWISH},
}


@dataclass(frozen=True, eq=False)
class Conv2dSite:
    """A matched convolution.

    Attributes
    ----------
    conv : Conv2d
    pool : MaxPool2d or None
        What follows it.
    weight : ndarray, float32, (outputs, kernel rows, kernel columns, inputs)
    bias : ndarray, float32, (outputs,)
    x, residual : Expr or None
        What the site's call reads.
    """

    conv: Conv2d
    pool: MaxPool2d | None
    weight: np.ndarray
    bias: np.ndarray
    x: relax.Expr
    residual: relax.Expr | None


def conv2d_patterns() -> list[tuple]:
    """Convolution channels last, then bias, another image, a nonlinearity and pooling if there are any; longest first.

    ReLU6 is ``minimum(relu(x), 6)``, as `relay_passes.channels_last` writes it.
    """
    return _patterns(COMPOSITE, _is_conv2d, (True, False), ("behind", "before", None))


def depthwise_patterns() -> list[tuple]:
    """Return the same of depthwise convolutions, without another image and pooling."""
    return _patterns(DEPTHWISE, _is_depthwise, (False,), (None,))


def _patterns(composite: str, check: Callable, pooling: tuple, images: tuple) -> list[tuple]:
    patterns = []
    for pooled, activation, added, bias in product(pooling, ("relu6", *OPERATORS, None), images, (True, False)):
        parts = {"conv": is_op("relax.nn.conv2d")(wildcard(), is_const())}
        result = parts["conv"]
        if bias:
            parts["bias"] = is_const()
            result = is_op("relax.add")(result, parts["bias"])
        if added:
            other = parts["residual"] = wildcard()
            result = is_op("relax.add")(*((result, other) if added == "behind" else (other, result)))
        if activation == "relu6":
            parts["limit"] = is_const()
            result = is_op("relax.minimum")(is_op("relax.nn.relu")(result), parts["limit"])
        elif activation:
            result = is_op(OPERATORS[activation])(result)
        if pooled:
            result = parts["pool"] = is_op("relax.nn.max_pool2d")(result)
        patterns.append((composite, result, parts, check))
    return patterns


def _is_conv2d(context: relax.transform.PatternCheckContext) -> bool:
    return int(context.annotated_expr["conv"].attrs.groups) == 1 and _is_known(context)


def _is_depthwise(context: relax.transform.PatternCheckContext) -> bool:
    conv = context.annotated_expr["conv"]
    return is_depthwise(conv) and _is_known(context)


def is_depthwise(conv: relax.Call) -> bool:
    """Whether a convolution of known shape gives one channel for each that it reads."""
    x, weight = conv.args[0].ty, conv.args[1].ty
    if not (_static(x) and _static(weight)):
        return False
    channels = int(x.shape[conv.attrs.data_layout.index("C")])
    outputs = int(weight.shape[conv.attrs.kernel_layout.index("O")])
    return int(conv.attrs.groups) == channels == outputs


def _is_known(context: relax.transform.PatternCheckContext) -> bool:
    """Accept float32 images of known shape, and what the kernels know of the rest."""
    found = context.annotated_expr
    conv = found["conv"]
    if not is_read_once(context):
        return False
    shapes = [conv.args[0].ty, conv.args[1].ty, conv.ty]
    if any(str(type_.dtype.dtype) != "float32" or not _static(type_) for type_ in shapes):
        return False
    attributes = conv.attrs
    if (attributes.data_layout, attributes.kernel_layout, attributes.out_layout) != ("NHWC", "OHWI", "NHWC"):
        return False
    if "bias" in found and _extents(found["bias"]) != (1, 1, 1, _extents(conv)[-1]):
        return False
    if "residual" in found:
        other = found["residual"]
        # The first constant that is added is a bias.
        first = isinstance(other, GenericConst) and "bias" not in found
        if first or not _static(other.ty) or _extents(other) != _extents(conv):
            return False
    if "limit" in found and (found["limit"].value.numpy() != _SIX).any():
        return False
    return "pool" not in found or _is_plain_pool(found["pool"])


def _is_plain_pool(pool: relax.Call) -> bool:
    attributes = pool.attrs
    return (
        attributes.layout == "NHWC"
        and attributes.out_layout == "NHWC"
        and not any(attributes.padding)
        and not attributes.ceil_mode
        and set(attributes.dilation) == {1}
    )


def _static(type_: relax.TensorType) -> bool:
    return type_.shape is not None and all(isinstance(extent, tvm.tirx.IntImm) for extent in type_.shape)


def _extents(expression: relax.Expr) -> tuple[int, ...]:
    return tuple(int(extent) for extent in expression.ty.shape)


def read_conv2d(function: relax.Function, call: relax.Call, activation: str | None) -> Conv2dSite:
    """Return what a site's function and its call in ``main`` consist of."""
    given = dict(zip(function.params, call.args, strict=True))
    calls = {}
    bias = residual = None
    for binding in function.body.blocks[0].bindings:
        value = binding.value
        if not isinstance(value, relax.Call):
            continue
        calls[value.op.name] = value
        if value.op.name == "relax.add":
            (other,) = [given[operand] for operand in value.args if operand in given]
            if isinstance(other, GenericConst) and bias is None:
                bias = other.value.numpy().reshape(-1)
            else:
                residual = other
    conv = calls["relax.nn.conv2d"]
    weight = given[conv.args[1]].value.numpy()
    geometry = Conv2d(
        *_extents(conv.args[0]),
        len(weight),
        weight.shape[1:3],
        *(tuple(int(n) for n in getattr(conv.attrs, name)) for name in ("strides", "padding", "dilation")),
        activation,
        residual is not None,
    )
    pool = calls.get("relax.nn.max_pool2d")
    if pool is not None:
        windows = (tuple(int(n) for n in getattr(pool.attrs, name)) for name in ("pool_size", "strides"))
        pool = MaxPool2d(*_extents(conv), *windows)
    bias = np.zeros(len(weight), "float32") if bias is None else bias
    return Conv2dSite(geometry, pool, weight, bias, given[conv.args[0]], residual)


def conv2d_function(site: Conv2dSite) -> relax.Function:
    """Return the function ``(x, weight, bias)`` or ``(x, weight, bias, residual)`` of a site, without attributes.

    `read_conv2d` reads such a function; weights and images of the call are not part of it. ReLU6 is written as the
    patterns of `conv2d_patterns` have it.
    """
    conv, pool = site.conv, site.pool
    shape = (conv.batch, conv.out_height, conv.out_width, conv.outputs)
    shapes = [(conv.batch, conv.height, conv.width, conv.inputs), site.weight.shape, (1, 1, 1, conv.outputs)]
    names = ["x", "weight", "bias", "residual"] if conv.residual else ["x", "weight", "bias"]
    parameters = [
        relax.Var(name, relax.TensorType(list(extents), "float32"))
        for name, extents in zip(names, [*shapes, shape], strict=False)
    ]
    builder = relax.BlockBuilder()
    with builder.function("conv2d", parameters, private=True):
        with builder.dataflow():
            *stages, last = _stages(conv, pool, *parameters[1:])
            y = parameters[0]
            for stage in stages:
                y = builder.emit(stage(y))
            result = builder.emit_output(last(y))
        builder.emit_func_output(result)
    return builder.get()["conv2d"]


def _stages(conv: Conv2d, pool: MaxPool2d | None, weight: relax.Var, *added: relax.Var) -> list:
    """Return the operators of a site, each a function of what the one before it gives."""
    windows = {"strides": conv.strides, "padding": conv.padding, "dilation": conv.dilation}
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
    stages = [lambda x: relax.op.nn.conv2d(x, weight, **windows, **layouts)]
    stages += [partial(lambda other, y: relax.op.add(y, other), other) for other in added]
    if conv.activation:
        operator = tvm.ir.Op.get(OPERATORS["relu" if conv.activation == "relu6" else conv.activation])
        stages.append(lambda y: relax.Call(operator, [y]))
    if conv.activation == "relu6":
        stages.append(lambda y: relax.op.minimum(y, relax.const(_SIX, "float32")))
    if pool is not None:
        images = {"layout": "NHWC", "out_layout": "NHWC"}
        stages.append(lambda y: relax.op.nn.max_pool2d(y, pool.window, pool.strides, **images))
    return stages
