"""FoldBatchNormForward: batch normalization before a convolution becomes part of that convolution.

Behind a ReLU it turns zeros into other numbers, which then cannot be skipped. As a scale and a shift of each channel
it moves past a maximum over windows, as long as no scale is negative, and into the next convolution: the scale into
the weights, the shift into the bias. What is padded stays zero, so near the border a shift reaches fewer products;
the difference is an image of constants that is added.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import TupleGetItemPattern, is_const, is_op, rewrite_call, wildcard


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNormForward")
class FoldBatchNormForward:
    """The pass; run it behind `FoldBatchNorm`, on convolutions in the layout NCHW whose weights are constants."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions that read what comes before the batch normalization."""
        result = IRModule(module.functions, attrs=module.attrs)
        for pooled in (True, False):
            for with_bias in (True, False):
                result["main"] = _Fold(pooled, with_bias).run(result["main"])
        return result


class _Fold:
    """One form: with a maximum in between or without, of a convolution with a bias or without."""

    def __init__(self, pooled: bool, with_bias: bool) -> None:
        self._x, self._weight, self._bias = wildcard(), is_const(), is_const()
        self._statistics = [is_const() for _ in range(4)]
        self._norm = is_op("relax.nn.batch_norm")(self._x, *self._statistics)
        read = TupleGetItemPattern(self._norm, 0)
        self._pool = is_op("relax.nn.max_pool2d")(read)
        self._conv = is_op("relax.nn.conv2d")(self._pool if pooled else read, self._weight)
        self._sum = is_op("relax.add")(self._conv, self._bias) if with_bias else self._conv
        self._pooled, self._with_bias = pooled, with_bias

    def run(self, main: relax.Function) -> relax.Function:
        return rewrite_call(self._sum, self._folded, main)

    def _folded(self, given: relax.Expr, matches) -> relax.Expr:
        conv, norm = matches[self._conv], matches[self._norm]
        scale, shift = _scale_and_shift(norm, *(matches[part].value.numpy() for part in self._statistics))
        pool = matches[self._pool] if self._pooled else None
        weight = matches[self._weight].value.numpy()
        bias = matches[self._bias].value.numpy().reshape(-1) if self._with_bias else np.zeros(1, "float32")
        if not _can_fold(conv, norm, pool, scale) or len(bias) not in (1, len(weight)):
            return given
        x = matches[self._x]
        if pool is not None:
            x = relax.Call(pool.op, [x], pool.attrs)
        scaled = (weight * scale.reshape(1, -1, 1, 1)).astype("float32")
        everywhere = (weight * shift.reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3), dtype="float64")
        sums = relax.Call(conv.op, [x, relax.const(scaled)], conv.attrs)
        sums = relax.op.add(sums, relax.const((bias + everywhere).astype("float32").reshape(1, -1, 1, 1)))
        missing = _shift_missing(conv, weight * shift.reshape(1, -1, 1, 1))
        return relax.op.add(sums, relax.const(missing)) if missing.any() else sums


def _scale_and_shift(norm: relax.Call, gamma, beta, mean, variance) -> tuple[np.ndarray, np.ndarray]:
    """Return what a normalization multiplies each channel by, and what it adds then, float64."""
    scale = (gamma if norm.attrs.scale else 1) / np.sqrt(variance.astype("float64") + float(norm.attrs.epsilon))
    return scale, (beta if norm.attrs.center else 0) - mean * scale


def _can_fold(conv: relax.Call, norm: relax.Call, pool: relax.Call | None, scale: np.ndarray) -> bool:
    """Whether the convolution is one of all channels, and a maximum in between stays one."""
    attributes = conv.attrs
    if attributes.data_layout != "NCHW" or attributes.kernel_layout != "OIHW" or int(attributes.groups) != 1:
        return False
    if int(norm.attrs.axis) != 1 or any(not isinstance(extent, tvm.tirx.IntImm) for extent in conv.ty.shape):
        return False
    # The largest of scaled values is the largest value, scaled. Padding of a maximum is below everything.
    return pool is None or (pool.attrs.layout == "NCHW" and bool((scale >= 0).all()))


def _shift_missing(conv: relax.Call, shifts: np.ndarray) -> np.ndarray:
    """Return what the shift lacks at each output, ``float32 (1, outputs, rows, columns)``.

    `shifts` are the weights times the shift of each input channel. At an output all of its taps that lie in the padding
    lack theirs.
    """
    attributes = conv.attrs
    by_tap = shifts.sum(axis=1, dtype="float64")
    inside = []
    for axis in range(2):
        extent, kernel, out = int(conv.args[0].ty.shape[2 + axis]), by_tap.shape[1 + axis], int(conv.ty.shape[2 + axis])
        first = np.arange(out) * int(attributes.strides[axis]) - int(attributes.padding[axis])
        seen = first[:, None] + np.arange(kernel) * int(attributes.dilation[axis])
        inside.append(((seen >= 0) & (seen < extent)).astype("float64"))
    present = np.einsum("okl,rk,cl->orc", by_tap, *inside)
    missing = present - by_tap.sum(axis=(1, 2))[:, None, None]
    # Where every tap lies inside, what is left is rounding.
    missing[:, np.outer(inside[0].all(axis=1), inside[1].all(axis=1))] = 0
    return missing.astype("float32")[None]
