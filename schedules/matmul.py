"""Matrix products: ``y = x W^T + b`` for many vectors at once, such as the inputs of a whole sequence.

Where the vectors are known together, each weight that is read serves all of them, and the product
is bound by arithmetic; how it is cut into tiles is `schedules.panels`.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import dot4
from schedules.knobs import NEXT, PanelKnobs
from schedules.panels import default_panels, fetch_next, over_panels, panel_size, split_panels, store_vector
from schedules.quantize import quantize_rows, quantize_run, round_up

#: Bytes of one lane of a dot product of bytes.
_QUAD = 4


def pack_matmul_fp32(
    isa: Isa, weight: np.ndarray, bias: np.ndarray, knobs: PanelKnobs | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels, k, panel], bias: f32[max(n, panel)])`` of `matmul_fp32`."""
    vectors = (knobs or default_panels(isa)).vectors
    missing = max(0, panel_size(isa, len(weight), vectors) - len(weight))
    panels = np.stack([panel.T for panel in split_panels(isa, weight, vectors)])
    return panels, np.append(bias, np.zeros(missing)).astype("float32")


def pack_matmul_int8(
    isa: Isa, weight: np.ndarray, bias: np.ndarray, knobs: PanelKnobs | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: i8[panels, k / 4, panel * 4], meta: f32[3, max(n, panel)])`` of `matmul_int8`.

    ``meta`` holds each output's scale, scale times sum of its bytes, and bias.
    """
    (n, k), vectors = weight.shape, (knobs or default_panels(isa)).vectors
    quantized = quantize_rows(weight)
    values = np.zeros((n, round_up(k, _QUAD)), "int8")
    values[:, :k] = quantized.values
    quads = values.shape[1] // _QUAD
    panels = split_panels(isa, values, vectors)
    packed = [panel.reshape(-1, quads, _QUAD).swapaxes(0, 1).reshape(quads, -1) for panel in panels]
    sums = quantized.scale * quantized.values.sum(axis=1, dtype="int64")
    meta = np.zeros((3, max(n, panel_size(isa, n, vectors))), "float32")
    meta[:, :n] = quantized.scale, sums, bias
    return np.stack(packed), meta


def quantize_matrix(isa: Isa, k: int, nonnegative: bool = False):
    """Return the kernel ``(x: f32[m, k]) -> (q: u8[m, k padded], affine: f32[m, 2])``.

    Each row by itself, as `schedules.quantize.quantize_vector` does it.
    """
    padded, quantize_row = round_up(k, isa.row_bytes), quantize_run(isa, k, nonnegative)

    @T.prim_func(s_tir=True, private=True)
    def quantize(x_: T.handle, q_: T.handle, affine_: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        m = T.int64()
        x = T.match_buffer(x_, (m, k), "float32")
        q = T.match_buffer(q_, (m, padded), "uint8")
        affine = T.match_buffer(affine_, (m, 2), "float32")
        for i in T.serial(m):
            with T.sblock("row"):
                row = T.axis.spatial(m, i)
                T.reads(x[row, 0:k])
                T.writes(q[row, 0:padded], affine[row, 0:2])
                from_ = T.decl_buffer((k,), "float32", data=x.data, elem_offset=row * k)
                to = T.decl_buffer((padded,), "uint8", data=q.data, elem_offset=row * padded)
                scale = T.decl_buffer((2,), "float32", data=affine.data, elem_offset=row * 2)
                quantize_row(from_, to, scale)

    return quantize


def _four_bytes(quad, lanes: int):
    """Return four bytes in every 32-bit lane."""
    return T.reinterpret(T.broadcast(T.reinterpret(quad, dtype="int32"), lanes), dtype=f"int8x{lanes * _QUAD}")


def matmul_fp32(isa: Isa, n: int, k: int, threads: int, knobs: PanelKnobs | None = None):
    """Return the kernel ``(x: f32[m, k], weight, bias) -> y: f32[m, n]`` for any m.

    ``weight`` and ``bias`` are from `pack_matmul_fp32`. Threads share the panels.
    """
    knobs = knobs or default_panels(isa)
    lanes, size = isa.lanes, panel_size(isa, n, knobs.vectors)
    vectors, panels, columns, steps = size // lanes, -(-n // size), max(n, size), -(-k // _QUAD)
    store, fetch = store_vector(isa, n), fetch_next(k, size, "float32", steps)

    def tile(height: int):
        @inline
        def compute(source, y, panel, column, number, top):
            x, weight, bias = source
            total = T.alloc_buffer((height * vectors, lanes), "float32", scope="local")
            for r in T.unroll(height * vectors):
                total[r, T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
            for step in T.serial(steps):
                if knobs.ahead == NEXT:
                    fetch(weight, panel, number, step)
                for c in T.serial(step * _QUAD, T.min((step + 1) * _QUAD, k)):
                    for r in T.unroll(height):
                        for v in T.unroll(vectors):
                            total[r * vectors + v, T.ramp(0, 1, lanes)] = (
                                total[r * vectors + v, T.ramp(0, 1, lanes)]
                                + T.broadcast(x[top + r, c], lanes) * weight[panel, c, T.ramp(v * lanes, 1, lanes)]
                            )
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    store(
                        y,
                        top + r,
                        column + v * lanes,
                        total[r * vectors + v, T.ramp(0, 1, lanes)] + bias[T.ramp(column + v * lanes, 1, lanes)],
                    )

        return compute

    all_panels = over_panels(isa, n, tile, knobs)

    @T.prim_func(s_tir=True, private=True)
    def matmul(x_: T.handle, weight_: T.handle, bias_: T.handle, y_: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        m = T.int64()
        x = T.match_buffer(x_, (m, k), "float32")
        weight = T.match_buffer(weight_, (panels, k, size), "float32")
        bias = T.match_buffer(bias_, (columns,), "float32")
        y = T.match_buffer(y_, (m, n), "float32")
        for task in T.parallel(threads):
            with T.sblock("panels"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0:m, 0:k], weight[0:panels, 0:k, 0:size], bias[0:columns])
                T.writes(y[0:m, 0:n])
                all_panels((x, weight, bias), y, m, vt * panels // threads, (vt + 1) * panels // threads)

    return matmul


def matmul_int8(isa: Isa, n: int, k: int, threads: int, knobs: PanelKnobs | None = None):
    """Return the kernel ``(q: u8[m, k padded], affine: f32[m, 2], weight, meta) -> y: f32[m, n]`` for any m.

    ``q`` and ``affine`` are from `quantize_matrix`, ``weight`` and ``meta`` from `pack_matmul_int8`.
    """
    knobs = knobs or default_panels(isa)
    lanes, size = isa.lanes, panel_size(isa, n, knobs.vectors)
    vectors, panels, quads = size // lanes, -(-n // size), -(-k // _QUAD)
    padded, columns, store = round_up(k, isa.row_bytes), max(n, size), store_vector(isa, n)
    fetch = fetch_next(quads, size * _QUAD, "int8", quads)

    def tile(height: int):
        @inline
        def compute(source, y, panel, column, number, top):
            q, affine, weight, meta = source
            total = T.alloc_buffer((height * vectors, lanes), "int32", scope="local")
            for r in T.unroll(height * vectors):
                total[r, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
            for c in T.serial(quads):
                if knobs.ahead == NEXT:
                    fetch(weight, panel, number, c)
                for r in T.unroll(height):
                    for v in T.unroll(vectors):
                        total[r * vectors + v, T.ramp(0, 1, lanes)] = dot4(
                            isa,
                            total[r * vectors + v, T.ramp(0, 1, lanes)],
                            _four_bytes(q[top + r, T.ramp(c * _QUAD, 1, _QUAD)], lanes),
                            weight[panel, c, T.ramp(v * lanes * _QUAD, 1, lanes * _QUAD)],
                        )
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    at: T.let = T.ramp(column + v * lanes, 1, lanes)
                    store(
                        y,
                        top + r,
                        column + v * lanes,
                        T.broadcast(affine[top + r, 0], lanes)
                        * (
                            meta[0, at] * T.Cast(f"float32x{lanes}", total[r * vectors + v, T.ramp(0, 1, lanes)])
                            - T.broadcast(affine[top + r, 1], lanes) * meta[1, at]
                        )
                        + meta[2, at],
                    )

        return compute

    all_panels = over_panels(isa, n, tile, knobs)

    @T.prim_func(s_tir=True, private=True)
    def matmul(q_: T.handle, affine_: T.handle, weight_: T.handle, meta_: T.handle, y_: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        m = T.int64()
        q = T.match_buffer(q_, (m, padded), "uint8")
        affine = T.match_buffer(affine_, (m, 2), "float32")
        weight = T.match_buffer(weight_, (panels, quads, size * _QUAD), "int8")
        meta = T.match_buffer(meta_, (3, columns), "float32")
        y = T.match_buffer(y_, (m, n), "float32")
        for task in T.parallel(threads):
            with T.sblock("panels"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    q[0:m, 0:padded],
                    affine[0:m, 0:2],
                    weight[0:panels, 0:quads, 0 : size * _QUAD],
                    meta[0:3, 0:columns],
                )
                T.writes(y[0:m, 0:n])
                all_panels((q, affine, weight, meta), y, m, vt * panels // threads, (vt + 1) * panels // threads)

    return matmul
