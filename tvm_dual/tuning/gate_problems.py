"""Convolutions that decide on their gates themselves as problems: sums and limits that open the wanted share."""

from __future__ import annotations

import numpy as np

from schedules.conv2d_gated import gate_panels
from schedules.conv2d_gated_tiles import gated_tiles, spread_conv
from schedules.conv2d_int8 import Affine, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS
from schedules.families import Workload
from schedules.single_dots import pack_singles
from schedules.words import sure_level
from tvm_dual.tuning.conv_problems import (
    as_levels,
    convolved,
    shown_channels,
    whole_result,
    whole_sums,
    whole_weights,
)
from tvm_dual.tuning.copies import stacked
from tvm_dual.tuning.problem import Problem, Usage, copies_of, normal

#: What a value of the few channels is above where it opens tiles, and at most where it does not.
_MIDDLE = 127


def single_conv_problem(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    """Return the problem of a convolution whose outputs have a gate each; open ones lie at random."""
    conv, isa = Conv2d.of_geometry(workload.shape), workload.level
    weight, bias = normal(rng, conv.outputs, *conv.kernel, conv.inputs), normal(rng, conv.outputs)
    copies = copies_of(weight.nbytes + 4 * (conv.input_size + conv.output_size))
    images = normal(rng, copies, conv.input_size)
    # A sum opens its output if it is positive, and is far enough from zero to say so clearly.
    opened = rng.random((copies, conv.output_size)) < usage.density
    sums = (np.where(opened, 1, -1) * (1 + rng.random(opened.shape))).astype("float32")
    limits = np.repeat(np.array([[1.0], [0.0], [2.0]], "float32"), conv.outputs, axis=1)
    exact = np.stack([convolved(conv, image, weight, bias) for image in images])
    after = [np.zeros(1, "float32"), limits]
    return Problem(
        copies,
        1,
        [stacked(list(images))],
        [*(stacked([array] * copies) for array in after), stacked(list(sums))],
        lambda _: list(pack_singles(isa, weight, bias, conv)),
        [np.where(opened, exact, sums), opened.sum(axis=1, keepdims=True).astype("int32")],
    )


def gated_byte_conv_problem(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    """Return the problem of a gated convolution of bytes; all numbers are exact, as in `conv_problems`.

    Each panel of the gate is opened by one of the few channels, which its outputs hold where it is closed.
    """
    *shape, few, source, result = workload.shape
    # Tiles are of registers at every level, as the family's template has them.
    byte, isa = ByteConv.of_shape((*shape, source, result)), ISAS[workload.level.records]
    conv, panels, spread = byte.conv, gate_panels(isa, byte.conv), spread_conv(byte, few)
    weight, most = whole_weights(isa, conv, rng), sure_level(isa, few)
    channel = np.zeros(conv.outputs, int)
    for number, panel in enumerate(panels):
        channel[panel] = number % few
    rows = np.zeros((conv.outputs, 1, 1, few), "float32")
    rows[np.arange(conv.outputs), 0, 0, channel] = most
    copies = copies_of(weight.nbytes // 4 + conv.input_size + conv.output_size)
    levels, sums = whole_sums(conv, copies, weight, rng)
    opens = rng.random((copies, spread.conv.height * spread.conv.width * conv.batch, few)) < usage.density
    seen = np.where(opens, rng.integers(_MIDDLE + 1, 256, opens.shape), rng.integers(0, _MIDDLE + 1, opens.shape))
    # Where the last panel overlaps the one before it, outputs of both may open it.
    opened = np.stack([[each[:, channel[panel]].any(axis=1) for panel in panels] for each in opens])
    shown = np.stack([shown_channels(each, panels, conv.outputs) for each in opened])
    closed = most * seen[:, :, channel].astype("float32")
    meaning, none = whole_result(isa, byte), np.zeros(conv.outputs, "float32")
    values = np.where(shown, sums.reshape(shown.shape), closed).reshape(copies, -1)
    limits = np.repeat(np.array([[1.0], [-most * (_MIDDLE + 0.5)], [2.0]], "float32"), conv.outputs, axis=1)

    def pack(knobs) -> list[np.ndarray]:
        tiles = gated_tiles(isa, byte, few, knobs)
        thin = pack_conv2d_int8(isa, spread, tiles.spread, rows, none, Affine(1.0), meaning)
        return [*thin, limits, *pack_conv2d_int8(isa, byte, tiles.open, weight, none, Affine(1.0), meaning)]

    return Problem(
        copies,
        1,
        [stacked(list(levels.astype(byte.source))), stacked(list(seen.astype("uint8")))],
        [stacked([np.zeros(1, "float32")] * copies)],
        pack,
        [as_levels(values, meaning), opened.sum(axis=(1, 2)).astype("int32")[:, None]],
    )
