"""Where the channels of a value lie, and what operators do with the axis that they have for themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import GenericConst

from relay_passes.conv2d_site import is_depthwise


@dataclass(frozen=True)
class Lanes:
    """Where channels lie.

    Attributes
    ----------
    parts : tuple of (int, int)
        Number of the group and channels; the number is -1 for channels of nobody's.
    stride : int
        From one channel to the next, in the value's flat order.
    """

    parts: tuple[tuple[int, int], ...]
    stride: int

    @property
    def count(self) -> int:
        """Channels of all parts."""
        return sum(count for _, count in self.parts)


def operands(value: relax.Expr) -> list[relax.Expr]:
    """Return what a value is computed from, tuples taken apart."""
    if isinstance(value, relax.Call):
        nested = [x.fields if isinstance(x, relax.Tuple) else [x] for x in value.args]
        return [x for fields in nested for x in fields]
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return list(value.fields) if isinstance(value, relax.Tuple) else [value]


def extents(value: relax.Expr) -> tuple[int, ...] | None:
    """Return a value's shape, or None if it is open."""
    shape = getattr(getattr(value, "ty", None), "shape", None)
    if shape is None or any(not isinstance(extent, tvm.tirx.IntImm) for extent in shape):
        return None
    return tuple(int(extent) for extent in shape)


def own_axis(shape: tuple[int, ...], lanes: Lanes) -> int | None:
    """Return the axis that channels have for themselves in a value of a shape, or None."""
    axes = range(len(shape))
    return next((a for a in axes if shape[a] == lanes.count and math.prod(shape[a + 1 :]) == lanes.stride), None)


def reduced_axis(call: relax.Call, axis: int, rank: int) -> int | None:
    """Return what becomes of an axis behind a reduction of others."""
    if call.attrs.axis is None:
        return None
    gone = {int(a) % rank for a in call.attrs.axis}
    if axis in gone:
        return None
    return axis if call.attrs.keepdims else axis - sum(a < axis for a in gone)


def moved_axis(call: relax.Call, axis: int, rank: int) -> int:
    """Return what becomes of an axis behind a transposition."""
    axes = [int(a) % rank for a in call.attrs.axes] if call.attrs.axes else list(range(rank))[::-1]
    return axes.index(axis)


def pools_along(call: relax.Call, axis: int) -> bool:
    """Whether channels are the same axis of what a pooling reads and gives."""
    return call.attrs.layout.index("C") == axis and call.attrs.out_layout == call.attrs.layout


def convolves_along(call: relax.Call, x: relax.Expr, axis: int, channels: int) -> bool:
    """Whether a convolution gives one channel for each of `x`, along the same axis; its weights are a constant."""
    same = call.attrs.data_layout.index("C") == axis and call.attrs.out_layout == call.attrs.data_layout
    reads = call.args[0].same_as(x) and isinstance(call.args[1], GenericConst)
    return same and reads and is_depthwise(call) and int(call.attrs.groups) == channels
