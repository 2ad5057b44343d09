"""A marked model in PyTorch: what the library computes, differentiable, with little modules in place of some layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from relay_passes.conv2d_site import COMPOSITE, Conv2dSite, read_conv2d
from relay_passes.mark_sites import layer_activation

#: What stands in place of a convolution's sums: from the image (1, height, width, channels) that it reads, the one that
#: is added, if any, and a function that gives the exact sums, bias and added image included.
Sums = Callable[["torch.Tensor", "torch.Tensor | None", Callable[[], "torch.Tensor"]], "torch.Tensor"]  # noqa: F821


class TorchModel:
    """The layers and operators of ``main``, one after the other; weights are constants.

    Attributes
    ----------
    convs : dict of Conv2dSite
        Convolutions, by site.
    """

    def __init__(self, torch, module: IRModule) -> None:
        """Take a module of marked sites, fixed shapes and no states: calls are stacked (`torch.vmap`)."""
        self._torch, self._module, self.convs = torch, module, {}
        self._constants: dict = {}
        for block in module["main"].body.blocks:
            for binding in block.bindings:
                call = binding.value
                function = module[call.op] if isinstance(getattr(call, "op", None), tvm.ir.GlobalVar) else None
                if function is not None and function.attrs["Composite"] == COMPOSITE:
                    site = read_conv2d(function, call, layer_activation(function))
                    self.convs[str(function.attrs["dual.site"])] = site

    def run(self, inputs: Sequence, sums: Mapping[str, Sums] | None = None) -> list:
        """Return the outputs, float32 (calls, *output shape), of inputs (calls, *input shape).

        Convolutions by the names in `sums` have their sums computed by these functions.
        """
        return list(self._torch.vmap(lambda *call: tuple(self._main(call, sums or {})))(*inputs))

    def _main(self, call: Sequence, sums: Mapping[str, Sums]) -> list:
        main = self._module["main"]
        found = self._body(main, dict(zip(main.params, call, strict=True)), sums)
        return found if isinstance(found, list) else [found]

    def _body(self, function: relax.Function, values: dict, sums: Mapping[str, Sums]):
        for block in function.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._value(binding.value, values, sums)
        return self._value(function.body.body, values, sums)

    def _value(self, value, values: dict, sums: Mapping[str, Sums]):
        if isinstance(value, GenericConst):
            # TVM copies what it gives as an array.
            if value not in self._constants:
                self._constants[value] = self._torch.from_numpy(value.value.numpy())
            return self._constants[value]
        if isinstance(value, relax.Tuple):
            return [self._value(field, values, sums) for field in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return values[value.tuple_value][value.index]
        if not isinstance(value, relax.Call):
            return values[value]
        if not isinstance(value.op, tvm.ir.GlobalVar):
            arguments = [self._value(a, values, sums) for a in value.args if not isinstance(a, relax.ShapeExpr)]
            return OPERATORS[value.op.name](self._torch, value, *arguments)
        function = self._module[value.op]
        if function.attrs["Composite"] == COMPOSITE:
            return self._conv2d(str(function.attrs["dual.site"]), values, sums)
        arguments = (self._value(argument, values, sums) for argument in value.args)
        return self._body(function, dict(zip(function.params, arguments, strict=True)), sums)

    def _conv2d(self, name: str, values: dict, sums: Mapping[str, Sums]):
        site, torch = self.convs[name], self._torch
        x = self._value(site.x, values, sums)
        added = None if site.residual is None else self._value(site.residual, values, sums)

        def exact():
            found = convolved(torch, site, x, site.weight) + torch.from_numpy(site.bias)
            return found if added is None else found + added

        y = sums[name](x, added, exact) if name in sums else exact()
        y = activated(torch, site.conv.activation, y)
        if site.pool is not None:
            y = _channels_last(torch.nn.functional.max_pool2d, y, site.pool.window, site.pool.strides)
        return y


def translatable(module: IRModule) -> bool:
    """Whether `TorchModel` knows all that a model consists of."""
    types = [parameter.ty for parameter in module["main"].params]
    fixed = all(isinstance(extent, tvm.tirx.IntImm) for type_ in types for extent in type_.shape or (None,))
    floats = all(str(type_.dtype.dtype) == "float32" for type_ in types)
    return fixed and floats and set(_operators(module)) <= set(OPERATORS)


def _operators(module: IRModule) -> Iterator[str]:
    """Yield the names of all operators, of composite functions those within; of what is none, its own name."""
    for function in module.functions.values():
        if not isinstance(function, relax.Function):
            yield type(function).__name__
            continue
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, relax.Call) and not isinstance(value.op, tvm.ir.GlobalVar):
                    yield value.op.name if _is_plain(value) else f"{value.op.name} with such attributes"
                elif not isinstance(value, (relax.Call, relax.Tuple, relax.TupleGetItem, relax.Var, GenericConst)):
                    yield type(value).__name__


def _is_plain(call: relax.Call) -> bool:
    """Whether an operator's attributes are such as `OPERATORS` knows."""
    name, attributes = call.op.name, call.attrs
    if name == "relax.nn.pad":
        return attributes.pad_mode == "constant"
    if not name.endswith("pool2d") or name not in OPERATORS:
        return True
    top, left, bottom, right = _extents(attributes.padding)
    return (top, left) == (bottom, right) and set(_extents(attributes.dilation)) == {1} and not attributes.ceil_mode


