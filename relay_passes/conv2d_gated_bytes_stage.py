"""The stages of a gated convolution of bytes or of bf16: the little module's few channels, then everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import relax

from relay_passes.conv2d_bytes_stage import NUMBERS, ByteImages, chosen_byte_tile
from relay_passes.products import LittleModule
from relay_passes.split_littles import LEVELS
from relay_passes.step import StepBuilder
from schedules.bf16_vectors import BF16
from schedules.conv2d_gated_bytes import gated_conv2d_bytes
from schedules.conv2d_gated_tiles import GatedTiles, default_gated_tiles, gated_tiles, spread_conv
from schedules.conv2d_int8 import conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.history import chosen_knobs
from schedules.registry import kernel

_PACKED = ("weight", "scale", "bias", "affine")


def gated_bytes(
    step: StepBuilder,
    isa: Isa,
    conv: Conv2d,
    threads: int,
    images: ByteImages,
    little: LittleModule,
    weight: np.ndarray,
    bias: np.ndarray,
    x: relax.Var,
    residual: relax.Var | None,
    limits: relax.Var,
) -> tuple[relax.Var, relax.Var]:
    """Emit a gated convolution into a step; return its result and how many tiles were open.

    `little` is of float32 for bf16; one of bytes has the levels `relay_passes.split_littles.LEVELS`.
    """
    byte, (projection,), name = images.of(conv), little.projections, images.precision
    k, numbers = len(projection), NUMBERS[images.precision]
    levels = LEVELS if images.precision == "int8" else None
    few = ByteConv(replace(conv, outputs=k, activation=None, residual=False), byte.source, numbers, "float32", numbers)
    tile, filters = chosen_byte_tile(isa, few, threads), projection.reshape(k, *conv.kernel, conv.inputs)
    packed = pack_conv2d_int8(isa, few, tile, filters, -little.center, images.source, levels)
    nothing = step.operand("few_no_residual", np.zeros(1, "float32"))
    z = step.call(
        f"few_conv2d_{name}",
        kernel(conv2d_int8, isa, few, tile, threads),
        x,
        *_operands(step, "few", packed),
        nothing,
    )
    spread, rows = spread_conv(byte, k), little.weight.reshape(-1, 1, 1, k)
    after = (levels or images.source, images.result, images.residual)
    tiles = chosen_gated_tiles(isa, byte, k, threads)
    thin = pack_conv2d_int8(isa, spread, tiles.spread, rows, little.bias, *after)
    big = pack_conv2d_int8(isa, byte, tiles.open, weight, bias, images.source, images.result, images.residual)
    if residual is None:
        residual = step.operand("no_residual", np.zeros(1, byte.residual))
    operands = (*_operands(step, "little", thin), limits, *_operands(step, "big", big), residual)
    return step.call(f"gated_conv2d_{name}", kernel(gated_conv2d_bytes, isa, byte, k, tiles, threads), x, z, *operands)


def chosen_gated_tiles(isa: Isa, byte: ByteConv, few: int, threads: int) -> GatedTiles:
    """Return the tiles that tuning found for a convolution, or the default; of AMX tiles there are no records."""
    if isa.amx or byte.numbers == BF16:
        return default_gated_tiles(isa, byte, few)
    *geometry, source, result = byte.shape
    knobs = chosen_knobs("conv2d_gated_int8", isa, (*geometry, few, source, result), threads)
    return gated_tiles(isa, byte, few, knobs)


def _operands(step: StepBuilder, name: str, packed: tuple[np.ndarray, ...]) -> list[relax.Var]:
    return [step.operand(f"{name}_{part}", value) for part, value in zip(_PACKED, packed, strict=True)]
