"""SubpixelConvs: transposed convolutions as convolutions whose channels are spread over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv_transpose2d
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.subpixel_convs import SubpixelConvs
from tests.relay_passes.conftest import computed, operators

SHAPE, OUTPUTS = (2, 3, 5, 4), 2


def test_two_by_two_becomes_one_by_one_and_what_follows_moves_before_the_spreading(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 5, 4), "float32"),
            w: R.Tensor((3, 2, 2, 2), "float32"),
            b: R.Tensor((1, 2, 1, 1), "float32"),
        ) -> R.Tensor((1, 2, 10, 8), "float32"):
            with R.dataflow():
                y = R.nn.conv2d_transpose(x, w, strides=[2, 2])
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                R.output(y2)
            return y2

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 5, 4), "float32"),
            w: R.Tensor((8, 3, 1, 1), "float32"),
            b: R.Tensor((1, 8, 1, 1), "float32"),
        ) -> R.Tensor((1, 2, 10, 8), "float32"):
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[0, 0, 0, 0])
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                z = R.permute_dims(y2, axes=[0, 2, 3, 1])
                z1 = R.reshape(z, R.shape([1, 5, 4, 2, 2, 2]))
                z2 = R.permute_dims(z1, axes=[0, 1, 3, 2, 4, 5])
                z3 = R.reshape(z2, R.shape([1, 10, 8, 2]))
                z4 = R.permute_dims(z3, axes=[0, 3, 1, 2])
                R.output(z4)
            return z4

    weight, bias = tools.normal(3, 2, 2, 2), tools.normal(1, 2, 1, 1)
    one = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(8, 3, 1, 1))
    before = tools.bound(Before, w=weight, b=bias)
    expected = tools.bound(Expected, w=one, b=np.tile(bias, (1, 4, 1, 1)))
    tvm.ir.assert_structural_equal(SubpixelConvs()(before), expected)


def convolving(weight: np.ndarray, after=(), shape=SHAPE, **attributes) -> tvm.IRModule:
    """Return a module of a transposed convolution and what functions in `after` make of it."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d_transpose(x, relax.const(weight), **attributes))
            for function in after:
                y = builder.emit(function(builder, y))
            output = builder.emit_output(y)
        builder.emit_func_output(output)
    return builder.get()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_kernel_stride_and_padding(data):
    kernel, stride = ([data.draw(st.integers(1, 5)) for _ in range(2)] for _ in range(2))
    padding = [data.draw(st.integers(0, size - 1)) for size in kernel]
    more = [data.draw(st.integers(0, by - 1)) for by in stride]
    rng = np.random.default_rng(0)
    weight, image = (rng.standard_normal(s).astype("float32") for s in ((3, OUTPUTS, *kernel), SHAPE))
    wanted = conv_transpose2d(torch.from_numpy(image), torch.from_numpy(weight), None, stride, padding, more)
    if 0 in wanted.shape:
        return
    module = convolving(weight, strides=stride, padding=padding, output_padding=more)
    after = SubpixelConvs()(module)
    kept = operators(after)[0] == "conv2d_transpose"
    assert not kept or any(by > taps - 1 for by, taps in zip(padding, kernel, strict=True)) or max(stride) > min(kernel)
    np.testing.assert_allclose(computed(after, image), wanted.numpy(), rtol=1e-5, atol=1e-5)


def normalized(builder, y):
    values = (np.random.default_rng(i).uniform(0.5, 2, OUTPUTS).astype("float32") for i in range(4))
    both = builder.emit(relax.op.nn.batch_norm(y, *map(relax.const, values), axis=1, training=False))
    return relax.TupleGetItem(both, 0)


def swish(builder, y):
    return relax.op.multiply(y, builder.emit(relax.op.sigmoid(y)))


def by_channel(_, y):
    return relax.op.multiply(relax.const(np.array([[[2.0]], [[-3.0]]], "float32")), y)


def test_normalization_swish_and_scales_of_channels_move_before_the_spreading(tools):
    module = convolving(tools.normal(3, OUTPUTS, 4, 4), (normalized, swish, by_channel), strides=[2, 2], padding=[1, 1])
    after = SubpixelConvs()(module)
    first = operators(after)[:5]
    assert first == ["conv2d", "batch_norm", "sigmoid", "multiply", "multiply"]
    image = tools.normal(*SHAPE)
    np.testing.assert_allclose(computed(after, image), computed(module, image), rtol=1e-4, atol=1e-5)


def by_pixel(_, y):
    return relax.op.add(y, relax.const(np.arange(64, dtype="float32").reshape(1, 1, 8, 8)))


def test_what_differs_from_pixel_to_pixel_stays_behind_and_what_is_read_twice_is_computed_right(tools):
    def twice(builder, y):
        return relax.op.add(builder.emit(by_pixel(builder, y)), builder.emit(relax.op.nn.relu(y)))

    module = convolving(tools.normal(3, OUTPUTS, 2, 2), (twice,), (1, 3, 4, 4), strides=[2, 2])
    image = tools.normal(1, 3, 4, 4)
    np.testing.assert_allclose(computed(SubpixelConvs()(module), image), computed(module, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [{"dilation": [2, 2]}, {"groups": 3}, {"padding": [2, 2], "strides": [2, 2]}],
    ids=["dilated", "grouped", "border"],
)
def test_others_are_left_to_tvm(tools, attributes):
    weight = tools.normal(3, 1 if "groups" in attributes else OUTPUTS, 2, 2)
    module = convolving(weight, **attributes)
    assert SubpixelConvs()(module).same_as(module)
