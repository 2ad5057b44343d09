"""FoldBatchNorm: a convolution with batch normalization becomes one with other weights."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.fold_batch_norm import FoldBatchNorm


def normalized(weight, bias, statistics, axis=1):
    """Return a convolution with batch normalization, and with a bias if there is one."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 3, 5, 5], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight)))
            if bias is not None:
                y = builder.emit(relax.op.add(y, relax.const(bias)))
            norm = builder.emit(relax.op.nn.batch_norm(y, *(relax.const(s) for s in statistics), axis=axis))
            output = builder.emit_output(builder.emit(relax.TupleGetItem(norm, 0)))
        builder.emit_func_output(output)
    return builder.get()


def folded(weight, bias):
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 3, 5, 5], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight)))
            output = builder.emit_output(builder.emit(relax.op.add(y, relax.const(bias))))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize("with_bias", [True, False])
def test_scale_goes_to_the_weights_and_shift_to_the_bias(with_bias):
    # Numbers whose products and roots are exact, so that the modules are equal to the bit.
    weight = np.arange(2 * 3, dtype="float32").reshape(2, 3, 1, 1)
    bias = np.array([2, 8], "float32").reshape(1, 2, 1, 1) if with_bias else None
    gamma, beta, mean = (np.array(v, "float32") for v in ([2, 4], [1, -1], [1, 4]))
    variance = np.array([4, 16], "float32") - np.float32(1e-5)
    before = normalized(weight, bias, (gamma, beta, mean, variance))
    given = np.array([2, 8]) if with_bias else np.zeros(2)
    shift = np.array([1, -1]) + (given - mean)
    expected = folded(weight, shift.astype("float32").reshape(1, 2, 1, 1))
    tidy = relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(tidy(FoldBatchNorm()(before)), tidy(expected))


def test_an_addend_that_is_no_bias_keeps_the_normalization():
    statistics = [np.ones(2, "float32")] * 4
    before = normalized(np.ones((2, 3, 1, 1), "float32"), np.ones((1, 2, 5, 5), "float32"), statistics)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(before), before)