def activated(torch, kind: str | None, sums):
    """Return what a layer's nonlinearity makes of its sums."""
    if kind == "relu6":
        return sums.clamp(0, 6)
    if kind in ("silu", "hard_swish"):
        return getattr(torch.nn.functional, kind.replace("_", ""))(sums)
    return sums if kind is None else getattr(torch, kind)(sums)


def convolved(torch, site: Conv2dSite, x, weight):
    """Return products with ``weight: (outputs, kernel rows, kernel columns, inputs)`` in the geometry of a site."""
    conv, weight = site.conv, torch.as_tensor(weight).permute(0, 3, 1, 2)
    return _channels_last(partial(_conv2d, torch, weight, conv.padding, conv.strides, conv.dilation), x)


def _conv2d(torch, weight, padding: Sequence[int], strides, dilation, images, groups: int = 1):
    """Return a convolution of images channels first, padded by top, left, bottom and right."""
    top, left, bottom, right = padding
    padded = torch.nn.functional.pad(images, (left, right, top, bottom))
    return torch.nn.functional.conv2d(padded, weight, stride=strides, dilation=dilation, groups=groups)


def _channels_last(function: Callable, images, *arguments):
    """Apply a function of images channels first to ones that have them last."""
    return function(images.permute(0, 3, 1, 2), *arguments).permute(0, 2, 3, 1)


def _extents(shape) -> list[int]:
    return [int(extent) for extent in shape]


def _axes(call: relax.Call, x) -> list[int]:
    return list(range(x.dim())) if call.attrs.axis is None else [int(axis) for axis in call.attrs.axis]


def _reduced(name: str) -> Callable:
    return lambda torch, call, x: getattr(torch, name)(x, dim=_axes(call, x), keepdim=bool(call.attrs.keepdims))


def _grouped(torch, call, x, weight):
    """Convolutions that are no sites, in groups for one."""
    attributes = call.attrs
    windows = (_extents(getattr(attributes, name)) for name in ("padding", "strides", "dilation"))
    weight = weight.permute(0, 3, 1, 2) if attributes.kernel_layout == "OHWI" else weight
    product = partial(_conv2d, torch, weight, *windows, groups=int(attributes.groups))
    return _channels_last(product, x) if attributes.data_layout == "NHWC" else product(x)


def _pooled(name: str) -> Callable:
    def pooled(torch, call, x):
        attributes = call.attrs
        windows = _extents(attributes.pool_size), _extents(attributes.strides), _extents(attributes.padding)[:2]
        function = getattr(torch.nn.functional, name)
        return _channels_last(function, x, *windows) if attributes.layout == "NHWC" else function(x, *windows)

    return pooled


def _padded(torch, call, x):
    before_and_after = np.reshape(_extents(call.attrs.pad_width), (-1, 2))
    # PyTorch begins with the last axis.
    widths = [int(width) for width in before_and_after[::-1].reshape(-1)]
    return torch.nn.functional.pad(x, widths, value=float(call.attrs.pad_value))


def _squeezed(_torch, call, x):
    axes = call.attrs.axis
    return x.squeeze() if axes is None else x.squeeze(tuple(_extents(axes)))


def _expanded(_torch, call, x):
    for axis in sorted(_extents(call.attrs.axis)):
        x = x.unsqueeze(axis)
    return x


def _permuted(_torch, call, x):
    axes = call.attrs.axes
    return x.permute(*(reversed(range(x.dim())) if axes is None else _extents(axes)))


def _reshaped(_torch, call, x):
    return x.reshape(_extents(call.ty.shape))


#: By operator: from torch, the call and its tensors to the result.
OPERATORS: dict[str, Callable] = {
    **{
        f"relax.{name}": lambda torch, _call, *values, _name=name: getattr(torch, _name)(*values)
        for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "matmul", "sigmoid", "tanh")
    },
    "relax.nn.relu": lambda torch, _call, x: torch.relu(x),
    "relax.nn.softmax": lambda torch, call, x: torch.softmax(x, int(call.attrs.axis)),
    "relax.mean": _reduced("mean"),
    "relax.sum": _reduced("sum"),
    "relax.max": _reduced("amax"),
    "relax.nn.conv2d": _grouped,
    "relax.nn.max_pool2d": _pooled("max_pool2d"),
    "relax.nn.avg_pool2d": _pooled("avg_pool2d"),
    "relax.nn.pad": _padded,
    "relax.reshape": _reshaped,
    "relax.flatten": _reshaped,
    "relax.squeeze": _squeezed,
    "relax.expand_dims": _expanded,
    "relax.permute_dims": _permuted,
}
