"""Convolution of bytes or of bf16.

Bytes are unsigned activations and signed weights with a scale for each output channel; their sums are whole numbers.

Both scales, and both zero points, are known when the library is built, so that what follows the sums is one
multiplication and one addition a channel: with ``x = s (q - z)`` and ``w = s_w q_w``, ::

    x . w + b = s s_w (q . q_w) + (b - s s_w z sum(q_w))

and a result of bytes has its own scale multiplied into both. Activations and weights of bf16 have no scales; their
products are added up in float32, by AMX alone.

The packing is that of AMX tiles, which register tiles read as well: for each panel of outputs and 64 bytes of taps, 16
rows of 16 outputs times 4 taps, or 2 of bf16, for each vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from schedules.bf16_vectors import BF16, narrowing, to_bf16
from schedules.conv2d_amx import configure, release
from schedules.conv2d_byte_panels import byte_panels
from schedules.conv2d_byte_tile import LANES, ByteTile
from schedules.conv2d_bytes import AFFINE, INVERSE, OUT_INVERSE, OUT_ZERO, RESIDUAL, ZERO, ByteBands
from schedules.conv2d_finish import CUT, finish_sums
from schedules.conv2d_lines import STEP, ByteConv, image_lines
from schedules.conv2d_panels import panel_count, panel_starts, share_bands
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.words import quantize_taps


@dataclass(frozen=True)
class Affine:
    """A scale and a zero point: ``value = scale * (level - zero)``."""

    scale: float
    zero: int = 0


def pack_conv2d_int8(
    isa: Isa,
    byte: ByteConv,
    tile: ByteTile,
    weight: np.ndarray,
    bias: np.ndarray,
    source: Affine = Affine(1.0),
    result: Affine | None = None,
    residual: Affine | None = None,
) -> tuple[np.ndarray, ...]:
    """Return the operands ``(weight: i8[panels, steps, vectors, 16, 64], scale, bias: f32[columns], affine)``.

    Parameters
    ----------
    isa : Isa
        Weights have as many levels as its products are exact with.
    byte : ByteConv
    tile : ByteTile
    weight : ndarray, float32, (outputs, kernel rows, kernel columns, inputs)
    bias : ndarray, float32, (outputs,)
    source : Affine, optional
        Of the bytes that are multiplied.
    result, residual : Affine, optional
        Of images that are bytes; of others they count nothing.
    """
    conv, scale, offset = byte.conv, np.ones(byte.conv.outputs), bias.astype("float64")
    affine = np.zeros(AFFINE)
    if byte.numbers == BF16:
        packed = _laid_out(byte, tile, to_bf16(weight))
    else:
        affine[[INVERSE, ZERO]] = 1 / source.scale, source.zero + 0.5
        rows = quantize_taps(isa, weight.reshape(conv.outputs, -1), conv.runs[1])
        packed = _laid_out(byte, tile, rows.values)
        scale = rows.scale.astype("float64") * source.scale
        offset = bias - scale * source.zero * rows.values.astype("int64").sum(axis=1)
    into, zero = 1.0, 0.0
    if byte.result == "uint8":
        into, zero = 1 / result.scale, result.zero + 0.5
        affine[[OUT_INVERSE, OUT_ZERO]] = into, zero
    if conv.activation not in CUT:
        into, zero = 1.0, 0.0
    if conv.residual and byte.residual == "uint8":
        affine[RESIDUAL] = residual.scale * into
        offset = offset - residual.scale * residual.zero
    missing = max(0, tile.vectors * LANES - conv.outputs)
    parts = (np.pad(part, (0, missing)) for part in (scale * into, offset * into + zero))
    return packed, *(p.astype("float32") for p in parts), affine.astype("float32")


def _laid_out(byte: ByteConv, tile: ByteTile, weight: np.ndarray) -> np.ndarray:
    """Return the bytes of weights, quantized already, as tiles of them: ``i8[panels, steps, vectors, 16, 64]``."""
    conv, lines = byte.conv, image_lines(byte, tile.rows, tile.form)
    runs = weight.reshape(conv.outputs, len(lines.runs), lines.runs[0][1])
    runs = np.pad(runs, ((0, 0), (0, 0), (0, -runs.shape[2] % byte.step))).reshape(conv.outputs, -1)
    size = tile.vectors * LANES
    runs = np.pad(runs, ((0, max(0, size - conv.outputs)), (0, 0)))
    panels = np.stack([runs[start : start + size] for start in panel_starts(conv.outputs, size)])
    parts = panels.reshape(len(panels), tile.vectors, LANES, lines.steps, 16, byte.step // 16)
    packed = np.ascontiguousarray(parts.transpose(0, 3, 1, 4, 2, 5))
    return packed.view("int8").reshape(*packed.shape[:4], STEP)


def conv2d_int8(isa: Isa, byte: ByteConv, tile: ByteTile, threads: int):
    """Return the kernel ``(x, weight, scale, bias, affine, residual) -> y``.

    ``x``, ``residual`` and ``y`` are images of the types that `byte` names, the operands between are from
    `pack_conv2d_int8`. Threads share the bands, or the panels of each band if that leaves less waiting.
    """
    conv, size = byte.conv, tile.vectors * LANES
    lines, bands = image_lines(byte, tile.rows, tile.form), ByteBands(byte, tile.rows, tile.form)
    panels, columns = panel_count(conv.outputs, size), max(conv.outputs, size)
    by_bands = share_bands(bands.count, panels, threads)
    compute = byte_panels(isa, lines, conv, tile, finish_sums(isa, byte))

    @inline
    def over_panels(image, origin, context, to):
        operands, y, first_panel, last_panel = context
        compute(image, origin, operands, y, to, first_panel, last_panel)

    each_band = bands.each(isa, over_panels)

    @inline
    def over_bands(x, scratch, operands, y, task):
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        first_panel: T.let = 0 if by_bands else task * panels // threads
        last_panel: T.let = panels if by_bands else (task + 1) * panels // threads
        each_band(x, operands[3], scratch, (operands, y, first_panel, last_panel), task, first_band, last_band)

    begin, end = configure(isa, tile), release(isa, tile)

    @inline
    def compute_bands(x, scratch, operands, y, task):
        begin()
        over_bands(x, scratch, operands, y, task)
        end()

    compute_all = narrowing(compute_bands) if BF16 in (byte.numbers, byte.result) else compute_bands

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((conv.input_size,), byte.source),
        weight: T.Buffer((panels, lines.steps, tile.vectors, 16, STEP), "int8"),
        scale: T.Buffer((columns,), "float32"),
        bias: T.Buffer((columns,), "float32"),
        affine: T.Buffer((AFFINE,), "float32"),
        residual: T.Buffer((conv.residual_size,), byte.residual),
        y: T.Buffer((conv.output_size,), byte.result),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        copies = T.sblock_alloc_buffer((threads * bands.copy_size,), byte.numbers)
        spreads = T.sblock_alloc_buffer((threads * bands.spread_size,), byte.numbers)
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0 : conv.input_size],
                    weight[0:panels, 0 : lines.steps, 0 : tile.vectors, 0:16, 0:STEP],
                    scale[0:columns],
                    bias[0:columns],
                    affine[0:AFFINE],
                    residual[0 : conv.residual_size],
                )
                T.writes(
                    y[0 : conv.output_size],
                    copies[0 : threads * bands.copy_size],
                    spreads[0 : threads * bands.spread_size],
                )
                compute_all(x, (copies, spreads), (weight, scale, bias, affine, residual), y, vt)

    return convolved
