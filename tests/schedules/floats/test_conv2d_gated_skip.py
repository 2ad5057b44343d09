"""Gated convolutions that skip zeros compute the open tiles, and leave the closed ones what they are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.conv2d_gated import default_gated_tile, gate_panels, gate_size
from schedules.conv2d_gated_skip import gated_skip_conv2d, pack_gated_skip
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import input_lists
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.conv2d_reference import SHAPES, added, after, convolutions, operands, reference
from tests.schedules.floats.test_conv2d_skip import listed


def check(isa, conv: Conv2d, threads: int, reads: bool = False, shares=(0.0, 0.4, 1.0), zeros=(0.0, 0.8, 1.0)):
    conv = replace(conv, outputs=max(conv.outputs, isa.lanes))
    rng = np.random.default_rng(1)
    closed = rng.standard_normal((conv.output_size // conv.outputs, conv.outputs)).astype("float32")
    kernel = compile_kernel(isa, gated_skip_conv2d(isa, conv, threads, reads), threads)
    for share, zero in zip(shares, zeros, strict=True):
        x, weight, bias, residual = operands(conv, zero)
        opened = (rng.random(gate_size(isa, conv, default_gated_tile(isa, conv))) < share).astype("uint8")
        channels = np.zeros(closed.shape, bool)
        for panel, pixels in zip(gate_panels(isa, conv), opened, strict=True):
            channels[:, panel] |= pixels[:, None].astype(bool)
        given_ = listed(input_lists(conv), x) if reads else x.reshape(-1)
        operand = (*pack_gated_skip(isa, conv, weight, bias), added(conv, residual), opened, closed.reshape(-1))
        (y,) = call(kernel, given_, *operand, Output((conv.output_size,), "float32"), threads=threads)
        exact = reference(conv, x, weight, bias, residual).reshape(closed.shape)
        wanted = np.where(channels, exact, after(conv, closed, residual))
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", [*SHAPES, replace(SHAPES[1], outputs=57)], ids=str)
def test_convolutions_match_numpy(isa, conv, threads):
    check(isa, conv, threads)
    check(isa, conv, threads, shares=(1.0, 1.0, 0.0), zeros=(1.0, 0.9, 0.9))


@pytest.mark.parametrize("conv", [conv for conv in SHAPES if conv.out_width > 1], ids=str)
def test_lists_take_the_place_of_images(isa, conv, threads):
    check(isa, conv, threads, reads=True)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    conv=convolutions(),
    threads=st.integers(1, 2),
    share=st.floats(0, 1),
    zeros=st.floats(0, 1),
)
def test_any_convolution_matches_numpy(isa, conv, threads, share, zeros):
    check(isa, conv, threads, shares=(share,), zeros=(zeros,))
