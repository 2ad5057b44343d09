"""Coarse little modules: few values for each block of two by two output pixels, from which all four are predicted.

Neighbouring pixels see nearly the same, so that the directions that predict a block are fewer than four times those of
a pixel. They are a convolution of twice the stride, whose kernel sees all that the four pixels see; a product per block
then gives the sums of its four pixels, one after another.
"""

from __future__ import annotations

from dataclasses import replace

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.conv2d_store import store_pixel
from schedules.cpu import Isa

#: Pixels of a block, down and across.
BLOCK = 2
#: Least extent of an output that is worth blocks.
LEAST = 4


def can_be_coarse(conv: Conv2d) -> bool:
    """Whether blocks of pixels see one rectangle of the input, and whether the image has enough of them."""
    return conv.dilation == (1, 1) and min(conv.out_height, conv.out_width) >= LEAST


def coarse_projection(conv: Conv2d, directions: int) -> Conv2d:
    """Return the convolution that gives `directions` values for each block; blocks may reach beyond the output."""
    extents = (conv.out_height, conv.out_width)
    blocks = [-(-extent // BLOCK) for extent in extents]
    kernel = tuple(size + (BLOCK - 1) * stride for size, stride in zip(conv.kernel, conv.strides, strict=True))
    strides = tuple(BLOCK * stride for stride in conv.strides)
    top, left, _, _ = conv.padding
    # What the last block sees, beyond the image or short of its end.
    bottom, right = (
        max(0, (count - 1) * stride + reach - size - before)
        for count, stride, reach, size, before in zip(
            blocks, strides, kernel, (conv.height, conv.width), (top, left), strict=True
        )
    )
    return replace(
        conv,
        outputs=directions,
        kernel=kernel,
        strides=strides,
        padding=(top, left, bottom, right),
        activation=None,
        residual=False,
    )


def coarse_spread(conv: Conv2d, directions: int) -> Conv2d:
    """Return the product per block that gives the sums of its pixels: row by row, each pixel's channels together."""
    inner = coarse_projection(conv, directions)
    blocks = inner.batch * inner.out_height * inner.out_width
    return Conv2d(1, 1, blocks, directions, BLOCK * BLOCK * conv.outputs, (1, 1))


def fine_pixels(isa: Isa, conv: Conv2d, threads: int):
    """Return the kernel ``(four: f32[blocks * 4 * outputs], residual) -> y: f32[output size]``.

    It puts the pixels of blocks in their places, with what follows the sums of `conv`; pixels beyond the output are
    left out. Threads share the rows.
    """
    inner, outputs, lanes = coarse_projection(conv, 1), conv.outputs, isa.lanes
    blocks, across = inner.batch * inner.out_height * inner.out_width, inner.out_width
    rows, store = conv.batch * conv.out_height, store_pixel(isa, conv)
    vectors, size = -(-outputs // lanes), blocks * BLOCK * BLOCK * outputs

    @T.prim_func(s_tir=True, private=True)
    def fine(
        four: T.Buffer((size,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(four[0:size], residual[0 : conv.residual_size])
                T.writes(y[0 : conv.output_size])
                for row in T.serial(vt * rows // threads, (vt + 1) * rows // threads):
                    image: T.let = row // conv.out_height
                    down: T.let = row % conv.out_height
                    first: T.let = (image * inner.out_height + down // BLOCK) * across
                    for column in T.serial(conv.out_width):
                        block: T.let = first + column // BLOCK
                        pixel: T.let = down % BLOCK * BLOCK + column % BLOCK
                        for v in T.serial(vectors):
                            at: T.let = T.min(v * lanes, outputs - lanes)
                            place: T.let = (block * (BLOCK * BLOCK) + pixel) * outputs + at
                            store(
                                y,
                                residual,
                                (row * conv.out_width + column) * outputs + at,
                                four[T.ramp(place, 1, lanes)],
                            )

    return fine
