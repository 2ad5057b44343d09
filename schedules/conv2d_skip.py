"""Zero skipping: a convolution over the values of its input that are not zero. Exact.

Behind a ReLU most values are zero, and each would be multiplied with a vector of weights per tap. Here every row of the
input is a list of those that are not (`schedules.nonzero_rows`). For each row of the kernel that list is walked along
(`schedules.conv2d_walk`): a value is read once for all outputs of a row that it counts for, and the weights that it is
multiplied with, of one row of the kernel and a few vectors of outputs, stay in the first cache. Between walks sums wait
in memory.

Images come as floats, which are listed a few rows at a time, so that lists stay in L2; or the convolution before has
listed them already. Then nothing goes through memory but lists.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_panels import panel_column, panel_count
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_store import store_pixel
from schedules.conv2d_walk import Group, across, groups, outputs_at_once, pack_walk, runs, walk_row
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.knobs import SkipTile
from schedules.nonzero_rows import RowLists, list_row, output_lists
from schedules.panels import panel_size
from schedules.row_ring import RowRing

#: Sums in registers, at most by default: of 16 registers at AVX2; more did not pay at AVX-512, where they cost cache.
_SUMS = 12
#: Outputs of a row at once, at most by default.
_OUTPUTS = 4
#: Vectors of a walk for one output, the first of which whose weights fit is taken.
_ALONE = (8, 4)


def default_skip_tile(isa: Isa, conv: Conv2d) -> SkipTile:
    """Return the tile that suits most layers: one whose weights, of one walk, stay in the first cache.

    Of one output at a time these are fewer. Where they do not fit otherwise, all columns of the kernel at once took
    1.02 to 1.44 times as long on a Xeon with AVX-512 (four layers), and 1.00 to 1.29 on Zen 3 (15, 1.17 in the mean).
    """
    row = across(conv)
    every = outputs_at_once(row)
    most = -(-every // -(-every // _OUTPUTS))

    def tile(outputs: int, vectors: int) -> SkipTile:
        return SkipTile(outputs, panel_size(isa, conv.outputs, vectors) // isa.lanes)

    def fits(chosen: SkipTile) -> bool:
        columns = max(sum(len(phase.columns) for phase in walk.phases) for walk in groups(row, chosen.outputs))
        return columns * conv.inputs * chosen.vectors * isa.vector_bytes <= isa.first_level

    usual, alone = tile(most, min(8, _SUMS // most)), [tile(1, vectors) for vectors in _ALONE]
    # Of longer kernels nothing was measured.
    if every > _OUTPUTS:
        return usual
    return next((chosen for chosen in (usual, *alone) if fits(chosen)), alone[0])


def pack_conv2d_skip(
    isa: Isa, conv: Conv2d, tile: SkipTile, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: f32[panels * taps * panel], bias: f32[max(outputs, panel)])`` of `conv2d_skip`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``.
    """
    return pack_walk(isa, across(conv), tile.outputs, tile.vectors, weight, bias)


def input_lists(conv: Conv2d) -> RowLists:
    """Return the layout of the lists that such a convolution reads."""
    conv = across(conv)
    return RowLists(conv.batch * conv.height, conv.width, conv.inputs)


