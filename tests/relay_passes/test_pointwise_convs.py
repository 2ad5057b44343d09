"""PointwiseConvs: products of many vectors are convolutions of one pixel, with what follows them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.pointwise_convs import PointwiseConvs, image_shape
from tests.relay_passes.conftest import built, computed


def test_a_dense_layer_of_a_sequence_and_the_next(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 5, 6), "float32"),
            w: R.Tensor((6, 4), "float32"),
            b: R.Tensor((4,), "float32"),
            w2: R.Tensor((4, 6), "float32"),
        ):
            with R.dataflow():
                y = R.matmul(x, w)
                y1 = R.add(b, y)
                y2 = R.nn.relu(y1)
                y3 = R.matmul(y2, w2)
                y4 = R.add(y3, x)
                R.output(y4)
            return y4

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 5, 6), "float32"),
            w: R.Tensor((4, 1, 1, 6), "float32"),
            b: R.Tensor((1, 1, 1, 4), "float32"),
            w2: R.Tensor((6, 1, 1, 4), "float32"),
        ):
            with R.dataflow():
                image = R.reshape(x, R.shape([1, 1, 10, 6]))
                y = R.nn.conv2d(image, w, data_layout="NHWC", kernel_layout="OHWI")
                y1 = R.add(b, y)
                y2 = R.nn.relu(y1)
                y3 = R.nn.conv2d(y2, w2, data_layout="NHWC", kernel_layout="OHWI")
                other = R.reshape(x, R.shape([1, 1, 10, 6]))
                y4 = R.add(y3, other)
                y5 = R.reshape(y4, R.shape([2, 5, 6]))
                R.output(y5)
            return y5

    w, b, w2 = tools.normal(6, 4), tools.normal(4), tools.normal(4, 6)
    expected = tools.bound(Expected, w=w.T[:, None, None], b=b.reshape(1, 1, 1, 4), w2=w2.T[:, None, None])
    tvm.ir.assert_structural_equal(PointwiseConvs()(tools.bound(Before, w=w, b=b, w2=w2)), expected)


def product(shape, weight, after=(), dtype: str = "float32") -> tvm.IRModule:
    """Return a matrix product and what follows it."""
    return built(shape, lambda x: relax.op.matmul(x, weight), *after, dtype=dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_what_is_computed_of_it(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    outputs, rng = data.draw(st.integers(1, 7)), np.random.default_rng(0)

    def of(*extents: int):
        return relax.const(rng.standard_normal(extents).astype("float32"))

    steps = [
        lambda y: relax.op.multiply(y, of(outputs)),
        lambda y: relax.op.add(of(1, outputs), y),
        lambda y: relax.op.nn.gelu(y),
        lambda y: relax.op.clip(y, -1, 0.5),
        lambda y: relax.op.subtract(of(), y),
        lambda y: relax.op.maximum(y, of(1, 1)),
        lambda y: relax.op.add(y, of(*shape[:-1], outputs)),
        lambda y: relax.op.add(y, of(shape[-2], 1)),
        lambda y: relax.op.add(y, of(2, *shape[:-1], outputs)),  # of more axes than the product
        lambda y: relax.op.multiply(y, relax.op.sigmoid(y)),
    ]
    before = product(shape, of(shape[-1], outputs), data.draw(st.lists(st.sampled_from(steps), max_size=5)))
    after, x = PointwiseConvs()(before), rng.standard_normal(shape).astype("float32")
    many = int(np.prod(shape[:-1])) > 1
    assert ("nn.conv2d" in after["main"].script()) == many and ("matmul" in after["main"].script()) != many
    np.testing.assert_allclose(computed(after, x), computed(before, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape, weight, dtype",
    [
        ((1, 6), (6, 4), "float32"),  # one vector
        ((tvm.tirx.Var("n", "int64"), 6), (6, 4), "float32"),
        ((3, 6), (6, 4), "float64"),
        ((2, 3, 6), (2, 6, 4), "float32"),  # a matrix for each
        ((6,), (6, 4), "float32"),
    ],
)
def test_other_products_stay(shape, weight, dtype):
    before = product(shape, relax.const(np.ones(weight, dtype), dtype), dtype=dtype)
    assert PointwiseConvs()(before).same_as(before)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_images_hold_all_vectors(shape):
    batch, rows, columns, channels = image_shape(tuple(shape))
    assert batch == 1 and rows * columns * channels == np.prod(shape) and columns <= 24 and channels == shape[-1]
