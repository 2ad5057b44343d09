"""ChannelsLast: images are transposed at the ends of a chain of convolutions, and never within it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.channels_last import ChannelsLast


def test_a_chain_is_transposed_at_its_ends(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
            w2: R.Tensor((5, 4, 1, 1), "float32"),
        ) -> R.Tensor((1, 5, 3, 3), "float32"):
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[0, 0, 0, 0])
                y1 = R.add(y, b)
                y2 = R.clip(y1, 0, 6)
                y3 = R.nn.max_pool2d(y2, pool_size=[2, 2], strides=[2, 2])
                y4 = R.nn.conv2d(y3, w2)
                R.output(y4)
            return y4

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 1, 1, 4), "float32"),
            six: R.Tensor((), "float32"),
            w2: R.Tensor((5, 1, 1, 4), "float32"),
        ) -> R.Tensor((1, 5, 3, 3), "float32"):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 2, 3, 1])
                y = R.nn.conv2d(x0, w, padding=[0, 0, 0, 0], data_layout="NHWC", kernel_layout="OHWI")
                y1 = R.add(y, b)
                y2 = R.nn.relu(y1)
                y3 = R.minimum(y2, six)
                y4 = R.nn.max_pool2d(y3, pool_size=[2, 2], strides=[2, 2], layout="NHWC")
                y5 = R.nn.conv2d(y4, w2, data_layout="NHWC", kernel_layout="OHWI")
                y6 = R.permute_dims(y5, axes=[0, 3, 1, 2])
                R.output(y6)
            return y6

    weights = {"w": tools.normal(4, 3, 3, 3), "b": tools.normal(1, 4, 1, 1), "w2": tools.normal(5, 4, 1, 1)}
    last = {name: np.ascontiguousarray(value.transpose(0, 2, 3, 1)) for name, value in weights.items()}
    expected = tools.bound(Expected, **last, six=np.array(6, "float32"))
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, **weights)), expected)


def test_groups_and_transposed_convolutions_stay_as_they_are(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8, 8), "float32"),
            w: R.Tensor((4, 2, 3, 3), "float32"),
            w2: R.Tensor((4, 2, 2, 2), "float32"),
        ) -> R.Tensor((1, 2, 7, 7), "float32"):
            with R.dataflow():
                y = R.nn.conv2d(x, w, groups=2)
                y1 = R.tanh(y)
                y2 = R.nn.conv2d_transpose(y1, w2)
                R.output(y2)
            return y2

    before = tools.bound(Before, w=tools.normal(4, 2, 3, 3), w2=tools.normal(4, 2, 2, 2))
    tvm.ir.assert_structural_equal(ChannelsLast()(before), before)


def test_any_clip_may_lie_between_convolutions(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 8, 8), "float32"), w: R.Tensor((3, 3, 1, 1), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.clip(y, -1, 1)
                y2 = R.clip(y1, -0.5, float("inf"))
                y3 = R.nn.conv2d(y2, w)
                R.output(y3)
            return y3

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 1, 1, 3), "float32"),
            low: R.Tensor((), "float32"),
            high: R.Tensor((), "float32"),
            other: R.Tensor((), "float32"),
        ):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 2, 3, 1])
                y = R.nn.conv2d(x0, w, data_layout="NHWC", kernel_layout="OHWI")
                y0 = R.maximum(y, low)
                y1 = R.minimum(y0, high)
                y2 = R.maximum(y1, other)
                y3 = R.nn.conv2d(y2, w, data_layout="NHWC", kernel_layout="OHWI")
                y4 = R.permute_dims(y3, axes=[0, 3, 1, 2])
                R.output(y4)
            return y4

    weight = tools.normal(3, 3, 1, 1)
    last = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    bounds = {name: np.array(v, "float32") for name, v in (("low", -1), ("high", 1), ("other", -0.5))}
    expected = tools.bound(Expected, w=last, **bounds)
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, w=weight)), expected)


def test_constants_of_one_value_are_scalars_and_leave_a_chain_whole(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 3, 1, 1), "float32"),
            one: R.Tensor((1,), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.multiply(one, y)
                y2 = R.nn.conv2d(y1, w)
                R.output(y2)
            return y2

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 1, 1, 3), "float32"),
            one: R.Tensor((), "float32"),
        ):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 2, 3, 1])
                y = R.nn.conv2d(x0, w, data_layout="NHWC", kernel_layout="OHWI")
                y1 = R.multiply(y, one)
                y2 = R.nn.conv2d(y1, w, data_layout="NHWC", kernel_layout="OHWI")
                y3 = R.permute_dims(y2, axes=[0, 3, 1, 2])
                R.output(y3)
            return y3

    weight, one = tools.normal(3, 3, 1, 1), tools.normal(1)
    last = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    expected = tools.bound(Expected, w=last, one=one.reshape(()))
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, w=weight, one=one)), expected)


def test_constants_stand_second_and_stacks_are_concatenated(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 3, 1, 1), "float32"),
            b: R.Tensor((1, 3, 1, 1), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.add(b, y)
                y2 = R.stack((y, y1), axis=1)
                R.output(y2)
            return y2

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 1, 1, 3), "float32"),
            b: R.Tensor((1, 1, 1, 3), "float32"),
        ):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 2, 3, 1])
                y = R.nn.conv2d(x0, w, data_layout="NHWC", kernel_layout="OHWI")
                y1 = R.add(y, b)
                y2 = R.expand_dims(y, axis=[1])
                y3 = R.expand_dims(y1, axis=[1])
                y4 = R.concat((y2, y3), axis=1)
                y5 = R.permute_dims(y4, axes=[0, 1, 4, 2, 3])
                R.output(y5)
            return y5

    weight, bias = tools.normal(3, 3, 1, 1), tools.normal(1, 3, 1, 1)
    last = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    expected = tools.bound(Expected, w=last, b=bias.transpose(0, 2, 3, 1))
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, w=weight, b=bias)), expected)


def test_axes_counted_from_the_end(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 8, 1), "float32"), w: R.Tensor((3, 3, 1, 1), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.squeeze(y, axis=[-1])
                R.output(y1)
            return y1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 8, 1), "float32"), w: R.Tensor((3, 1, 1, 3), "float32")):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 2, 3, 1])
                y = R.nn.conv2d(x0, w, data_layout="NHWC", kernel_layout="OHWI")
                y1 = R.squeeze(y, axis=[2])
                y2 = R.permute_dims(y1, axes=[0, 2, 1])
                R.output(y2)
            return y2

    weight = tools.normal(3, 3, 1, 1)
    expected = tools.bound(Expected, w=np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, w=weight)), expected)


def test_constants_that_add_a_dimension_keep_it(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((3, 3, 1, 1), "float32"),
            deep: R.Tensor((1, 1, 1, 1, 1), "float32"),
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                y1 = R.add(y, deep)
                R.output(y1)
            return y1

    before = tools.bound(Before, w=tools.normal(3, 3, 1, 1), deep=tools.normal(1, 1, 1, 1, 1))
    assert list(map(int, ChannelsLast()(before)["main"].ret_ty.shape)) == [1, 1, 3, 8, 8]


def test_depthwise_convolutions_are_part_of_a_chain(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 8, 4), "float32"), w: R.Tensor((4, 1, 3, 3), "float32")) -> R.Tensor(
            (1, 6, 6, 4), "float32"
        ):
            with R.dataflow():
                x0 = R.permute_dims(x, axes=[0, 3, 1, 2])
                y = R.nn.conv2d(x0, w, groups=4)
                y1 = R.permute_dims(y, axes=[0, 2, 3, 1])
                R.output(y1)
            return y1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 8, 8, 4), "float32"), w: R.Tensor((4, 3, 3, 1), "float32")) -> R.Tensor(
            (1, 6, 6, 4), "float32"
        ):
            with R.dataflow():
                y = R.nn.conv2d(x, w, groups=4, data_layout="NHWC", kernel_layout="OHWI")
                R.output(y)
            return y

    weight = tools.normal(4, 1, 3, 3)
    last = tools.bound(Expected, w=np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))
    tvm.ir.assert_structural_equal(ChannelsLast()(tools.bound(Before, w=weight)), last)
