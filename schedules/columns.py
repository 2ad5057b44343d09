"""Zero skipping: ``y = W x + b`` over the columns of nonzero inputs alone. Exact.

A layer behind a ReLU meets inputs that are mostly zero. Here the matrix lies column by column, the
nonzero inputs arrive as a compacted list, and only their columns are read. Four columns are taken
at once: for bytes, because four of them form one lane of a dot product; for floats, to load and
store the running sums once for four products.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import dot4, prefetch
from schedules.knobs import COLUMNS, NEXT, ColumnKnobs
from schedules.nonzeros import QUAD, list_length
from schedules.quantize import quantize_rows, round_up

#: Bytes of a cache line.
_LINE = 64
#: Bytes of a column from which on the hardware fetches it better by itself.
_LONG_COLUMN = 4096


def default_columns(isa: Isa, n: int, itemsize: int) -> ColumnKnobs:
    """Return the knobs of an untuned kernel of `n` outputs, whose weights take `itemsize` bytes.

    Columns of the next inputs are fetched: of 512 to 2048 bytes that gains 5 to 18 % at AVX-512 and 20 to 50 % at AVX2,
    each cache line asked for once; of 4500 bytes it costs 6 %. Columns of floats gain at AVX2 alone.
    """
    if n * itemsize > _LONG_COLUMN or (itemsize > 1 and isa.vector_bytes == _LINE):
        return COLUMNS
    return ColumnKnobs(ahead=NEXT, unroll=_LINE // isa.vector_bytes)


def _block(isa: Isa) -> int:
    """Return how many outputs one register of interleaved bytes covers before unpacking."""
    return isa.vector_bytes


def _unpacked_order(isa: Isa) -> np.ndarray:
    """Return for each byte of a block the output it must hold.

    The unpack instructions work within 16-byte lanes: after two levels, vector ``j`` holds outputs
    ``16 lane + 4 j + i`` at position ``4 lane + i``. Storing the bytes permuted makes the vectors
    come out in natural order.
    """
    lanes = isa.vector_bytes // 16
    order = np.empty(isa.vector_bytes, "int64")
    for lane in range(lanes):
        for j in range(4):
            for i in range(4):
                order[16 * lane + 4 * j + i] = isa.lanes * j + 4 * lane + i
    return order


def pack_columns_int8(isa: Isa, weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: i8[k * n padded], meta: f32[2, n padded])`` of `columns_int8`."""
    n, k = weight.shape
    padded = round_up(n, _block(isa))
    quantized = quantize_rows(weight)
    natural = np.zeros((k, padded), "int8")
    natural[:, :n] = quantized.values.T
    blocks = natural.reshape(k, -1, _block(isa))[:, :, _unpacked_order(isa)]
    meta = np.zeros((2, padded), "float32")
    meta[0, :n] = quantized.scale
    meta[1, :n] = 0 if bias is None else bias
    return np.ascontiguousarray(blocks).reshape(-1), meta


