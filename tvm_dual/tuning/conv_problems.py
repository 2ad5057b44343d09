"""Convolutions as problems (`tvm_dual.tuning.problems`): images, weights, gates, and what must come out."""

from __future__ import annotations

import numpy as np

from schedules.conv2d import pack_conv2d
from schedules.conv2d_byte_tile import byte_tile
from schedules.conv2d_gated import default_gated_tile, gate_panels, gate_size
from schedules.conv2d_int8 import Affine, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import pack_conv2d_skip
from schedules.cpu import Isa
from schedules.families import Workload
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
        panels = gate_panels(isa, conv)
        shown = np.stack([shown_channels(each, panels, conv.outputs) for each in opened])
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
    weight = whole_weights(isa, byte.conv, rng)
    copies = copies_of(weight.nbytes // 4 + byte.conv.input_size + byte.conv.output_size)
    levels, sums = whole_sums(byte.conv, copies, weight, rng)
    result, bias = whole_result(isa, byte), np.zeros(byte.conv.outputs, "float32")
    return Problem(
        copies,
        1,
        [stacked(list(levels.astype(byte.source)))],
        [stacked([np.zeros(1, "float32")] * copies)],
        lambda knobs: list(pack_conv2d_int8(isa, byte, byte_tile(knobs), weight, bias, Affine(1.0), result)),
        [as_levels(sums, result)],
        ("vectors", "form"),
    )


def whole_weights(isa: Isa, conv: Conv2d, rng: np.random.Generator) -> np.ndarray:
    """Return weights ``(outputs, *kernel, inputs)`` that are levels already, of a scale of one."""
    most = sure_level(isa, conv.runs[1])
    weight = rng.integers(-most, most + 1, (conv.outputs, *conv.kernel, conv.inputs)).astype("float32")
    # The largest of each row sets its scale.
    weight.reshape(conv.outputs, -1)[:, 0] = most
    return weight


def whole_sums(
    conv: Conv2d, copies: int, weight: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return images of bytes and what their sums are, a row for each of the copies."""
    levels = rng.integers(0, 256, (copies, conv.input_size)).astype("uint8")
    none = np.zeros(conv.outputs, "float32")
    return levels, np.stack([convolved(conv, image.astype("float32"), weight, none) for image in levels])


def whole_result(isa: Isa, byte: ByteConv) -> Affine | None:
    """Return what a result of bytes stands for: some of the sums are cut off at both ends."""
    most = sure_level(isa, byte.conv.runs[1])
    return Affine(2.0 ** round(np.log2(most * np.sqrt(byte.conv.taps))), 128) if byte.result == "uint8" else None


def as_levels(sums: np.ndarray, result: Affine | None) -> np.ndarray:
    """Return sums as a result of that meaning holds them."""
    if result is None:
        return sums
    return np.clip(np.floor(sums / result.scale + result.zero + 0.5), 0, 255).astype("uint8")


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


def shown_channels(opened: np.ndarray, panels: list[slice], outputs: int) -> np.ndarray:
    """Return for each pixel and output whether one of its panels is open; the last one overlaps the one before.

    Parameters
    ----------
    opened : ndarray, bool, (panels, pixels)
    panels : list of slice
        Channels of each.
    outputs : int
    """
    shown = np.zeros((opened.shape[1], outputs), bool)
    for panel, pixels in zip(panels, opened, strict=True):
        shown[:, panel] |= pixels[:, None]
    return shown
