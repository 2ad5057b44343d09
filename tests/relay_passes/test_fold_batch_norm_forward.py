"""FoldBatchNormForward: normalization before a convolution becomes part of it, padding included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from relay_passes.fold_batch_norm_forward import FoldBatchNormForward

CHANNELS, OUTPUTS = 2, 3


def build(x_shape, weight, bias, statistics, *, pool=None, **conv):
    """Return normalization, a maximum if there is `pool`, and a convolution, with a bias if there is one."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(x_shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            norm = builder.emit(relax.op.nn.batch_norm(x, *(relax.const(s) for s in statistics), axis=1))
            y = builder.emit(relax.TupleGetItem(norm, 0))
            if pool:
                y = builder.emit(relax.op.nn.max_pool2d(y, pool, strides=pool))
            y = builder.emit(relax.op.nn.conv2d(y, relax.const(weight), **conv))
            if bias is not None:
                y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, -1, 1, 1))))
            output = builder.emit_output(y)
        builder.emit_func_output(output)
    return builder.get()


def expected(x_shape, weight, bias, image, *, pool=None, **conv):
    """Return the convolution alone, its bias, and an image that is added if there is one."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(x_shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.max_pool2d(x, pool, strides=pool)) if pool else x
            y = builder.emit(relax.op.nn.conv2d(y, relax.const(weight), **conv))
            y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, -1, 1, 1))))
            if image is not None:
                y = builder.emit(relax.op.add(y, relax.const(image)))
            output = builder.emit_output(y)
        builder.emit_func_output(output)
    return builder.get()


def exact_statistics(scale=(2.0, 4.0), shift=(1.0, -3.0)):
    """Return statistics whose scales and shifts are these exactly, in float64 too."""
    variance = np.full(2, 1, "float32") - np.float32(1e-5)
    scale, shift = np.array(scale, "float32"), np.array(shift, "float32")
    return scale * np.float32(np.sqrt(np.float64(variance[0]) + 1e-5)), shift, np.zeros(2, "float32"), variance


def same(found, wanted):
    tidy = tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    )
    tvm.ir.assert_structural_equal(tidy(found), tidy(wanted))


@pytest.mark.parametrize("pool", [None, [2, 1]], ids=["plain", "pooled"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_scale_and_shift_go_to_the_next_convolution(with_bias, pool):
    weight = np.arange(OUTPUTS * CHANNELS, dtype="float32").reshape(OUTPUTS, CHANNELS, 1, 1)
    bias = np.array([5, 6, 7], "float32") if with_bias else None
    before = build((1, CHANNELS, 4, 3), weight, bias, exact_statistics(), pool=pool)
    scaled = weight * np.array([2, 4], "float32").reshape(1, -1, 1, 1)
    total = weight[:, :, 0, 0] @ np.array([1, -3], "float32") + (bias if with_bias else 0)
    same(FoldBatchNormForward()(before), expected((1, CHANNELS, 4, 3), scaled, total, None, pool=pool))


def test_padding_stays_zero():
    # A kernel of three rows, one row of zeros above and two below, steps of two rows.
    weight = np.array([[[[1.0], [2.0], [4.0]]]], "float32")
    statistics = tuple(value[:1] for value in exact_statistics())
    conv = {"padding": [1, 0, 2, 0], "strides": [2, 1]}
    before = build((1, 1, 4, 1), weight, None, statistics, **conv)
    # Outputs see the rows -1 to 1, 1 to 3 and 3 to 5, of which -1, 4 and 5 are padding.
    image = np.array([-1, 0, -6], "float32").reshape(1, 1, 3, 1)
    wanted = expected((1, 1, 4, 1), 2 * weight, np.array([7], "float32"), image, **conv)
    same(FoldBatchNormForward()(before), wanted)


def test_a_negative_scale_does_not_move_past_a_maximum_but_into_a_convolution_right_behind():
    weight = np.ones((OUTPUTS, CHANNELS, 1, 1), "float32")
    statistics = exact_statistics(scale=(2.0, -4.0))
    before = build((1, CHANNELS, 4, 3), weight, None, statistics, pool=[2, 1])
    tvm.ir.assert_structural_equal(FoldBatchNormForward()(before), before)
    before = build((1, CHANNELS, 4, 3), weight, None, statistics)
    assert "batch_norm" not in FoldBatchNormForward()(before).script()


def test_groups_keep_the_normalization():
    weight = np.ones((CHANNELS, 1, 1, 1), "float32")
    before = build((1, CHANNELS, 4, 3), weight, None, exact_statistics(), groups=CHANNELS)
    tvm.ir.assert_structural_equal(FoldBatchNormForward()(before), before)


@pytest.mark.parametrize("padding", [[0, 0, 0, 0], [2, 1, 0, 3]], ids=str)
def test_folded_networks_compute_the_same(tools, native, padding):
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(CHANNELS).eval(), nn.Conv2d(CHANNELS, OUTPUTS, (3, 2), stride=(1, 2), dilation=(2, 1))
    for tensor, low, high in ((norm.weight, 0.5, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        nn.init.uniform_(tensor, low, high)
    statistics = [getattr(norm, n).detach().numpy() for n in ("weight", "bias", "running_mean", "running_var")]
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    attributes = {"padding": padding, "strides": [1, 2], "dilation": [2, 1]}
    module = FoldBatchNormForward()(build((1, CHANNELS, 12, 7), weight, bias, statistics, pool=[2, 1], **attributes))
    assert "batch_norm" not in module.script()
    x = np.random.default_rng(0).standard_normal((1, CHANNELS, 12, 7)).astype("float32")
    with torch.inference_mode():
        y = torch.max_pool2d(norm(torch.from_numpy(x)), (2, 1))
        top, left, bottom, right = padding
        wanted = conv(nn.functional.pad(y, (left, right, top, bottom))).numpy()
    (found,) = tools.run(module, native, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
