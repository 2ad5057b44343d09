"""DropIdleTransposes: what moves no values becomes a reshape or vanishes."""

from __future__ import annotations

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.drop_idle_transposes import DropIdleTransposes


def test_axes_of_length_one_do_not_move_values():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 1, 4), "float32")) -> R.Tensor((4, 1, 1), "float32"):
            with R.dataflow():
                y = R.permute_dims(x, axes=[1, 0, 2])
                z = R.tanh(y)
                o = R.permute_dims(z, axes=[2, 0, 1])
                R.output(o)
            return o

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 1, 4), "float32")) -> R.Tensor((4, 1, 1), "float32"):
            with R.dataflow():
                z = R.tanh(x)
                o = R.reshape(z, R.shape([4, 1, 1]))
                R.output(o)
            return o

    tvm.ir.assert_structural_equal(DropIdleTransposes()(Before), Expected)


def test_the_others_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("t", 1, 4), "float32")) -> R.Tensor((4, 1, "t"), "float32"):
            with R.dataflow():
                y = R.permute_dims(x, axes=[1, 0, 2])
                z = R.tanh(y)
                o = R.permute_dims(z)
                p = R.permute_dims(o, axes=[0, 2, 1])
                R.output(p)
            return p

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("t", 1, 4), "float32")) -> R.Tensor((4, 1, "t"), "float32"):
            t = T.int64()
            with R.dataflow():
                y = R.reshape(x, R.shape([1, t, 4]))
                z = R.tanh(y)
                p = R.permute_dims(z, axes=[2, 0, 1])
                R.output(p)
            return p

    tvm.ir.assert_structural_equal(DropIdleTransposes()(Before), Expected)


def test_two_in_a_row_are_one_or_none():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((4, 2, 3), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 2, 1])
                b = R.permute_dims(a, axes=[0, 2, 1])
                c = R.tanh(b)
                d = R.permute_dims(c, axes=[0, 2, 1])
                e = R.permute_dims(d, axes=[1, 0, 2])
                R.output(e)
            return e

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((4, 2, 3), "float32"):
            with R.dataflow():
                c = R.tanh(x)
                e = R.permute_dims(c, axes=[2, 0, 1])
                R.output(e)
            return e

    tvm.ir.assert_structural_equal(DropIdleTransposes()(Before), Expected)
