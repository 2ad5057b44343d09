"""Convolution of bytes: unsigned activations, signed weights with a scale for each output channel, sums of 32 bits.

Both scales, and both zero points, are known when the library is built, so that what follows the sums is one
multiplication and one addition a channel: with ``x = s (q - z)`` and ``w = s_w q_w``, ::

    x . w + b = s s_w (q . q_w) + (b - s s_w z sum(q_w))

and a result of bytes has its own scale multiplied into both. The packing is that of AMX tiles, which `vpdpbusd` reads
as well: for each panel of outputs and 64 bytes of taps, 16 rows of 16 outputs times 4 taps for each vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from schedules.byte_vectors import clipped_bytes, packed_bytes
from schedules.conv2d_amx import amx_panels, configure, release
from schedules.conv2d_byte_tile import LANES, ByteTile
from schedules.conv2d_bytes import (
    AFFINE,
    INVERSE,
    OUT_INVERSE,
    OUT_ZERO,
    RESIDUAL,
    STEP,
    ZERO,
    ByteBands,
    ByteConv,
    image_lines,
)
from schedules.conv2d_panels import panel_count
from schedules.conv2d_vnni import vnni_panels
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.quantize import quantize_rows

#: Nonlinearities that are the cutting off at the ends of the byte's range, if zero is level 0.
CUT = ("relu", "relu6", None)


@dataclass(frozen=True)
class Affine:
    """A scale and a zero point: ``value = scale * (level - zero)``."""

    scale: float
    zero: int = 0


def pack_conv2d_int8(
    byte: ByteConv,
    tile: ByteTile,
    weight: np.ndarray,
    bias: np.ndarray,
    source: Affine,
    result: Affine | None = None,
    residual: Affine | None = None,
) -> tuple[np.ndarray, ...]:
    """Return the operands ``(weight: i8[panels, steps, vectors, 16, 64], scale, bias: f32[columns], affine)``.

    Parameters
    ----------
    byte : ByteConv
    tile : ByteTile
    weight : ndarray, float32, (outputs, kernel rows, kernel columns, inputs)
    bias : ndarray, float32, (outputs,)
    source : Affine
        Of the input's bytes.
    result, residual : Affine, optional
        Of images that are bytes.
    """
    conv, lines = byte.conv, image_lines(byte.conv, tile.rows, tile.form)
    rows = quantize_rows(weight.reshape(conv.outputs, -1))
    runs = rows.values.reshape(conv.outputs, len(lines.runs), lines.runs[0][1])
    runs = np.pad(runs, ((0, 0), (0, 0), (0, -runs.shape[2] % STEP)))
    size, columns = tile.vectors * LANES, max(conv.outputs, tile.vectors * LANES)
    runs = np.pad(runs.reshape(conv.outputs, -1), ((0, columns - conv.outputs), (0, 0)))
    starts = [min(panel * size, max(0, conv.outputs - size)) for panel in range(panel_count(conv.outputs, size))]
    panels = np.stack([runs[start : start + size] for start in starts])
    packed = panels.reshape(len(starts), tile.vectors, LANES, lines.steps, 16, 4).transpose(0, 3, 1, 4, 2, 5)
    scale = rows.scale.astype("float64") * source.scale
    offset = bias - scale * source.zero * rows.values.astype("int64").sum(axis=1)
    affine = np.zeros(AFFINE)
    affine[[INVERSE, ZERO]] = 1 / source.scale, source.zero + 0.5
    into, zero = 1.0, 0.0
    if result is not None:
        into, zero = 1 / result.scale, result.zero + 0.5
        affine[[OUT_INVERSE, OUT_ZERO]] = into, zero
    if conv.activation not in CUT:
        into, zero = 1.0, 0.0
    if conv.residual and residual is not None:
        affine[RESIDUAL] = residual.scale * into
        offset = offset - residual.scale * residual.zero
    parts = (np.pad(part, (0, columns - conv.outputs)) for part in (scale * into, offset * into + zero))
    packed = packed.reshape(*packed.shape[:-2], 64)
    return np.ascontiguousarray(packed), *(p.astype("float32") for p in parts), affine.astype("float32")


def finish_sums(byte: ByteConv):
    """Return ``(operands, y, places, column, sums)``, which writes the sums of some pixels.

    `places` are where the outputs from `column` on lie of each pixel, `sums` for each pixel its vectors of 16 sums.
    Call it while a kernel is parsed. What becomes bytes is packed by fours where a pixel has two vectors or four.
    """
    conv, to_bytes = byte.conv, byte.result == "uint8"
    outputs, nonlinearity = conv.outputs, NONLINEARITIES[conv.activation]
    # With a zero level of its own for what no nonlinearity follows, the range's ends are still where it is cut.
    cut = to_bytes and conv.activation in CUT

    def added(residual, affine, at):
        values = residual[T.ramp(at, 1, LANES)]
        if byte.residual == "float32":
            return values * T.broadcast(affine[OUT_INVERSE], LANES) if cut else values
        return T.Cast(f"float32x{LANES}", values) * T.broadcast(affine[RESIDUAL], LANES)

    def finished(operands, at, column, sums):
        _, scale, bias, affine, residual = operands
        span = T.ramp(column, 1, LANES)
        values = T.Cast(f"float32x{LANES}", sums) * scale[span] + bias[span]
        if conv.residual:
            values = values + added(residual, affine, at)
        if not to_bytes:
            return nonlinearity(values)
        if not cut:
            values = nonlinearity(values) * T.broadcast(affine[OUT_INVERSE], LANES)
            values = values + T.broadcast(affine[OUT_ZERO], LANES)
        return values

    def as_stored(values):
        return clipped_bytes(values, LANES) if to_bytes else values

    @T.inline
    def store_few(operands, y, at, column, sums):
        few = T.alloc_buffer((LANES,), byte.result)
        few[T.ramp(0, 1, LANES)] = as_stored(finished(operands, at, column, sums))
        for i in T.serial(outputs):
            y[at + i] = few[i]

    def store(operands, y, places, column, sums):
        vectors = len(sums[0])
        if outputs < LANES:
            for place, (only,) in zip(places, sums, strict=True):
                store_few(operands, y, place, column, only)
            return
        parts = [
            (place + v * LANES, finished(operands, place + v * LANES, column + v * LANES, part))
            for place, row in zip(places, sums, strict=True)
            for v, part in enumerate(row)
        ]
        while to_bytes and vectors in (2, 4) and len(parts) >= 4:
            four, parts = parts[:4], parts[4:]
            packed = packed_bytes([values for _, values in four], 4 // vectors)
            for (at, _), level in zip(four[::vectors], packed, strict=True):
                T.buffer_store(y, level, [T.ramp(at, 1, vectors * LANES)])
        for at, values in parts:
            T.buffer_store(y, as_stored(values), [T.ramp(at, 1, LANES)])

    return store


def conv2d_int8(isa: Isa, byte: ByteConv, tile: ByteTile, threads: int):
    """Return the kernel ``(x, weight, scale, bias, affine, residual) -> y``.

    ``x``, ``residual`` and ``y`` are images of the types that `byte` names, the operands between are from
    `pack_conv2d_int8`. Threads share the bands, or the panels of each band if that leaves less waiting.
    """
    conv, size = byte.conv, tile.vectors * LANES
    lines, bands = image_lines(conv, tile.rows, tile.form), ByteBands(byte, tile.rows, tile.form)
    panels, columns = panel_count(conv.outputs, size), max(conv.outputs, size)
    by_bands = _waiting(bands.count, threads) <= _waiting(panels, threads)
    compute = (amx_panels if isa.amx and tile.matrix else vnni_panels)(lines, conv, tile, finish_sums(byte))

    @T.inline
    def over_panels(image, origin, context, to):
        operands, y, first_panel, last_panel = context
        compute(image, origin, operands, y, to, first_panel, last_panel)

    each_band = bands.each(isa, over_panels)

    @T.inline
    def over_bands(x, scratch, operands, y, task):
        first_band: T.let = task * bands.count // threads if by_bands else 0
        last_band: T.let = (task + 1) * bands.count // threads if by_bands else bands.count
        first_panel: T.let = 0 if by_bands else task * panels // threads
        last_panel: T.let = panels if by_bands else (task + 1) * panels // threads
        each_band(x, operands[3], scratch, (operands, y, first_panel, last_panel), task, first_band, last_band)

    begin, end = configure(isa, tile), release(isa, tile)

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
        copies = T.sblock_alloc_buffer((threads * bands.copy_size,), "uint8")
        spreads = T.sblock_alloc_buffer((threads * bands.spread_size,), "uint8")
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
                begin()
                over_bands(x, (copies, spreads), (weight, scale, bias, affine, residual), y, vt)
                end()

    return convolved


def _waiting(parts: int, threads: int) -> float:
    """Return the time that `threads` take for equal `parts`, as a multiple of the best possible."""
    return -(-parts // threads) * threads / parts
