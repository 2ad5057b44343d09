"""SignalConvs: a convolution of a signal becomes one of an image of one row, and pooling likewise.

That is a site like any other. Exporters write the two in turn, so what lies between them is computed on images, too.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import mutator

from relay_passes.inner_values import InnerValues, moved_inside, one_per_channel

#: The axis of an image's rows.
_ROWS = 2


@tvm.transform.module_pass(opt_level=0, name="SignalConvs")
class SignalConvs:
    """The pass; run it on the layout NCW where weights are constants. It looks at ``main`` alone."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions of images in place of those of signals."""
        return moved_inside(_Widener(module), module)


@mutator
class _Widener(InnerValues):
    """Inner values are images of one row; there is one geometry."""

    def started(self, call: relax.Call) -> relax.Expr | None:
        name = getattr(call.op, "name", "")
        if name == "relax.nn.conv1d" and _is_plain(call):
            weight = relax.const(call.args[1].value.numpy()[:, :, None])
            return self.arrange(relax.op.nn.conv2d(self._image(call.args[0]), weight, **_windows(call)), ())
        pools = {"relax.nn.max_pool1d": relax.op.nn.max_pool2d, "relax.nn.avg_pool1d": relax.op.nn.avg_pool2d}
        known = self.inner(call.args[0]) if name in pools else None
        if known is None or call.attrs.layout != "NCW":
            return None
        more = {"ceil_mode": bool(call.attrs.ceil_mode)}
        if name.endswith("avg_pool1d"):
            more["count_include_pad"] = bool(call.attrs.count_include_pad)
        window = [1, int(call.attrs.pool_size[0])]
        return self.arrange(pools[name](known[0], window, **_windows(call), **more), ())

    def arranged(self, inner: relax.Var, geometry) -> relax.Expr:
        return relax.op.squeeze(inner, [_ROWS])

    def operand(self, value, call: relax.Call, geometry) -> relax.Expr | None:
        values = one_per_channel(value, call)
        if values is not None:
            return value if values.size == 1 else relax.const(values.reshape(1, -1, 1, 1))
        same = isinstance(value, relax.Var) and list(value.ty.shape) == list(call.ty.shape)
        return self._image(value) if same else None

    def _image(self, signal: relax.Expr) -> relax.Var:
        known = self.inner(signal)
        return known[0] if known else self.builder_.emit(relax.op.expand_dims(signal, _ROWS))


def _is_plain(conv: relax.Call) -> bool:
    attributes = conv.attrs
    return (
        (attributes.data_layout, attributes.kernel_layout, attributes.out_layout) == ("NCW", "OIW", "NCW")
        and isinstance(conv.args[1], GenericConst)
        and str(conv.ty.dtype.dtype) == "float32"
    )


def _windows(call: relax.Call) -> dict:
    """Return steps and padding of a layer of signals as those of one of images."""
    attributes = call.attrs
    left, right = (int(by) for by in attributes.padding)
    found = {"strides": [1, int(attributes.strides[0])], "padding": [0, left, 0, right]}
    found["dilation"] = [1, int(attributes.dilation[0])]
    if hasattr(attributes, "groups"):
        found["groups"] = int(attributes.groups)
    return found
