"""Depthwise convolutions against NumPy: those of every input whose weights of other channels are zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from schedules import cpu
from schedules.conv2d_shape import Conv2d
from schedules.depthwise import depthwise_conv2d, pack_depthwise
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, convolutions, operands, reference

#: Kernels whose taps are unrolled or not, and images narrower than a tile.
LARGER = [
    Conv2d(1, 14, 19, 40, 40, (3, 3), (2, 2), (1, 1, 1, 1), activation="relu6"),
    Conv2d(2, 9, 11, 24, 24, (5, 5), (1, 1), (2, 2, 2, 2), activation="relu"),
    Conv2d(1, 30, 2, 16, 16, (7, 1), (3, 1), (3, 0, 3, 0)),
]


def check(isa, conv: Conv2d, threads: int):
    conv = replace(conv, outputs=conv.inputs, residual=False)
    x, weight, bias, residual = operands(conv)
    each = weight[np.arange(conv.outputs), :, :, np.arange(conv.outputs)]
    diagonal = np.zeros_like(weight)
    diagonal[np.arange(conv.outputs), :, :, np.arange(conv.outputs)] = each
    kernel = compile_kernel(isa, depthwise_conv2d(isa, conv, threads), threads)
    operands_ = (x.reshape(-1), pack_depthwise(each[..., None]), bias)
    (y,) = call(kernel, *operands_, Output((conv.output_size,), "float32"), threads=threads)
    wanted = reference(conv, x, diagonal, bias, residual)
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", [*SHAPES, *LARGER], ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(conv=convolutions())
def test_convolutions_match_numpy_at_any_shape(conv):
    for isa in RUNNABLE:
        check(isa, conv, 1 + conv.height % 2)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    compile_kernel(level, depthwise_conv2d(level, LARGER[0], 1))
