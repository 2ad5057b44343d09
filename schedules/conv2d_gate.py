"""The gate of a convolution: from predicted sums to the tiles, a pixel and a panel of channels each, that are open.

What leaving a tile to the little module does is the sum over its channels of squares

    (what the next layers multiply the channel by) x (slope of the nonlinearity) x (error of the channel)

The slope is taken to be a line between two bounds; of a ReLU it is the probability that the true sum is positive,
which a line follows closely enough. Three numbers per channel say all of it, so other rules are other numbers.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_panels import panel_column
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import chunk, sum_each


def tile_gate(isa: Isa, panels: int, pixels: int, outputs: int, size: int, threads: int, residual: bool = False):
    """Return the kernel ``(sums: f32[pixels * outputs], residual, limits: f32[3, outputs]) -> (open, count)``.

    ``open: u8[panels, pixels]`` says which tiles are, ``count: i32[1]`` how many. With the rows a, b and d of
    ``limits``, a tile is open if the sum of ``(d * min(max(a * sum + b, 0), 1)) ** 2`` over its channels exceeds 1.
    Panels are of `size` channels, which are at least one vector. With `residual` the sums are those of ``sums`` and
    ``residual``, which is of the same size, and otherwise one value that nobody reads. Threads share the pixels.
    """
    lanes, group = isa.lanes, chunk(isa, pixels)
    groups, vectors = -(-pixels // group), size // lanes

    def harm(sums, added, limits, pixel, column):
        """Sum of all vectors of a panel at one pixel."""
        total = None
        for v in range(vectors):
            at, place = T.ramp(column + v * lanes, 1, lanes), T.ramp(pixel * outputs + column + v * lanes, 1, lanes)
            value = sums[place] + added[place] if residual else sums[place]
            slope = limits[0, at] * value + limits[1, at]
            one = limits[2, at] * T.max(
                T.min(slope, T.broadcast(T.float32(1), lanes)), T.broadcast(T.float32(0), lanes)
            )
            total = one * one if total is None else total + one * one
        return total

    def is_open(sums, added, limits, first, column):
        """One vector: whether the sums over all channels of `group` pixels exceed one."""
        harms = sum_each([harm(sums, added, limits, first + p, column) for p in range(group)], lanes)
        return harms > (T.broadcast(T.float32(1), group) if group > 1 else T.float32(1))

    count_all = count_open(panels, pixels)

    @T.prim_func(s_tir=True, private=True)
    def gate(
        sums: T.Buffer((pixels * outputs,), "float32"),
        added: T.Buffer((pixels * outputs if residual else 1,), "float32"),
        limits: T.Buffer((3, outputs), "float32"),
        opened: T.Buffer((panels, pixels), "uint8"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for task in T.parallel(threads):
            with T.sblock("gate"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    sums[0 : pixels * outputs],
                    added[0 : pixels * outputs if residual else 1],
                    limits[0:3, 0:outputs],
                )
                T.writes(opened[0:panels, 0:pixels])
                for g in T.serial(vt * groups // threads, (vt + 1) * groups // threads):
                    first: T.let = T.min(g * group, pixels - group)
                    for panel in T.serial(panels):
                        opened[panel, T.ramp(first, 1, group) if group > 1 else first] = T.Cast(
                            f"uint8x{group}" if group > 1 else "uint8",
                            is_open(sums, added, limits, first, panel_column(panel, outputs, size)),
                        )
        with T.sblock("count"):
            T.reads(opened[0:panels, 0:pixels])
            T.writes(count[0])
            count_all(opened, count)

    return gate


def count_open(panels: int, pixels: int):
    """Return the macro ``(opened: u8[panels, pixels], count: i32[1])`` that counts open tiles."""

    @inline
    def counted(opened, count):
        count[0] = 0
        for panel in T.serial(panels):
            for pixel in T.serial(pixels):
                count[0] = count[0] + T.Cast("int32", opened[panel, pixel])

    return counted
