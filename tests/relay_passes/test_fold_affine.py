"""FoldAffine: scales and shifts behind a convolution are in its weights and bias."""

from __future__ import annotations

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fold_affine import FoldAffine
from tests.relay_passes.conftest import computed


def test_scales_and_shifts_become_weights_and_bias(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 6, 6), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
            s: R.Tensor((4, 1, 1), "float32"),
            two: R.Tensor((1,), "float32"),
            half: R.Tensor((), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.add(y, b)
                y2 = R.multiply(s, y1)
                y3 = R.divide(y2, half)
                y4 = R.subtract(y3, two)
                y5 = R.nn.relu(y4)
                R.output(y5)
            return y5

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 6, 6), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                R.output(y2)
            return y2

    w, b = np.arange(108, dtype="float32").reshape(4, 3, 3, 3), np.arange(4, dtype="float32").reshape(1, 4, 1, 1)
    s = np.array([1, 2, 4, 8], "float32").reshape(4, 1, 1)
    two, half = np.array([2], "float32"), np.array(0.5, "float32")
    expected = tools.bound(Expected, w=w * s[:, None] * 2, b=b * s[None] * 2 - 2)
    before = tools.bound(Before, w=w, b=b, s=s, two=two, half=half)
    tvm.ir.assert_structural_equal(FoldAffine()(before), expected)


def model(steps, twice: bool = False, groups: int = 1) -> tvm.IRModule:
    """Return what `steps` make of a convolution's sums, beside the sums if they are read `twice`."""
    rng, builder = np.random.default_rng(0), relax.BlockBuilder()
    x, weight = relax.Var("x", relax.TensorType([1, 4, 6, 5], "float32")), rng.standard_normal((4, 4 // groups, 3, 3))
    with builder.function("main", [x]):
        with builder.dataflow():
            sums = y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight, "float32"), groups=groups))
            for operator, shape in steps:
                constant = relax.const(rng.uniform(0.5, 2, shape), "float32")
                y = builder.emit(operator(y, constant))
            result = builder.emit_output(relax.op.add(y, sums) if twice else y)
        builder.emit_func_output(result)
    return builder.get()


OPERATORS = [
    relax.op.add,
    relax.op.multiply,
    relax.op.subtract,
    relax.op.divide,
    lambda y, c: relax.op.add(c, y),
    lambda y, c: relax.op.subtract(c, y),
    relax.op.maximum,
]
CONSTANTS = [(), (1,), (4, 1, 1), (1, 4, 1, 1), (3,), (4, 1, 3), (2, 1, 1, 1)]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATORS), st.sampled_from(CONSTANTS)), max_size=4),
    st.booleans(),
    st.sampled_from([1, 4]),
)
def test_whatever_follows_the_same_is_computed(steps, twice, groups):
    before, x = model(steps, twice, groups), np.random.default_rng(1).standard_normal((1, 4, 6, 5)).astype("float32")
    np.testing.assert_allclose(computed(FoldAffine()(before), x), computed(before, x), rtol=1e-4, atol=1e-4)


def test_what_is_divided_by_zero_stays():
    zero = relax.const(np.array([[[1]], [[0]], [[2]], [[3]]], "float32"))
    before = model([(lambda y, _: relax.op.divide(y, zero), ())])
    tvm.ir.assert_structural_equal(FoldAffine()(before), before)


def test_sums_that_are_read_elsewhere_stay():
    before = model([(relax.op.multiply, (4, 1, 1))], twice=True)
    tvm.ir.assert_structural_equal(FoldAffine()(before), before)
