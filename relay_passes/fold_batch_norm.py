"""FoldBatchNorm: batch normalization behind a convolution becomes part of its weights and bias.

TVM's own pass of this kind leaves convolutions alone that have a bias.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import TupleGetItemPattern, is_const, is_op, rewrite_call, wildcard


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """The pass; run it on convolutions in the layout NCHW whose weights are constants."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions that need no batch normalization."""
        result = IRModule(module.functions, attrs=module.attrs)
        for with_bias in (True, False):
            result["main"] = _Fold(with_bias).run(result["main"])
        return result


class _Fold:
    """One form of convolution, with a bias or without."""

    def __init__(self, with_bias: bool) -> None:
        self._weight, self._bias = is_const(), is_const()
        self._conv = is_op("relax.nn.conv2d")(wildcard(), self._weight)
        self._sum = is_op("relax.add")(self._conv, self._bias) if with_bias else self._conv
        self._statistics = [is_const() for _ in range(4)]
        self._norm = is_op("relax.nn.batch_norm")(self._sum, *self._statistics)
        self._with_bias = with_bias

    def run(self, main: relax.Function) -> relax.Function:
        return rewrite_call(TupleGetItemPattern(self._norm, 0), self._folded, main)

    def _folded(self, given: relax.Expr, matches) -> relax.Expr:
        conv, norm = matches[self._conv], matches[self._norm]
        if conv.attrs.kernel_layout != "OIHW" or int(norm.attrs.axis) != 1:
            return given
        weight = matches[self._weight].value.numpy()
        gamma, beta, mean, variance = (matches[part].value.numpy() for part in self._statistics)
        bias = matches[self._bias].value.numpy().reshape(-1) if self._with_bias else np.zeros(1)
        if len(bias) not in (1, len(weight)):
            return given
        scale = (gamma if norm.attrs.scale else 1) / np.sqrt(variance + float(norm.attrs.epsilon))
        shift = (beta if norm.attrs.center else 0) + (bias - mean) * scale
        scaled = (weight * scale.reshape(-1, 1, 1, 1)).astype("float32")
        folded = relax.Call(conv.op, [conv.args[0], relax.const(scaled)], conv.attrs)
        return relax.op.add(folded, relax.const(shift.astype("float32").reshape(1, -1, 1, 1)))
