"""Dot products of pixels' surroundings with one output channel's weights: several pixels at once.

Pixels lie channels last, so what an output reads of a row of the kernel is one run of neighbouring values, and so are
its weights where these lie output by output. A vector of weights that is loaded serves all pixels of a group; sums
over the lanes come last.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import prefetch, span, sum_each

#: Sums in registers at least: each waits four cycles for its next addition, and there are up to two a cycle.
_SUMS = 8


def run_vectors(isa: Isa, conv: Conv2d) -> int:
    """Return the vectors of a run of taps; none of one shorter than a vector, whose taps are taken one by one."""
    _, run = conv.runs
    return -(-run // isa.lanes) if run >= isa.lanes else 0


def run_values(isa: Isa, conv: Conv2d) -> int:
    """Return the packed weights of a run of taps."""
    return run_vectors(isa, conv) * isa.lanes or conv.runs[1]


def channel_values(isa: Isa, conv: Conv2d) -> int:
    """Return the packed weights of an output channel."""
    return conv.kernel[0] * conv.runs[0] * run_values(isa, conv)


def pack_singles(isa: Isa, weight: np.ndarray, bias: np.ndarray, conv: Conv2d) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(weight: f32[outputs * channel_values], bias: f32[outputs])``.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``. The last vector of a run ends with the run:
    taps that it shares with the one before it meet zeros there, so that no value is read from behind an image.
    """
    _, run = conv.runs
    rows, values = weight.reshape(len(weight), -1, run), run_values(isa, conv)
    packed, whole = np.zeros((*rows.shape[:2], values), "float32"), run // isa.lanes * isa.lanes
    if values == run:
        packed[...] = rows
    else:
        packed[..., :whole] = rows[..., :whole]
        packed[..., values - run % isa.lanes :] = rows[..., whole:]
    return packed.reshape(-1), bias.astype("float32")


def dot_products(isa: Isa, conv: Conv2d, together: int, ahead: bool):
    """Return the macro ``(image, weight, base, channel, following, rows, vectors, sums)`` for `together` pixels.

    Of the rows of the kernel from ``rows[0]`` to ``rows[1]`` it takes the vectors from ``vectors[0]`` to ``vectors[1]``
    of each run; ``base: i32[together]`` says where in `image` each pixel's surroundings begin, ``sums: f32[together]``
    receives the dot products. With `ahead` the weights of the channel `following` are fetched meanwhile.
    """
    lanes, (runs, run) = isa.lanes, conv.runs
    values, row_values, whole = run_values(isa, conv), conv.padded_width * conv.inputs, run_vectors(isa, conv)
    unroll, size = max(1, _SUMS // together), channel_values(isa, conv)
    exact, per_line = run % lanes == 0, 16 // lanes

    def registers():
        return [T.alloc_buffer((lanes,), "float32") for _ in range(together * unroll)]

    def start(total):
        for vector in total:
            T.buffer_store(vector, T.broadcast(T.float32(0), lanes), [T.ramp(0, 1, lanes)])

    def multiply(total, image, base, at, weights, part):
        for p in range(together):
            vector = total[p * unroll + part]
            product = image[T.ramp(base[p] + at, 1, lanes)] * weights
            T.buffer_store(vector, vector[T.ramp(0, 1, lanes)] + product, [T.ramp(0, 1, lanes)])

    def finish(total, sums):
        parts = [[v[T.ramp(0, 1, lanes)] for v in total[p * unroll : (p + 1) * unroll]] for p in range(together)]
        T.buffer_store(sums, sum_each([_sum(part) for part in parts], lanes), [span(0, together)])

    def adding(part: int):
        @inline
        def add_vector(total, image, weight, base, first, following, skip, tap, v):
            at: T.let = v * lanes if exact else T.min(v * lanes, run - lanes)
            if ahead and v % per_line == 0:
                prefetch(weight[following + tap + v * lanes])
            multiply(total, image, base, skip + at, weight[T.ramp(first + tap + v * lanes, 1, lanes)], part)

        return add_vector

    adders = [adding(part) for part in range(unroll)]

    def add_vectors(*operands):
        *where, first = operands
        for part, add in enumerate(adders):
            add(*where, first + part)

    add_one = adders[0]

    @inline
    def dots(image, weight, base, channel, following, rows, vectors, sums):
        total = registers()
        start(total)
        first: T.let = channel * size
        next_: T.let = following * size
        # Channels are never negative, which LLVM cannot know: loops that it knows the length of it unrolls altogether,
        # and then it takes pixel after pixel, of which each waits for its own sums.
        steps: T.let = T.min((vectors[1] - vectors[0]) // unroll, (vectors[1] - vectors[0]) // unroll + channel)
        for down in T.serial(rows[0], rows[1]):
            for across in T.serial(runs):
                skip: T.let = down * (conv.dilation[0] * row_values) + across * (conv.dilation[1] * conv.inputs)
                tap: T.let = (down * runs + across) * values
                for step in T.serial(steps):
                    add_vectors(total, image, weight, base, first, next_, skip, tap, vectors[0] + step * unroll)
                for v in T.serial(vectors[0] + steps * unroll, vectors[1]):
                    add_one(total, image, weight, base, first, next_, skip, tap, v)
        finish(total, sums)

    @inline
    def few_dots(image, weight, base, channel, following, rows, vectors, sums):
        for p in T.unroll(together):
            sums[p] = T.float32(0)
        for down in T.serial(rows[0], rows[1]):
            for across in T.serial(runs):
                skip: T.let = down * (conv.dilation[0] * row_values) + across * (conv.dilation[1] * conv.inputs)
                tap: T.let = channel * size + (down * runs + across) * values
                for i in T.serial(run):
                    for p in T.unroll(together):
                        sums[p] = sums[p] + image[base[p] + skip + i] * weight[tap + i]

    return dots if whole else few_dots


def _sum(vectors: list):
    """Return the sum of vectors, in pairs."""
    while len(vectors) > 1:
        vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]
