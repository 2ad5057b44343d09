"""Transposition of matrices of floats, in registers: how an image changes between NCHW and NHWC.

TVM's loop over the result reads one value of a cache line at a time, and by the next one of that line the line is gone:
28 x 28 pixels of 512 channels took as long as a convolution of 256 to 512. Here blocks of 16 by 16 are read and written
in whole lines. Rows of four values each are loaded into the quarters of registers, and shuffled there.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline

#: Rows and columns of a block: of both they are what a cache line holds.
BLOCK = 16
#: Values of a quarter, which is what registers are loaded by.
_QUAD = 4


def can_transpose(rows: int, columns: int) -> bool:
    """Say whether a matrix has at least one block."""
    return min(rows, columns) >= BLOCK


def transpose(isa: Isa, matrices: int, rows: int, columns: int, threads: int):
    """Return the kernel ``(x: f32[matrices * rows * columns]) -> y: f32[matrices * columns * rows]``.

    Each matrix of `rows` by `columns`, both at least `BLOCK`, becomes one of `columns` by `rows`. The last block of a
    row or column overlaps the one before it. Threads share the blocks of columns.
    """
    down, across, size, lanes = -(-rows // BLOCK), -(-columns // BLOCK), rows * columns, isa.lanes
    strips = matrices * across

    def loaded(x, at):
        """`lanes` rows of four values: those of the i-th row of each four are in the i-th vector."""
        return [
            T.Shuffle(
                [x[T.ramp(at + (part * _QUAD + i) * columns, 1, _QUAD)] for part in range(lanes // _QUAD)],
                list(range(lanes)),
            )
            for i in range(_QUAD)
        ]

    def kept(values):
        """Vectors as read from registers, so that code for each is generated once."""
        registers = [T.alloc_buffer((lanes,), "float32") for _ in values]
        for register, value in zip(registers, values, strict=True):
            T.buffer_store(register, value, [T.ramp(0, 1, lanes)])
        return [register[T.ramp(0, 1, lanes)] for register in registers]

    def store(y, to, values):
        for column, value in enumerate(values):
            T.buffer_store(y, value, [T.ramp(to + column * rows, 1, lanes)])

    @inline
    def turn(x, at, y, to):
        quads = kept(loaded(x, at))
        pairs = kept(_paired(quads, lanes))
        store(y, to, _joined(pairs, lanes))

    @T.prim_func(s_tir=True, private=True)
    def transposed(x: T.Buffer((matrices * size,), "float32"), y: T.Buffer((matrices * size,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for task in T.parallel(threads):
            with T.sblock("strips"):
                vt = T.axis.spatial(threads, task)
                T.reads(x[0 : matrices * size])
                T.writes(y[0 : matrices * size])
                for strip in T.serial(vt * strips // threads, (vt + 1) * strips // threads):
                    start: T.let = strip // across * size
                    column: T.let = T.min(strip % across * BLOCK, columns - BLOCK)
                    for block in T.serial(down):
                        row: T.let = T.min(block * BLOCK, rows - BLOCK)
                        for quad in T.unroll(BLOCK // _QUAD):
                            for part in T.unroll(BLOCK // lanes):
                                turn(
                                    x,
                                    start + (row + part * lanes) * columns + column + quad * _QUAD,
                                    y,
                                    start + (column + quad * _QUAD) * rows + row + part * lanes,
                                )

    return transposed


def _quarters(lanes: int, order: tuple[int, ...]) -> list[int]:
    """Return the indices of a shuffle of two vectors that takes `order` of each of their quarters.

    From `_QUAD` on an index of `order` is one of the second vector.
    """
    return [
        index % _QUAD + first + (lanes if index >= _QUAD else 0) for first in range(0, lanes, _QUAD) for index in order
    ]


def _paired(rows: list, lanes: int) -> list:
    """Return of four rows the first two values of two rows each, then the last two: ``a0 b0 a1 b1``, and so on."""
    low, high = _quarters(lanes, (0, 4, 1, 5)), _quarters(lanes, (2, 6, 3, 7))
    return [T.Shuffle([rows[i], rows[i + 1]], order) for i in (0, 2) for order in (low, high)]


def _joined(pairs: list, lanes: int) -> list:
    """Return the four columns of what `_paired` gave: ``a0 b0 c0 d0``, and so on."""
    low, high = _quarters(lanes, (0, 1, 4, 5)), _quarters(lanes, (2, 3, 6, 7))
    return [T.Shuffle([pairs[i], pairs[i + 2]], order) for i in (0, 1) for order in (low, high)]
