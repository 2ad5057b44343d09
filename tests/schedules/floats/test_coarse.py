"""Blocks of pixels: what they see, and how their sums become an image, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules.coarse import BLOCK, can_be_coarse, coarse_projection, coarse_spread, fine_pixels
from schedules.conv2d_shape import Conv2d
from tests.schedules.conftest import Output, call, compile_kernel
from tests.schedules.conv2d_reference import added, after, operands, reference

#: Even; odd and padded unevenly; strides that leave rows unread, channels that are no multiple of a vector.
SHAPES = [
    Conv2d(1, 8, 6, 5, 32, (3, 3), padding=(1, 1, 1, 1), activation="relu"),
    Conv2d(2, 9, 7, 5, 21, (3, 2), (2, 1), (1, 0, 2, 1), activation="relu6", residual=True),
    Conv2d(1, 12, 11, 3, 19, (1, 1), (2, 2)),
    Conv2d(1, 5, 5, 4, 16, (4, 4), padding=(0, 2, 3, 1), activation="sigmoid"),
]


def every_direction(conv: Conv2d, weight: np.ndarray) -> np.ndarray:
    """Return filters of blocks that give the sums of all four pixels, ``(4 * outputs, *kernel, inputs)``."""
    inner = coarse_projection(conv, 1)
    filters = np.zeros((BLOCK, BLOCK, conv.outputs, *inner.kernel, conv.inputs), "float32")
    for down in range(BLOCK):
        for across in range(BLOCK):
            top, left = down * conv.strides[0], across * conv.strides[1]
            filters[down, across, :, top : top + conv.kernel[0], left : left + conv.kernel[1]] = weight
    return filters.reshape(-1, *inner.kernel, conv.inputs)


def in_blocks(conv: Conv2d, sums: np.ndarray) -> np.ndarray:
    """Return an image's pixels block by block, ones where a block reaches beyond it."""
    inner = coarse_projection(conv, 1)
    padded = np.ones((conv.batch, BLOCK * inner.out_height, BLOCK * inner.out_width, conv.outputs), "float32")
    padded[:, : conv.out_height, : conv.out_width] = sums
    parts = padded.reshape(conv.batch, inner.out_height, BLOCK, inner.out_width, BLOCK, conv.outputs)
    return np.ascontiguousarray(parts.transpose(0, 1, 3, 2, 4, 5))


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_blocks_see_what_their_pixels_see(conv):
    x, weight, bias, residual = operands(conv)
    plain = replace(conv, activation=None, residual=False)
    wanted = in_blocks(conv, reference(plain, x, weight, bias, residual))
    size = BLOCK * BLOCK * conv.outputs
    inner = coarse_projection(conv, size)
    shape = (conv.batch, inner.out_height, inner.out_width, size)
    found = reference(inner, x, every_direction(conv, weight), np.tile(bias, BLOCK**2), np.zeros(shape))
    assert (inner.out_height, inner.out_width) == wanted.shape[1:3]
    inside = in_blocks(conv, np.zeros((conv.batch, conv.out_height, conv.out_width, conv.outputs))) == 0
    np.testing.assert_allclose(found.reshape(wanted.shape)[inside], wanted[inside], rtol=1e-4, atol=1e-4)
    spread = coarse_spread(conv, 24)
    assert (spread.inputs, spread.outputs, spread.width) == (24, size, np.prod(shape[:3]))


@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_pixels_of_blocks_get_their_places(isa, conv, threads):
    residual = operands(conv)[3]
    sums = np.random.default_rng(1).standard_normal(residual.shape).astype("float32")
    kernel = compile_kernel(isa, fine_pixels(isa, conv, threads), threads)
    given = in_blocks(conv, sums).reshape(-1), added(conv, residual)
    (y,) = call(kernel, *given, Output((conv.output_size,), "float32"), threads=threads)
    np.testing.assert_allclose(y.reshape(sums.shape), after(conv, sums, residual), rtol=1e-5, atol=1e-6)


def test_small_images_and_gaps_have_no_blocks():
    conv = SHAPES[0]
    assert can_be_coarse(conv) and can_be_coarse(SHAPES[1])
    assert not can_be_coarse(replace(conv, dilation=(2, 1)))
    assert not can_be_coarse(replace(conv, height=3))
