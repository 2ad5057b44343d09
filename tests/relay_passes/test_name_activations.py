"""NameActivations: a value times its sigmoid is one operator."""

from __future__ import annotations

import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.name_activations import NameActivations


def test_a_value_times_its_sigmoid_is_a_silu():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), other: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                s = R.sigmoid(x)
                y = R.multiply(x, s)
                s1 = R.sigmoid(y)
                y1 = R.multiply(s1, y)
                s2 = R.sigmoid(y1)
                y2 = R.multiply(other, s2)
                R.output(y2)
            return y2

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), other: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                y = R.nn.silu(x)
                y1 = R.nn.silu(y)
                s2 = R.sigmoid(y1)
                y2 = R.multiply(other, s2)
                R.output(y2)
            return y2

    tvm.ir.assert_structural_equal(NameActivations()(Before), Expected)


def test_other_dtypes_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float64")):
            with R.dataflow():
                s = R.sigmoid(x)
                y = R.multiply(x, s)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(NameActivations()(Before), Before)
