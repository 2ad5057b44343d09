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
from tvm.relax.expr_functor import mutator

from relay_passes.inner_values import InnerValues, moved_inside, one_per_channel


@tvm.transform.module_pass(opt_level=0, name="SubpixelConvs")
class SubpixelConvs:
    """The pass; run it on the layout NCHW where weights are constants. It looks at ``main`` alone.

    Left to TVM are dilated and grouped transposed convolutions, and those that leave out more of their border than
    they have taps.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions in place of transposed ones."""
        return moved_inside(_Spreader(module), module)


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
class _Spreader(InnerValues):
    """Inner values are channels that are not spread yet; their geometry is how, over rows and columns."""

    def statistics(self, values: list[np.ndarray], geometry: tuple[_Axis, _Axis]) -> list[np.ndarray]:
        return [np.tile(value, _places(geometry)) for value in values]

    def operand(self, value, call: relax.Call, geometry: tuple[_Axis, _Axis]) -> relax.Expr | None:
        values = one_per_channel(value, call)
        if values is None or values.size == 1:
            return None if values is None else value
        return relax.const(np.tile(values, _places(geometry)).reshape(1, -1, 1, 1))

    def started(self, call: relax.Call) -> relax.Expr | None:
        axes = _axes(call) if getattr(call.op, "name", "") == "relax.nn.conv2d_transpose" else None
        if axes is None:
            return None
        rows, columns = axes
        weight = _weight(call.args[1].value.numpy(), axes)
        padding = [rows.before, columns.before, rows.after, columns.after]
        return self.arrange(relax.op.nn.conv2d(call.args[0], relax.const(weight), padding=padding), axes)

    def arranged(self, inner: relax.Var, geometry: tuple[_Axis, _Axis]) -> relax.Expr:
        """Channels are last while they are moved."""
        emit, channels, axes = self.builder_.emit, inner, geometry
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
        return relax.op.permute_dims(image, [0, 3, 1, 2])


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


def _places(axes: tuple[_Axis, _Axis]) -> int:
    return axes[0].stride * axes[1].stride
