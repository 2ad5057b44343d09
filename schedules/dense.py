"""Gated rows: ``y[i] = W[i] . x + b[i]`` for the open rows, a given value for the closed ones.

The rows kernel of the dual-module papers. The gate arrives as a compacted list of open rows, so
that closed rows cost nothing and threads share the open ones evenly, however uneven the gate is.
Several rows run side by side: their loads overlap, and a group ends with one reduction per row.
The dense form is the same kernel with the list of all rows.

While a group is computed the rows of the next one are fetched: open rows lie scattered, and the
hardware prefetcher starts anew at each of them. Measured on Zen 3, rows of 3 kB out of the last level
cache: 31 GB/s without and 41 with at 8 % open rows, 35 and 51 at 30 %. A large matrix of which
every row is open is read from end to end instead, row after row, which the hardware prefetcher
follows: 18 MB of bytes take 0.6 ms, and 1.8 ms with four rows side by side.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import dot4, prefetch, span, sum_each
from schedules.knobs import NEXT, ROWS, RowKnobs
from schedules.quantize import round_up
from schedules.row_operands import NUMBERS, SIDE_BY_SIDE, list_length, number, row_stride

#: How far ahead a matrix that is read from end to end is fetched by default, in bytes.
STREAM_AHEAD = 8192
#: Bytes of a matrix from which on it is read from end to end where every row is open: more than L2 holds.
STREAMED_BYTES = 4 << 20


def default_rows_int8(n: int, k: int, every: bool) -> RowKnobs:
    """Return the knobs of an untuned `gated_rows_int8`; `every` says that all rows are open."""
    return RowKnobs(ahead=STREAM_AHEAD) if every and n * k > STREAMED_BYTES else ROWS


#: Bytes of a row of floats from which on the hardware fetches it better by itself.
LONG_ROW = 4096


def default_rows_fp32(n: int, k: int, every: bool) -> RowKnobs:
    """Return the knobs of an untuned `gated_rows_fp32`.

    Of long rows eight are in flight and nothing is fetched ahead: of 1500 floats, 5 % of them open, that gains 43 % at
    AVX-512, and of 20 % of them up to 4 % there and 24 to 42 % at AVX2.
    """
    return RowKnobs(side_by_side=8, ahead=0) if 4 * k > LONG_ROW else ROWS


def listed_row(knobs: RowKnobs, rows, count, index):
    """Return the row at an index of a list, the last one behind its end."""
    return rows[T.min(index, count[0] - 1)] if knobs.side_by_side > SIDE_BY_SIDE else rows[index]


def group_int8(isa: Isa, k: int, run: int, knobs: RowKnobs, start: int = 0):
    """Return the macro ``(q, affine, weight, y, base, following)``: a group of products of packed rows of `k` bytes.

    The rows are those in ``base: i32[side_by_side]``, one in every `run` bytes of the operand, from the
    byte `start` of each run on; those in ``following`` are fetched meanwhile, if `knobs` say so. The other operands
    are those of `gated_rows_int8`.
    """
    step, lanes, line = isa.vector_bytes, isa.lanes, isa.row_bytes
    lines = round_up(k, line) // line
    numbers, width, unroll = start + row_stride(isa, k) - NUMBERS, knobs.side_by_side, knobs.unroll

    @inline
    def add_line(q, weight, total, row, r, c):
        for part in T.unroll(line // step):
            at: T.let = c * line + part * step
            total[r, T.ramp(0, 1, lanes)] = dot4(
                isa,
                total[r, T.ramp(0, 1, lanes)],
                T.reinterpret(q[T.ramp(at, 1, step)], dtype=f"int8x{step}"),
                weight[T.ramp(row * run + start + at, 1, step)],
            )

    @inline
    def side_by_side(q, weight, total, base, following, c):
        for r in T.unroll(width):
            if knobs.ahead == NEXT:
                prefetch(weight[following[r] * run + start + c * line])
            add_line(q, weight, total, base[r], r, c)

    @inline
    def streamed(q, weight, total, base, r, c):
        prefetch(weight[base[r] * run + start + c * line + knobs.ahead])
        add_line(q, weight, total, base[r], r, c)

    @inline
    def group(q, affine, weight, y, base, following):
        total = T.alloc_buffer((width, lanes), "int32", scope="local")
        sums = T.alloc_buffer((width,), "int32", scope="local")
        for r in T.unroll(width):
            total[r, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
        if knobs.ahead > 0:
            for r in T.unroll(width):
                for c in T.serial(lines // unroll):
                    for i in T.unroll(unroll):
                        streamed(q, weight, total, base, r, c * unroll + i)
                for i in T.serial(lines % unroll):
                    streamed(q, weight, total, base, r, lines // unroll * unroll + i)
        else:
            for c in T.serial(lines // unroll):
                for i in T.unroll(unroll):
                    side_by_side(q, weight, total, base, following, c * unroll + i)
            for i in T.serial(lines % unroll):
                side_by_side(q, weight, total, base, following, lines // unroll * unroll + i)
        sums[span(0, width)] = sum_each([total[r, T.ramp(0, 1, lanes)] for r in range(width)], lanes)
        for r in T.unroll(width):
            behind: T.let = base[r] * run + numbers
            y[base[r]] = affine[0] * (
                number(weight, behind, 0) * T.Cast("float32", sums[r]) - affine[1] * number(weight, behind, 1)
            ) + number(weight, behind, 2)

    return group


def gated_rows_int8(isa: Isa, n: int, k: int, threads: int, knobs: RowKnobs = ROWS):
    """Return the kernel ``(q, affine, weight, rows, count, closed) -> y``.

    Operands: ``q: u8[k padded]``, ``affine: f32[2]`` from `quantize_vector`; ``weight`` from
    `pack_rows_int8`; ``rows: i32[list_length(n)]``, ``count: i32[1]`` the open rows;
    ``closed: f32[n]`` the value of closed rows; result ``y: f32[n]``. Knobs that read bytes ahead are for
    lists of every row.
    """
    padded, stride = round_up(k, isa.row_bytes), row_stride(isa, k)
    width, length = knobs.side_by_side, list_length(n)
    group = group_int8(isa, k, stride, knobs)

    @T.prim_func(s_tir=True, private=True)
    def gated_rows(
        q: T.Buffer((padded,), "uint8"),
        affine: T.Buffer((2,), "float32"),
        weight: T.Buffer((n * stride,), "int8"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
        closed: T.Buffer((n,), "float32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for i in T.serial(n):
            with T.sblock("closed"):
                vi = T.axis.spatial(n, i)
                y[vi] = closed[vi]
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(q[0:padded], affine[0:2], weight[0 : n * stride], rows[0:length], count[0])
                T.writes(y[0:n])
                groups: T.let = (count[0] + (width - 1)) // width
                first: T.let = vt * groups // threads
                last: T.let = (vt + 1) * groups // threads
                for g in T.serial(first, last):
                    base = T.alloc_buffer((width,), "int32", scope="local")
                    following = T.alloc_buffer((width,), "int32", scope="local")
                    for r in T.unroll(width):
                        base[r] = listed_row(knobs, rows, count, g * width + r)
                        following[r] = listed_row(knobs, rows, count, T.min(g + 1, last - 1) * width + r)
                    group(q, affine, weight, y, base, following)

    return gated_rows


def gated_rows_fp32(isa: Isa, n: int, k: int, threads: int, knobs: RowKnobs = ROWS):
    """Return the kernel ``(x, weight, bias, rows, count, closed) -> y``; see `gated_rows_int8`."""
    padded, lanes = round_up(k, isa.lanes), isa.lanes
    # Inputs fewer than a vector's lanes are taken one by one.
    whole, rest, few = k // lanes, k % lanes if k > lanes else 0, k if k < lanes else 0
    width, length, unroll = knobs.side_by_side, list_length(n), knobs.unroll
    # A cache line is asked for once where one turn of the loop reads all of it.
    per_line = max(1, min(unroll, isa.row_bytes // isa.vector_bytes))

    @inline
    def add_vectors(x, weight, total, base, following, c, i):
        for r in T.unroll(width):
            if knobs.ahead == NEXT and i % per_line == 0:
                prefetch(weight[following[r] * padded + (c + i) * lanes])
            total[r, T.ramp(0, 1, lanes)] = (
                total[r, T.ramp(0, 1, lanes)]
                + x[T.ramp((c + i) * lanes, 1, lanes)] * weight[T.ramp(base[r] * padded + (c + i) * lanes, 1, lanes)]
            )

    @T.prim_func(s_tir=True, private=True)
    def gated_rows(
        x: T.Buffer((k,), "float32"),
        weight: T.Buffer((n * padded,), "float32"),
        bias: T.Buffer((n,), "float32"),
        rows: T.Buffer((length,), "int32"),
        count: T.Buffer((1,), "int32"),
        closed: T.Buffer((n,), "float32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for i in T.serial(n):
            with T.sblock("closed"):
                vi = T.axis.spatial(n, i)
                y[vi] = closed[vi]
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0:k], weight[0 : n * padded], bias[0:n], rows[0:length], count[0])
                T.writes(y[0:n])
                groups: T.let = (count[0] + (width - 1)) // width
                first: T.let = vt * groups // threads
                last: T.let = (vt + 1) * groups // threads
                for g in T.serial(first, last):
                    total = T.alloc_buffer((width, lanes), "float32", scope="local")
                    sums = T.alloc_buffer((width,), "float32", scope="local")
                    base = T.alloc_buffer((width,), "int32", scope="local")
                    following = T.alloc_buffer((width,), "int32", scope="local")
                    for r in T.unroll(width):
                        base[r] = listed_row(knobs, rows, count, g * width + r)
                        following[r] = listed_row(knobs, rows, count, T.min(g + 1, last - 1) * width + r)
                        total[r, T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                    for c in T.serial(whole // unroll):
                        for i in T.unroll(unroll):
                            add_vectors(x, weight, total, base, following, c * unroll, i)
                    for i in T.serial(whole % unroll):
                        add_vectors(x, weight, total, base, following, whole // unroll * unroll + i, 0)
                    if rest > 0:
                        for r in T.unroll(width):
                            total[r, T.ramp(0, 1, lanes)] = (
                                total[r, T.ramp(0, 1, lanes)]
                                + x[T.ramp(k - lanes, 1, lanes)]
                                * weight[T.ramp(base[r] * padded + whole * lanes, 1, lanes)]
                            )
                    sums[span(0, width)] = sum_each([total[r, T.ramp(0, 1, lanes)] for r in range(width)], lanes)
                    for c in T.serial(few):
                        for r in T.unroll(width):
                            sums[r] = sums[r] + x[c] * weight[base[r] * padded + c]
                    for r in T.unroll(width):
                        y[base[r]] = sums[r] + bias[base[r]]

    return gated_rows
