"""Convolutions as problems (`tvm_dual.tuning.problems`): images, weights, gates, and what must come out."""

from __future__ import annotations

import numpy as np

from schedules.conv2d import pack_conv2d
from schedules.conv2d_byte_tile import byte_tile
from schedules.conv2d_gated import default_gated_tile, gate_size
from schedules.conv2d_int8 import Affine, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import pack_conv2d_skip
from schedules.families import Workload
from schedules.panels import panel_size
from schedules.words import sure_level
from tvm_dual.tuning.copies import stacked
from tvm_dual.tuning.problem import Problem, Usage, copies_of, normal


def conv_problem(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    """Return the problem of a convolution of any family; zeros and open tiles lie at random."""
    conv, family = Conv2d.of_geometry(workload.shape), workload.family
    isa, gated, skips = workload.level, family == "conv2d_gated", family == "conv2d_skip"
    weight, bias = normal(rng, conv.outputs, *conv.kernel, conv.inputs), normal(rng, conv.outputs)
    copies = copies_of(weight.nbytes + 4 * (conv.input_size + conv.output_size))
    images = normal(rng, copies, conv.input_size)
    if skips:
        images *= rng.random(images.shape) < usage.density
    results = np.stack([convolved(conv, image, weight, bias) for image in images])
    nothing = stacked([np.zeros(1, "float32")] * copies)
    after = [nothing]
    if gated:
        # Panels are no knob, so what a gate decides on is the same for all candidates.
        tile = default_gated_tile(isa, conv)
        opened = rng.random((copies, *gate_size(isa, conv, tile))) < usage.density
        closed = normal(rng, copies, conv.output_size)
        size = panel_size(isa, conv.outputs, tile.vectors)
        shown = np.stack([_channels(each, conv.outputs, size) for each in opened])
        results = np.where(shown.reshape(copies, -1), results, closed)
        after += [stacked(list(opened.astype("uint8"))), stacked(list(closed))]
    return Problem(
        copies,
        1,
        [stacked(list(images))],
        after,
        lambda knobs: list(
            pack_conv2d_skip(isa, conv, knobs, weight, bias) if skips else pack_conv2d(isa, knobs, weight, bias)
        ),
        [results],
        ("outputs", "vectors") if skips else ("vectors",),
    )


def byte_conv_problem(workload: Workload, _usage: Usage, rng: np.random.Generator) -> Problem:
    """Return the problem of a convolution of bytes; all numbers are whole or powers of two, so that results are exact.

    Sums of 32 bits become floats of 24 here and there alike.
    """
    byte, isa = ByteConv.of_shape(workload.shape), workload.level
    conv, most = byte.conv, sure_level(isa, byte.conv.runs[1])
    weight = rng.integers(-most, most + 1, (conv.outputs, *conv.kernel, conv.inputs)).astype("float32")
    # The largest of each row sets its scale: one.
    weight.reshape(conv.outputs, -1)[:, 0] = most
    copies = copies_of(weight.nbytes // 4 + conv.input_size + conv.output_size)
    levels = rng.integers(0, 256, (copies, conv.input_size)).astype("uint8")
    bias, source = np.zeros(conv.outputs, "float32"), Affine(1.0)
    # Some of the sums are cut off at both ends.
    result = Affine(2.0 ** round(np.log2(most * np.sqrt(conv.taps))), 128) if byte.result == "uint8" else None
    sums = np.stack([convolved(conv, image.astype("float32"), weight, bias) for image in levels])
    if result is not None:
        sums = np.clip(np.floor(sums / result.scale + 128.5), 0, 255).astype("uint8")
    images = levels.astype(byte.source)
    return Problem(
        copies,
        1,
        [stacked(list(images))],
        [stacked([np.zeros(1, "float32")] * copies)],
        lambda knobs: list(pack_conv2d_int8(isa, byte, byte_tile(knobs), weight, bias, source, result)),
        [sums],
        ("vectors", "form"),
    )


def convolved(conv: Conv2d, image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return what a convolution with nothing behind it gives, ``float32 (output size,)``.

    Parameters
    ----------
    conv : Conv2d
    image : ndarray, float32, (input size,)
    weight : ndarray, float32, (outputs, kernel rows, kernel columns, inputs)
    bias : ndarray, float32, (outputs,)
    """
    top, left, bottom, right = conv.padding
    pixels = image.reshape(conv.batch, conv.height, conv.width, conv.inputs)
    padded = np.pad(pixels, ((0, 0), (top, bottom), (left, right), (0, 0)))
    total = np.broadcast_to(bias, (conv.batch, conv.out_height, conv.out_width, conv.outputs)).astype("float64")
    for i, j in np.ndindex(conv.kernel):
        rows = slice(i * conv.dilation[0], None, conv.strides[0])
        columns = slice(j * conv.dilation[1], None, conv.strides[1])
        total += padded[:, rows, columns][:, : conv.out_height, : conv.out_width] @ weight[:, i, j].T
    return total.astype("float32").reshape(-1)


def _channels(opened: np.ndarray, outputs: int, size: int) -> np.ndarray:
    """Return for each pixel and output whether one of its panels is open; the last one overlaps the one before."""
    shown = np.zeros((opened.shape[1], max(outputs, size)), bool)
    for panel, pixels in enumerate(opened):
        first = min(panel * size, max(0, outputs - size))
        shown[:, first : first + size] |= pixels[:, None]
    return shown[:, :outputs]
