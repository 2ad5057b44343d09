"""SignalConvs: convolutions of signals are those of images of one row, and what lies between them is, too."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.signal_convs import SignalConvs
from tests.relay_passes.conftest import computed, operators


def test_two_layers_and_what_lies_between_them(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 20), "float32"),
            w: R.Tensor((4, 3, 5), "float32"),
            b: R.Tensor((4, 1), "float32"),
            w2: R.Tensor((4, 4, 1), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv1d(x, w, strides=[2], padding=[1, 2], dilation=[2])
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                y3 = R.nn.max_pool1d(y2, pool_size=[2], strides=[1])
                y4 = R.nn.conv1d(y3, w2)
                y5 = R.add(y4, y3)
                R.output(y5)
            return y5

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 20), "float32"),
            w: R.Tensor((4, 3, 1, 5), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
            w2: R.Tensor((4, 4, 1, 1), "float32"),
        ):
            with R.dataflow():
                image = R.expand_dims(x, axis=[2])
                y = R.nn.conv2d(image, w, strides=[1, 2], padding=[0, 1, 0, 2], dilation=[1, 2])
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                y3 = R.nn.max_pool2d(y2, pool_size=[1, 2], strides=[1, 1])
                y4 = R.nn.conv2d(y3, w2)
                y5 = R.add(y4, y3)
                y6 = R.squeeze(y5, axis=[2])
                R.output(y6)
            return y6

    w, b, w2 = tools.normal(4, 3, 5), tools.normal(4, 1), tools.normal(4, 4, 1)
    expected = tools.bound(Expected, w=w[:, :, None], b=b.reshape(1, 4, 1, 1), w2=w2[:, :, None])
    tvm.ir.assert_structural_equal(SignalConvs()(tools.bound(Before, w=w, b=b, w2=w2)), expected)


def signal(steps, shape=(2, 4, 30)) -> tvm.IRModule:
    """Return what `steps`, functions of the builder and a value, make of a signal."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for step in steps:
                y = builder.emit(step(builder, y))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.get()


RANDOM = np.random.default_rng(0)


def of(*extents: int):
    return relax.const(RANDOM.standard_normal(extents).astype("float32"))


def normalized(builder, y):
    statistics = [of(4), of(4), of(4), relax.const(RANDOM.random(4).astype("float32"))]
    return relax.TupleGetItem(builder.emit(relax.op.nn.batch_norm(y, *statistics, axis=1, training=False)), 0)


STEPS = [
    lambda _, y: relax.op.nn.conv1d(y, of(4, 4, 3), padding=[1, 1]),
    lambda _, y: relax.op.nn.conv1d(y, of(4, 1, 3), padding=[0, 2], groups=4),
    lambda _, y: relax.op.nn.max_pool1d(y, [2], [1], padding=[0, 1]),
    lambda _, y: relax.op.nn.avg_pool1d(y, [3], [1], padding=[1, 1], count_include_pad=True),
    lambda _, y: relax.op.nn.silu(y),
    lambda _, y: relax.op.multiply(of(1, 4, 1), y),
    lambda _, y: relax.op.add(y, of(30)),  # along time, stays outside
    lambda _, y: relax.op.add(y, of(3, 1, 1, 1)),  # makes four signals
    normalized,
]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(STEPS[:-2] + STEPS[-1:]), max_size=4), st.booleans())
def test_any_chain(steps, widened):
    before = signal([STEPS[0], *steps, *([STEPS[-2]] if widened else [])])
    after, x = SignalConvs()(before), RANDOM.standard_normal((2, 4, 30)).astype("float32")
    assert "conv1d" not in operators(after)
    np.testing.assert_allclose(computed(after, x), computed(before, x), rtol=1e-4, atol=1e-4)


def test_normalization_and_what_follows_stay_on_images():
    module = SignalConvs()(signal([STEPS[0], normalized, STEPS[4], STEPS[0]]))
    assert operators(module) == ["expand_dims", "conv2d", "batch_norm", "silu", "conv2d", "squeeze"]


@pytest.mark.parametrize("weight", [of(4, 4, 3), None])
def test_others_stay(weight):
    steps = [lambda _, y: relax.op.nn.max_pool1d(y, [2])]
    if weight is None:  # a kernel that the model computes
        steps += [lambda _, y: relax.op.nn.conv1d(y, relax.op.strided_slice(y, [0, 2], [0, 0], [1, 3]))]
    before = signal(steps, (1, 4, 30))
    assert SignalConvs()(before).same_as(before)
