"""Convolutions of bytes or of bf16 one behind the other, band by band: what is between them never leaves L2.

An image of a megabyte or more that one convolution writes and the next one reads comes and goes through L3 or memory.
Here each band of rows passes through all convolutions before the next one starts. The input of each lies in a buffer of
its own, padding included, all with rows of the same length; the last rows of a buffer, which the next band reads again,
move to its top. A convolution whose outputs need rows below them is as many rows behind the one before it, so that rows
above and below the image pass, too: they are overwritten with what padding consists of.
"""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import numpy as np
from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, narrowing
from schedules.byte_chain import ByteChain
from schedules.chain_operands import Part
from schedules.conv2d_amx import configure, release
from schedules.conv2d_byte_panels import byte_panels
from schedules.conv2d_byte_tile import LANES
from schedules.conv2d_bytes import AFFINE, ZERO, copy_rows
from schedules.conv2d_finish import finish_sums
from schedules.conv2d_lines import STEP, ByteConv, Lines, image_lines
from schedules.conv2d_panels import panel_count
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import span, vector_lanes
from schedules.pool import MaxPool2d, maximum
from schedules.quantize import round_up


def conv2d_chain(isa: Isa, chain: ByteChain, threads: int):
    """Return the kernel ``(x, weight, floats) -> y``; `pack_chain` gives the operands. Threads share the bands."""
    tiles, count, rows, pitch = chain.tiles(isa), len(chain.convs), chain.rows, chain.pitch
    convs = [byte.conv for byte in chain.convs]
    bands, before, height, width = chain.bands, chain.before, convs[0].height, convs[0].width
    offsets, inner = chain.offsets, [_inner(conv, rows, pitch) for conv in convs]
    lines = [_lines(byte, rows, pitch, width) for byte in chain.convs]
    shapes = [
        (panel_count(conv.outputs, tile.vectors * LANES), line.steps, tile.vectors)
        for conv, tile, line in zip(convs, tiles, lines, strict=True)
    ]
    columns = [max(conv.outputs, tile.vectors * LANES) for conv, tile in zip(convs, tiles, strict=True)]
    weight_starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)]).tolist()
    float_starts = np.cumsum([0, *(2 * n + AFFINE for n in columns)]).tolist()
    # Of each convolution's input, and of the last one's output.
    sizes = [
        # The place of a task's buffer counts in pixels, too.
        round_up(((rows + conv.kernel[0] - 1) * pitch + conv.kernel[1]) * conv.inputs + STEP, lcm(STEP, conv.inputs))
        for conv in convs
    ]
    sizes.append(rows * pitch * convs[-1].outputs)
    types = [*(byte.numbers for byte in chain.convs), chain.last.result]
    computes = [
        byte_panels(isa, line, each, tile, finish_sums(isa, replace(byte, conv=each)))
        for line, each, tile, byte in zip(lines, inner, tiles, chain.convs, strict=True)
    ]
    states = [(configure(isa, tile), release(isa, tile)) for tile in tiles]
    padded = replace(convs[0], padding=(convs[0].padding[0], before, 0, pitch - width - before))
    copy = copy_rows(isa, replace(chain.first, conv=padded), rows + convs[0].kernel[0] - 1)
    pooled = _pooled(isa, chain)
    weight_rows, n_floats = weight_starts[-1], float_starts[-1]

    def parts(weight, floats, layer, x):
        start, n = float_starts[layer], columns[layer]
        scale, bias, affine = (Part(floats, start + at) for at in (0, n, 2 * n))
        return Part(weight, weight_starts[layer], shapes[layer]), scale, bias, affine, x

    def allocated():
        return [T.sblock_alloc_buffer((threads * n,), kind) for n, kind in zip(sizes, types, strict=True)]

    def fill(layer):
        """Return the macro ``(buffer, start, size, value)``."""

        @inline
        def filled(buffer, start, size, value):
            for i in T.serial(size):
                buffer[start + i] = value

        return filled

    set_all = fill(0)

    def clear_one(layer):
        @inline
        def cleared(buffers, floats, task):
            zero: T.let = _level(parts(None, floats, layer, None)[3], types[layer])
            set_all(buffers[layer], task * sizes[layer], sizes[layer], zero)

        return cleared

    def one(layer):
        conv, compute, (begin, end) = convs[layer], computes[layer], states[layer]
        last = layer == count - 1
        follow = None if last else convs[layer + 1]
        kept = 0 if last else follow.kernel[0] - 1
        to = kept * pitch + (0 if last else before)
        skip, panels = (before - conv.padding[1]) * conv.inputs, shapes[layer][0]
        moved = (conv.kernel[0] - 1) * pitch * conv.inputs
        shift, gap = rows * pitch * conv.inputs, (pitch - width) * conv.outputs
        line = pitch * conv.outputs

        @inline
        def computed(x, weight, floats, buffers, task, band):
            image: T.let = task * sizes[layer]
            out: T.let = task * (sizes[layer + 1] // conv.outputs)
            begin()
            compute(
                buffers[layer],
                image + skip,
                parts(weight, floats, layer, x),
                buffers[layer + 1],
                to + out,
                0,
                panels,
            )
            end()
            if not last:
                zero: T.let = _level(parts(weight, floats, layer + 1, x)[3], types[layer + 1])
                for row in T.serial(rows):
                    at: T.let = task * sizes[layer + 1] + (kept + row) * line
                    number: T.let = band * rows + offsets[layer] + row
                    if (number < 0) or (number >= height):
                        set_all(buffers[layer + 1], at, line + before * conv.outputs, zero)
                    else:
                        # Pixels between the rows have been written, too.
                        set_all(buffers[layer + 1], at + (before + width) * conv.outputs, gap, zero)
            if layer > 0:
                for i in T.serial(moved):
                    buffers[layer][image + i] = buffers[layer][image + shift + i]

        return computed

    layers, clears = [one(layer) for layer in range(count)], [clear_one(layer) for layer in range(count)]

    def clear(buffers, floats, task):
        for each in clears:
            each(buffers, floats, task)

    def compute_all(x, weight, floats, buffers, task, band):
        for each in layers:
            each(x, weight, floats, buffers, task, band)

    @inline
    def compute_bands(x, weight, floats, buffers, y, task):
        clear(buffers, floats, task)
        first: T.let = task * bands // threads
        # One band before its own gives a task what it reads above them.
        for band in T.serial(T.max(0, first - 1), (task + 1) * bands // threads):
            copy(
                x,
                parts(weight, floats, 0, x)[3],
                buffers[0],
                task * sizes[0],
                0,
                band * rows + offsets[0] - convs[0].padding[0],
            )
            compute_all(x, weight, floats, buffers, task, band)
            if band >= first:
                pooled(buffers[count], task * sizes[count], y, band * rows + offsets[count - 1])

    compute = narrowing(compute_bands) if BF16 in types else compute_bands

    @T.prim_func(s_tir=True, private=True)
    def chained(
        x: T.Buffer((convs[0].input_size,), chain.first.source),
        weight: T.Buffer((weight_rows, 16, STEP), "int8"),
        floats: T.Buffer((n_floats,), "float32"),
        y: T.Buffer((chain.output_size,), chain.last.result),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        buffers = allocated()
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0 : convs[0].input_size], weight[0:weight_rows, 0:16, 0:STEP], floats[0:n_floats])
                T.writes(y[0 : chain.output_size])
                compute(x, weight, floats, buffers, y, vt)

    return chained


def _level(affine, kind: str):
    """Return what stands for zero in an image of a type."""
    return T.Cast(kind, T.Cast("int32", affine[ZERO]))


def _inner(conv, rows: int, pitch: int):
    """Return a convolution of a band whose output has all columns of a buffer."""
    return replace(
        conv,
        height=rows + conv.kernel[0] - 1,
        width=pitch + conv.kernel[1] - 1,
        padding=(0, 0, 0, 0),
    )


def _lines(byte: ByteConv, rows: int, pitch: int, width: int) -> Lines:
    """Return a band's pixels: one line, which ends with the last row's last pixel."""
    padded = replace(byte.conv, width=pitch, padding=(0, 0, 0, 0))
    whole = image_lines(replace(byte, conv=padded), rows, "whole")
    return replace(whole, length=(rows - 1) * pitch + width)


def _pooled(isa: Isa, chain: ByteChain):
    """Return the macro ``(source, origin, y, top)`` that pools a band, whose first row is `top`, or copies it."""
    conv, pitch, rows = chain.last.conv, chain.pitch, chain.rows
    pool = chain.pool or MaxPool2d(1, conv.height, conv.width, conv.outputs, (1, 1), (1, 1))
    (down, across), channels = pool.window, conv.outputs
    lanes = vector_lanes(isa, channels, chain.last.result)
    vectors = -(-channels // lanes)

    def largest(source, corner):
        places = (corner + (i // across * pitch + i % across) * channels for i in range(down * across))
        return maximum([source[span(place, lanes)] for place in places], chain.last.result, lanes)

    @inline
    def pooled(source, origin, y, top):
        for row in T.serial(rows // down):
            number: T.let = T.truncdiv(top, down) + row
            if (number >= 0) and (number < pool.out_height):
                for column in T.serial(pool.out_width):
                    for v in T.serial(vectors):
                        first: T.let = T.min(v * lanes, channels - lanes)
                        y[span((number * pool.out_width + column) * channels + first, lanes)] = largest(
                            source, origin + (row * down * pitch + column * across) * channels + first
                        )

    return pooled
