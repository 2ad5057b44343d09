"""Pooling of images that lie pixel by pixel (NHWC), channels in vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, cut, widened
from schedules.cpu import Isa
from schedules.intrinsics import span, vector_lanes


@dataclass(frozen=True)
class MaxPool2d:
    """A maximum over windows.

    Attributes
    ----------
    batch, height, width, channels : int
        Images, and the input's extents.
    window, strides : tuple of int
        Down and across.
    """

    batch: int
    height: int
    width: int
    channels: int
    window: tuple[int, int]
    strides: tuple[int, int]

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - self.window[0]) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - self.window[1]) // self.strides[1] + 1

    @property
    def output_size(self) -> int:
        """Values of the output."""
        return self.batch * self.out_height * self.out_width * self.channels


def maximum(values: list, dtype: str, lanes: int):
    """Return the largest of vectors of `dtype`, lane by lane; those of bf16 are compared as floats."""
    if dtype == BF16:
        values = [widened(value, lanes) for value in values]
    found = reduce(T.max, values)
    return cut(found, lanes) if dtype == BF16 else found


def max_pool2d(isa: Isa, pool: MaxPool2d, threads: int, dtype: str = "float32"):
    """Return the kernel ``(x: [input size]) -> y: [output size]``, both of `dtype`. Threads share the output rows."""
    channels, size = pool.channels, pool.batch * pool.height * pool.width * pool.channels
    lanes, rows = vector_lanes(isa, channels, dtype), pool.batch * pool.out_height
    down, across = pool.window
    # What is left over is covered by a last vector that overlaps the one before it.
    vectors = -(-channels // lanes)

    def largest(x, corner):
        places = (corner + (i // across * pool.width + i % across) * channels for i in range(down * across))
        return maximum([x[span(place, lanes)] for place in places], dtype, lanes)

    @T.prim_func(s_tir=True, private=True)
    def pooled(x: T.Buffer((size,), dtype), y: T.Buffer((pool.output_size,), dtype)):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0:size])
                T.writes(y[0 : pool.output_size])
                for row in T.serial(vt * rows // threads, (vt + 1) * rows // threads):
                    top: T.let = row // pool.out_height * pool.height + row % pool.out_height * pool.strides[0]
                    for column in T.serial(pool.out_width):
                        corner: T.let = (top * pool.width + column * pool.strides[1]) * channels
                        to: T.let = (row * pool.out_width + column) * channels
                        for v in T.serial(vectors):
                            first: T.let = T.min(v * lanes, channels - lanes)
                            y[span(to + first, lanes)] = largest(x, corner + first)

    return pooled
