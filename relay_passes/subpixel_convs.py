"""SubpixelConvs: a transposed convolution becomes a convolution, whose channels are then spread over pixels.

Of a stride of two, each second output reads the same taps: there are four small convolutions of the input, one for each
place of a two by two block of outputs (Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
2016). Together they are one with four times the channels. That is a site like any other: the pass moves what follows a
transposed convolution channel by channel, bias, normalization and nonlinearity, to where the channels are not spread
yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.main_function import mutated, tidied

#: Operators that compute each value from one, or from two of the same channel.
_BY_VALUE = {"clip", "exp", "sigmoid", "tanh"} | {f"nn.{name}" for name in ("gelu", "leakyrelu", "relu", "silu")}
_BY_VALUE |= {"add", "subtract", "multiply", "divide", "maximum", "minimum"}


@tvm.transform.module_pass(opt_level=0, name="SubpixelConvs")
class SubpixelConvs:
    """The pass; run it on the layout NCHW where weights are constants. It looks at ``main`` alone.

    Left to TVM are dilated and grouped transposed convolutions, and those that leave out more of their border than
    they have taps.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions in place of transposed ones."""
        spreader = _Spreader(module)
        result = mutated(spreader, module)
        # What is spread may be read by nobody any more, as what follows reads the channels.
        return tidied(result) if spreader.found else module


@dataclass(frozen=True)
class _Axis:
    """Rows or columns of a transposed convolution as those of a convolution.

    Attributes
    ----------
    stride : int
        Outputs of one place of the convolution.
    taps : int
    before, after : int
        Padding of the convolution.
    skipped, size : int
        Outputs that are left out in front, and how many there are then.
    """

    stride: int
    taps: int
    before: int
    after: int
    skipped: int
    size: int

    @classmethod
    def of(cls, extent: int, size: int, kernel: int, stride: int, padding: int) -> _Axis:
        """Describe an axis of `extent` inputs and `size` outputs, of which `padding` are left out in front."""
        taps, first, last = -(-kernel // stride), padding // stride, (size - 1 + padding) // stride
        return cls(stride, taps, taps - 1 - first, last + 1 - extent, padding - first * stride, size)

    def tap(self, phase: int, position: int) -> int:
        """Return which tap of the transposed kernel stands at a position of the kernel for outputs of a phase."""
        return phase + self.stride * (self.taps - 1 - position)


@mutator
class _Spreader(PyExprMutator):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.found = False
        #: By what is spread: the channels that it is spread from, and over which rows and columns.
        self._channels: dict[relax.Var, tuple[relax.Var, tuple[_Axis, _Axis]]] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        name = getattr(call.op, "name", "")
        if name == "relax.nn.conv2d_transpose":
            return self._convolved(call)
        return self._by_value(call) if name.removeprefix("relax.") in _BY_VALUE else call

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        item = super().visit_tuple_getitem_(item)
        norm = self.lookup_binding(item.tuple_value) if isinstance(item.tuple_value, relax.Var) else item.tuple_value
        if item.index or getattr(getattr(norm, "op", None), "name", "") != "relax.nn.batch_norm":
            return item
        known, statistics = self._known(norm.args[0]), norm.args[1:]
        fixed = not norm.attrs.training and all(isinstance(value, GenericConst) for value in statistics)
        if known is None or not fixed or int(norm.attrs.axis) != 1:
            return item
        channels, axes = known
        repeated = [relax.const(np.tile(s.value.numpy(), _places(axes))) for s in statistics]
        both = self.builder_.emit(relax.Call(norm.op, [channels, *repeated], norm.attrs))
        return self._spread(relax.TupleGetItem(both, 0), axes)

    def _convolved(self, call: relax.Call) -> relax.Expr:
        axes = _axes(call)
        if axes is None:
            return call
        self.found = True
        rows, columns = axes
        weight = _weight(call.args[1].value.numpy(), axes)
        padding = [rows.before, columns.before, rows.after, columns.after]
        return self._spread(relax.op.nn.conv2d(call.args[0], relax.const(weight), padding=padding), axes)

    def _by_value(self, call: relax.Call) -> relax.Expr:
        known = [self._known(argument) for argument in call.args]
        geometries = {axes for found in known if found for _, axes in [found]}
        if len(geometries) != 1:
            return call
        (axes,) = geometries
        arguments = []
        for argument, found in zip(call.args, known, strict=True):
            given = found[0] if found else _repeated(argument, call, axes)
            if given is None:
                return call
            arguments.append(given)
        return self._spread(relax.Call(call.op, arguments, call.attrs), axes)

    def _known(self, value: relax.Expr) -> tuple[relax.Var, tuple[_Axis, _Axis]] | None:
        while isinstance(value, relax.Var) and value not in self._channels:
            value = self.lookup_binding(value)
        return self._channels.get(value) if isinstance(value, relax.Var) else None

    def _spread(self, value: relax.Expr, axes: tuple[_Axis, _Axis]) -> relax.Var:
        """Emit channels, and what they are spread to: rows and columns, channels last while they are moved."""
        emit = self.builder_.emit
        channels = emit(value)
        batch, depth, high, wide = channels.ty.shape
        rows, columns = axes
        depth = int(depth) // _places(axes)
        image = emit(relax.op.permute_dims(channels, [0, 2, 3, 1]))
        image = emit(relax.op.reshape(image, [batch, high, wide, rows.stride, columns.stride, depth]))
        image = emit(relax.op.permute_dims(image, [0, 1, 3, 2, 4, 5]))
        image = emit(relax.op.reshape(image, [batch, high * rows.stride, wide * columns.stride, depth]))
        begin = [rows.skipped, columns.skipped]
        end = [axis.skipped + axis.size for axis in axes]
        if begin != [0, 0] or end != [int(extent) for extent in list(image.ty.shape)[1:3]]:
            image = emit(relax.op.strided_slice(image, [1, 2], begin, end))
        result = emit(relax.op.permute_dims(image, [0, 3, 1, 2]))
        self._channels[result] = channels, axes
        return result


def _axes(call: relax.Call) -> tuple[_Axis, _Axis] | None:
    """Return rows and columns of a transposed convolution, None if it is one of another kind."""
    attributes, (x, weight) = call.attrs, call.args
    plain = attributes.data_layout == "NCHW" and attributes.kernel_layout == "IOHW" and int(attributes.groups) == 1
    known = all(isinstance(extent, tvm.tirx.IntImm) for extent in [*list(x.ty.shape)[1:], *list(call.ty.shape)[1:]])
    floats = str(x.ty.dtype.dtype) == "float32" and isinstance(weight, GenericConst)
    if not (plain and known and floats) or any(int(by) != 1 for by in attributes.dilation):
        return None
    sizes = zip(x.ty.shape, call.ty.shape, weight.ty.shape, strict=True)
    windows = zip(list(sizes)[2:], attributes.strides, attributes.padding, strict=False)
    axes = [_Axis.of(*map(int, size), int(stride), int(padding)) for size, stride, padding in windows]
    return tuple(axes) if all(axis.before >= 0 and axis.after >= 0 for axis in axes) else None


def _weight(weight: np.ndarray, axes: tuple[_Axis, _Axis]) -> np.ndarray:
    """Return weights ``(places * outputs, inputs, taps, taps)`` from ``(inputs, outputs, rows, columns)``."""
    rows, columns = axes
    inputs, outputs, *kernel = weight.shape
    result = np.zeros((rows.stride, columns.stride, outputs, inputs, rows.taps, columns.taps), "float32")
    for place in np.ndindex(rows.stride, columns.stride, rows.taps, columns.taps):
        taps = [axis.tap(*pair) for axis, pair in zip(axes, (place[::2], place[1::2]), strict=True)]
        if taps[0] < kernel[0] and taps[1] < kernel[1]:
            phase, at = place[:2], place[2:]
            result[phase[0], phase[1], :, :, at[0], at[1]] = weight[:, :, taps[0], taps[1]].T
    return result.reshape(-1, inputs, rows.taps, columns.taps)


def _repeated(value: relax.Expr, call: relax.Call, axes: tuple[_Axis, _Axis]) -> relax.Expr | None:
    """Return an operand for the channels that are not spread yet, None if it is none of one value a channel."""
    if not isinstance(value, GenericConst):
        return None if isinstance(value, relax.Var) else value
    if not isinstance(value.ty, relax.TensorType):
        return value
    array = value.value.numpy()
    if array.size == 1:
        return value
    shape = (1,) * (4 - array.ndim) + array.shape
    if shape != (1, int(call.ty.shape[1]), 1, 1):
        return None
    return relax.const(np.tile(array.reshape(shape), (1, _places(axes), 1, 1)))


def _places(axes: tuple[_Axis, _Axis]) -> int:
    return axes[0].stride * axes[1].stride
