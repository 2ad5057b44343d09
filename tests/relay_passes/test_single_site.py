"""SingleSite keeps the call of one layer."""

from __future__ import annotations

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.single_site import SingleSite


def test_one_site_is_left_and_reads_what_it_read(tools):
    @I.ir_module
    class Before:
        @R.function(private=True)
        def dense0(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense0"})
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

        @R.function(private=True)
        def dense1(x: R.Tensor((1, 6), "float32"), w: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense1"})
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"), w0: R.Tensor((4, 6), "float32"), w1: R.Tensor((6, 3), "float32")
        ) -> R.Tensor((1, 3), "float32"):
            cls = Before
            with R.dataflow():
                y = cls.dense0(x, w0)
                z = R.tanh(y)
                o = cls.dense1(z, w1)
                R.output(o)
            return o

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def dense1(x: R.Tensor((1, 6), "float32"), w: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense1"})
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

        @R.function
        def main(x0: R.Tensor((1, 6), "float32"), w1: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            R.func_attr({"num_input": 1, "num_states": 0, "input_names": ["x0"], "output_names": ["y"]})
            cls = Expected
            with R.dataflow():
                o = cls.dense1(x0, w1)
                R.output(o)
            return o

    weights = {"w0": tools.normal(4, 6), "w1": tools.normal(6, 3)}
    found = SingleSite("dense1")(tools.bound(Before, **weights))
    tvm.ir.assert_structural_equal(found, tools.bound(Expected, w1=weights["w1"]))
    with pytest.raises(ValueError, match="dense7"):
        SingleSite("dense7")(tools.bound(Before, **weights))
