"""Depthwise convolution of floats: each channel by itself, channels in vectors.

Pixels lie channels last (NHWC), so a vector of neighbouring channels of one tap meets a vector of weights. Weights are
loaded once for a few neighbouring pixels of a row, whose sums stay in registers; bands of padded rows as in
`schedules.conv2d`.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_bands import BAND_BYTES, Bands, rows_within
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.inlining import inline
from schedules.intrinsics import span

#: Channels that are computed at once, those of a cache line: pixels of 512 channels are so far apart that their lines
#: have 16 places in the first level, and are gone before the other half is read.
_CHANNELS = 16
#: Registers of sums: as many as hide an addition's latency, at two a cycle.
_SUMS = 8
#: Taps up to which all are unrolled.
_UNROLLED = 9


def pack_depthwise(weight: np.ndarray) -> np.ndarray:
    """Return ``f32[taps * channels]``, tap by tap, of ``float32 (channels, kernel rows, kernel columns, 1)``."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T).reshape(-1)


def _width(channels: int) -> int:
    """Return how many channels are computed at once: a power of two."""
    return min(_CHANNELS, 1 << (channels.bit_length() - 1))


def depthwise_conv2d(isa: Isa, conv: Conv2d, threads: int):
    """Return the kernel ``(x: f32[input size], weight, bias: f32[channels]) -> y: f32[output size]``.

    `conv` has as many outputs as inputs and no residual; ``weight`` is from `pack_depthwise`. Threads share the bands.
    """
    channels, (down, across), width = conv.outputs, conv.kernel, _width(conv.outputs)
    rows = min(rows_within(conv, BAND_BYTES), -(-conv.out_height // threads))
    pixels = min(max(1, _SUMS * isa.lanes // max(width, isa.lanes)), conv.out_width)
    bands, vectors = Bands(conv, rows), -(-channels // width)
    row_values, taps, finish = conv.padded_width * channels, down * across, NONLINEARITIES[conv.activation]
    per_row = -(-conv.out_width // pixels)

    each_tap = T.unroll if taps <= _UNROLLED else T.serial

    def multiply(sums, image, weight, start, channel, tap):
        """Add one tap's products of all pixels."""
        down_by, across_by = conv.dilation[0] * row_values, conv.dilation[1] * channels
        at = start + T.truncdiv(tap, across) * down_by + T.truncmod(tap, across) * across_by + channel
        factor = weight[span(tap * channels + channel, width)]
        for p, each in enumerate(sums):
            value = image[span(at + p * (conv.strides[1] * channels), width)]
            T.buffer_store(each, each[span(0, width)] + value * factor, [span(0, width)])

    def begun(bias, channel):
        sums = [T.alloc_buffer((width,), "float32") for _ in range(pixels)]
        for each in sums:
            T.buffer_store(each, bias[span(channel, width)], [span(0, width)])
        return sums

    def store(y, to, sums):
        for p, each in enumerate(sums):
            T.buffer_store(y, finish(each[span(0, width)]), [span(to + p * channels, width)])

    @inline
    def over_pixels(image, origin, context, to):
        weight, bias, y = context
        for number in T.serial(bands.rows * per_row):
            row: T.let = number // per_row
            first: T.let = T.min(number % per_row * pixels, conv.out_width - pixels)
            start: T.let = origin + row * (conv.strides[0] * row_values) + first * (conv.strides[1] * channels)
            for v in T.serial(vectors):
                channel: T.let = T.min(v * width, channels - width)
                sums = begun(bias, channel)
                for tap in each_tap(taps):
                    multiply(sums, image, weight, start, channel, tap)
                store(y, (to + row * conv.out_width + first) * channels + channel, sums)

    each_band = bands.each(over_pixels)

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((taps * channels,), "float32"),
        bias: T.Buffer((channels,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        scratch = T.sblock_alloc_buffer((threads * bands.scratch_size,), "float32")
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0 : conv.input_size], weight[0 : taps * channels], bias[0:channels])
                T.writes(y[0 : conv.output_size], scratch[0 : threads * bands.scratch_size])
                each_band(
                    x,
                    scratch,
                    (weight, bias, y),
                    vt,
                    vt * bands.count // threads,
                    (vt + 1) * bands.count // threads,
                )

    return convolved
