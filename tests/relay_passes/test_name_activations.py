"""NameActivations: a value times its sigmoid is one operator."""

from __future__ import annotations

import numpy as np
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


def test_squares_and_roots(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 3), "float32"),
            two: R.Tensor((), "float32"),
            half: R.Tensor((1,), "float32"),
            other: R.Tensor((), "float32"),
            wide: R.Tensor((1, 1, 1), "float32"),
        ):
            with R.dataflow():
                y = R.power(x, two)
                y1 = R.power(y, half)
                y2 = R.power(y1, other)
                y3 = R.power(y2, wide)
                R.output(y3)
            return y3

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), other: R.Tensor((), "float32"), wide: R.Tensor((1, 1, 1), "float32")):
            with R.dataflow():
                y = R.multiply(x, x)
                y1 = R.sqrt(y)
                y2 = R.power(y1, other)
                y3 = R.power(y2, wide)
                R.output(y3)
            return y3

    values = {"other": np.array(3, "float32"), "wide": np.full((1, 1, 1), 2, "float32")}
    before = tools.bound(Before, two=np.array(2, "float32"), half=np.array([0.5], "float32"), **values)
    tvm.ir.assert_structural_equal(NameActivations()(before), tools.bound(Expected, **values))
