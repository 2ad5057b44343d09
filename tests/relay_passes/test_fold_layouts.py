"""FoldLayouts: constants that are reshaped or transposed are constants; what is computed stays."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fold_layouts import FoldLayouts


def test_constants_are_laid_out_and_inputs_are_not(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 3), "float32"), w: R.Tensor((3, 2), "float32"), b: R.Tensor((6,), "float32")
        ) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                x1 = R.permute_dims(x)
                w1 = R.permute_dims(w, axes=[-1, 0])
                w2 = R.reshape(w1, R.shape([3, -1]))
                b1 = R.expand_dims(R.reshape(b, R.shape([3, 2])), axis=[0])
                b2 = R.squeeze(b1)
                y = R.add(R.add(x1, w2), b2)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 3), "float32"), w: R.Tensor((3, 2), "float32"), b: R.Tensor((3, 2), "float32")
        ) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                x1 = R.permute_dims(x)
                z = R.add(x1, w)
                y = R.add(z, b)
                R.output(y)
            return y

    weight, bias = tools.normal(3, 2), tools.normal(6)
    expected = tools.bound(Expected, w=np.ascontiguousarray(weight.T).reshape(3, 2), b=bias.reshape(3, 2))
    tvm.ir.assert_structural_equal(FoldLayouts()(tools.bound(Before, w=weight, b=bias)), expected)