class _Rows:
    """The macros of a task's share of the output, and the memory that all tasks need."""

    def __init__(self, isa: Isa, conv: Conv2d, tile: SkipTile, threads: int, reads: bool, writes: bool) -> None:
        self._isa, self._conv, self._threads, self._reads, self._writes = isa, conv, threads, reads, writes
        self._rows = RowRing(isa, conv, threads, reads)
        self.size = panel_size(isa, conv.outputs, tile.vectors)
        self.panels = panel_count(conv.outputs, self.size)
        self._walks = groups(conv, tile.outputs)
        self._margin = max(group.sets for group in self._walks) - 1
        #: Outputs of a row of sums, those that nobody reads included.
        self._slots = self._margin + max(group.sets * group.rounds for group in self._walks)
        self._by_rows = writes or conv.batch * conv.out_height >= threads
        self.ring = self._rows.lists
        #: Values of all tasks' sums, and of their finished rows, which are listed.
        self.sums = threads * self._slots * self.size
        self.finished = threads * conv.out_width * conv.outputs if writes else 1

    def _walk_rows(self):
        """Return ``(lists, at, weight, panel, down, sums, to)``: the products of one row of the kernel."""
        conv, size, vectors = self._conv, self.size, self.size // self._isa.lanes
        walks, base = [], 0
        for group, times in runs(self._walks, conv.strides[1]):
            weights = sum(len(phase.columns) for phase in group.phases) * conv.inputs * size
            walks.append(self._walk_run(group, times, vectors, base, weights))
            base += times * weights

        def every(*arguments):
            for walk in walks:
                walk(*arguments)

        @inline
        def walked(lists, at, weight, panel, down, sums, to):
            every(lists, at, weight, (panel * conv.kernel[0] + down) * base, sums, to)

        return walked

    def _walk_run(self, group: Group, times: int, vectors: int, offset: int, weights: int):
        """Return the macro ``(lists, at, weight, first, sums, to)`` of walks alike, of `weights` values each."""
        further = group.sets * self._conv.strides[1]
        walk = walk_row(self._isa, self._conv, vectors, group, self.ring, self._margin)

        @inline
        def walked(lists, at, weight, first, sums, to):
            for i in T.serial(times):
                walk(lists, at, weight, first + offset + i * weights, i * further, sums, to)

        return walked

    def _compute(self):
        """Return ``(lists, image, operands, sums, y, to, panel, task, top, start, stop)``: a row of one panel."""
        isa, conv, size, lanes = self._isa, self._conv, self.size, self._isa.lanes
        slots, margin, walked, store = self._slots, self._margin, self._walk_rows(), store_pixel(isa, conv)
        block, gap = self._rows.block, conv.dilation[0]
        vectors = size // lanes

        @inline
        def compute(lists, image, operands, sums, y, to, panel, task, top, start, stop):
            weight, bias, residual = operands
            out: T.let = panel_column(panel, conv.outputs, size)
            origin: T.let = task * (slots * size)
            for slot in T.serial(slots):
                for v in T.unroll(vectors):
                    sums[T.ramp(origin + slot * size + v * lanes, 1, lanes)] = bias[T.ramp(out + v * lanes, 1, lanes)]
            for down in T.serial(start, stop):
                walked(lists, block(image, top + down * gap, task), weight, panel, down, sums, origin)
            for pixel in T.serial(conv.out_width):
                for v in T.unroll(vectors):
                    store(
                        y,
                        residual,
                        (to + pixel) * conv.outputs + out + v * lanes,
                        sums[T.ramp(origin + (margin + pixel) * size + v * lanes, 1, lanes)],
                    )

        return compute

    def macro(self):
        """Return ``(x, ring, operands, sums, finished, y, task)``."""
        isa, conv, threads, reads, writes = self._isa, self._conv, self._threads, self._reads, self._writes
        panels, by_rows, compute = self.panels, self._by_rows, self._compute()
        rows, result = conv.batch * conv.out_height, output_lists(conv)
        list_result, own = list_row(isa, result), self._rows.own
        fill, kernel_rows = self._rows.fill(), self._rows.kernel_rows

        @inline
        def over_rows(x, ring, operands, sums, finished, y, task):
            ready = T.alloc_buffer((1,), "int32")
            ready[0] = 0
            # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the lists.
            ring[task * own] = T.float32(0)
            first_row: T.let = task * rows // threads if by_rows else 0
            last_row: T.let = (task + 1) * rows // threads if by_rows else rows
            first_panel: T.let = 0 if by_rows else task * panels // threads
            last_panel: T.let = panels if by_rows else (task + 1) * panels // threads
            for row in T.serial(first_row, last_row):
                image: T.let = row // conv.out_height
                top: T.let = row % conv.out_height * conv.strides[0] - conv.padding[0]
                fill(x, ring, ready, row, task)
                start: T.let = kernel_rows(top)[0]
                stop: T.let = kernel_rows(top)[1]
                for panel in T.serial(first_panel, last_panel):
                    compute(
                        x if reads else ring,
                        image,
                        operands,
                        sums,
                        finished if writes else y,
                        (task if writes else row) * conv.out_width,
                        panel,
                        task,
                        top,
                        start,
                        stop,
                    )
                if writes:
                    list_result(finished, task * (conv.out_width * conv.outputs), y, row * result.block)

        return over_rows


def conv2d_skip(
    isa: Isa, conv: Conv2d, tile: SkipTile, threads: int, writes_lists: bool = False, reads_lists: bool = False
):
    """Return the kernel ``(x, weight, bias, residual: f32[residual size]) -> y``.

    ``weight`` and ``bias`` are from `pack_conv2d_skip`. ``x`` and ``y`` are images, ``f32[input size]`` and
    ``f32[output size]``, or lists as `input_lists` and `output_lists` lay them out; no residual is added to what
    is listed. Threads share the output rows, or the panels where there are fewer rows.
    """
    conv = across(conv)
    parts = _Rows(isa, conv, tile, threads, reads_lists, writes_lists)
    weights, columns = parts.panels * conv.taps * parts.size, max(conv.outputs, parts.size)
    read = input_lists(conv).size if reads_lists else conv.input_size
    written = output_lists(conv).size if writes_lists else conv.output_size
    over_rows = parts.macro()

    @T.prim_func(s_tir=True, private=True)
    def convolved(
        x: T.Buffer((read,), "float32"),
        weight: T.Buffer((weights,), "float32"),
        bias: T.Buffer((columns,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        y: T.Buffer((written,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        ring = T.sblock_alloc_buffer((parts.ring.size,), "float32")
        sums = T.sblock_alloc_buffer((parts.sums,), "float32")
        finished = T.sblock_alloc_buffer((parts.finished,), "float32")
        for task in T.parallel(threads):
            with T.sblock("rows"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0:read],
                    weight[0:weights],
                    bias[0:columns],
                    residual[0 : conv.residual_size],
                )
                T.writes(y[0:written], ring[0 : parts.ring.size], sums[0 : parts.sums], finished[0 : parts.finished])
                over_rows(x, ring, (weight, bias, residual), sums, finished, y, vt)

    return convolved