def pack_columns_fp32(isa: Isa, weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[k * n padded], bias: f32[n padded])`` of `columns_fp32`."""
    n, k = weight.shape
    padded = round_up(n, isa.lanes)
    packed = np.zeros((k, padded), "float32")
    packed[:, :n] = weight.T
    full_bias = np.zeros(padded, "float32")
    full_bias[:n] = 0 if bias is None else bias
    return packed.reshape(-1), full_bias


def _over_blocks(knobs: ColumnKnobs, padded: int, size: int, bytes_: int, add_block):
    """Return the macro ``(columns, count, weight, total, base, factors, quad, first, last)`` over blocks of outputs.

    ``add_block(weight, total, base, factors, b)`` is the macro for the block `b`, `size` outputs whose weights of
    one column take `bytes_`. The columns of the `quad` begin at ``base: i32[QUAD]``, one in every `padded`.
    """
    unroll = knobs.unroll
    per_line = max(1, min(unroll, _LINE // bytes_))

    def behind_turns(first, last):
        return first if unroll == 1 else first + (last - first) // unroll * unroll

    @inline
    def one_block(columns, count, weight, total, base, factors, quad, b, i):
        if knobs.ahead == NEXT and i % per_line == 0:
            for c in T.unroll(QUAD):
                # Behind the last quad stand zeros, which name the first column.
                following: T.let = columns[T.min(quad + 1, count[0] // QUAD) * QUAD + c]
                prefetch(weight[following * padded + (b + i) * size])
        add_block(weight, total, base, factors, b + i)

    @inline
    def each_block(columns, count, weight, total, base, factors, quad, first, last):
        if unroll > 1:
            for turn in T.serial((last - first) // unroll):
                for i in T.unroll(unroll):
                    one_block(columns, count, weight, total, base, factors, quad, first + turn * unroll, i)
        for b in T.serial(behind_turns(first, last), last):
            one_block(columns, count, weight, total, base, factors, quad, b, 0)

    return each_block


def columns_int8(isa: Isa, n: int, k: int, threads: int, knobs: ColumnKnobs = COLUMNS):
    """Return the kernel ``(columns, values, count, affine, weight, meta) -> y: f32[n]``.

    ``columns: i32[k + 4]``, ``values: u8[k + 4]``, ``count: i32[1]`` from `nonzero_bytes`;
    ``affine: f32[2]`` from `quantize_vector`; ``weight``, ``meta`` from `pack_columns_int8`.
    """
    step, lanes, length = isa.vector_bytes, isa.lanes, list_length(k)
    padded = round_up(n, step)
    blocks = padded // step

    def unpack(a, b, size: int, high: bool):
        """Interleave elements of `size` bytes from the low or high halves of 16-byte lanes."""
        per_lane = 8 // size
        indices = []
        for lane in range(step // 16):
            for i in range(per_lane):
                source = lane * 16 + (8 if high else 0) + i * size
                indices += [source + b_ for b_ in range(size)] + [step + source + b_ for b_ in range(size)]
        return T.Shuffle([a, b], indices)

    def dot_part(total, four, columns4, part: int):
        a, b, c, d = columns4
        ab, cd = unpack(a, b, 1, part >= 2), unpack(c, d, 1, part >= 2)
        quad_bytes = T.reinterpret(T.broadcast(four, lanes), dtype=f"int8x{step}")
        return dot4(isa, total, quad_bytes, unpack(ab, cd, 2, part % 2 == 1))

    @inline
    def add_block(weight, total, base, four, b):
        a: T.let = weight[T.ramp(base[0] + b * step, 1, step)]
        c: T.let = weight[T.ramp(base[1] + b * step, 1, step)]
        e: T.let = weight[T.ramp(base[2] + b * step, 1, step)]
        g: T.let = weight[T.ramp(base[3] + b * step, 1, step)]
        total[T.ramp(b * step, 1, lanes)] = dot_part(total[T.ramp(b * step, 1, lanes)], four, (a, c, e, g), 0)
        total[T.ramp(b * step + lanes, 1, lanes)] = dot_part(
            total[T.ramp(b * step + lanes, 1, lanes)], four, (a, c, e, g), 1
        )
        total[T.ramp(b * step + 2 * lanes, 1, lanes)] = dot_part(
            total[T.ramp(b * step + 2 * lanes, 1, lanes)], four, (a, c, e, g), 2
        )
        total[T.ramp(b * step + 3 * lanes, 1, lanes)] = dot_part(
            total[T.ramp(b * step + 3 * lanes, 1, lanes)], four, (a, c, e, g), 3
        )

    each_block = _over_blocks(knobs, padded, step, step, add_block)

    @T.prim_func(s_tir=True, private=True)
    def columns_product(
        columns: T.Buffer((length,), "int32"),
        values: T.Buffer((length,), "uint8"),
        count: T.Buffer((1,), "int32"),
        affine: T.Buffer((2,), "float32"),
        weight: T.Buffer((k * padded,), "int8"),
        meta: T.Buffer((2, padded), "float32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        total = T.sblock_alloc_buffer((padded,), "int32")
        for task in T.parallel(threads):
            with T.sblock("columns"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    columns[0:length],
                    values[0:length],
                    count[0],
                    affine[0:2],
                    weight[0 : k * padded],
                    meta[0:2, 0:padded],
                )
                T.writes(y[0:n], total[0:padded])
                first: T.let = vt * blocks // threads
                last: T.let = (vt + 1) * blocks // threads
                for b in T.serial(first, last):
                    for j in T.unroll(4):
                        total[T.ramp(b * step + j * lanes, 1, lanes)] = T.broadcast(0, lanes)
                for quad in T.serial((count[0] + (QUAD - 1)) // QUAD):
                    base = T.alloc_buffer((QUAD,), "int32", scope="local")
                    for c in T.unroll(QUAD):
                        base[c] = columns[quad * QUAD + c] * padded
                    four: T.let = T.reinterpret(values[T.ramp(quad * QUAD, 1, QUAD)], dtype="int32")
                    each_block(columns, count, weight, total, base, four, quad, first, last)
                for i in T.serial(first * step, T.min(last * step, n)):
                    y[i] = affine[0] * meta[0, i] * T.Cast("float32", total[i]) + meta[1, i]

    return columns_product


def columns_fp32(isa: Isa, n: int, k: int, threads: int, knobs: ColumnKnobs = COLUMNS):
    """Return the kernel ``(columns, values, count, weight, bias) -> y: f32[n]``; see `columns_int8`."""
    lanes, length = isa.lanes, list_length(k)
    padded = round_up(n, lanes)
    blocks = padded // lanes

    @inline
    def add_block(weight, total, base, factor, b):
        for c in T.unroll(QUAD):
            total[T.ramp(b * lanes, 1, lanes)] = (
                total[T.ramp(b * lanes, 1, lanes)]
                + T.broadcast(factor[c], lanes) * weight[T.ramp(base[c] + b * lanes, 1, lanes)]
            )

    each_block = _over_blocks(knobs, padded, lanes, isa.vector_bytes, add_block)

    @T.prim_func(s_tir=True, private=True)
    def columns_product(
        columns: T.Buffer((length,), "int32"),
        values: T.Buffer((length,), "float32"),
        count: T.Buffer((1,), "int32"),
        weight: T.Buffer((k * padded,), "float32"),
        bias: T.Buffer((padded,), "float32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        total = T.sblock_alloc_buffer((padded,), "float32")
        for task in T.parallel(threads):
            with T.sblock("columns"):
                vt = T.axis.spatial(threads, task)
                T.reads(columns[0:length], values[0:length], count[0], weight[0 : k * padded], bias[0:padded])
                T.writes(y[0:n], total[0:padded])
                first: T.let = vt * blocks // threads
                last: T.let = (vt + 1) * blocks // threads
                for i in T.serial(first * lanes, last * lanes):
                    total[i] = bias[i]
                for quad in T.serial((count[0] + (QUAD - 1)) // QUAD):
                    base = T.alloc_buffer((QUAD,), "int32", scope="local")
                    factor = T.alloc_buffer((QUAD,), "float32", scope="local")
                    for c in T.unroll(QUAD):
                        base[c] = columns[quad * QUAD + c] * padded
                        factor[c] = values[quad * QUAD + c]
                    each_block(columns, count, weight, total, base, factor, quad, first, last)
                for i in T.serial(first * lanes, T.min(last * lanes, n)):
                    y[i] = total[i]

    return columns_product
