"""Walking along a row of a convolution's input: which outputs each pixel counts for, and in which order.

Of a row of the kernel, a pixel of the input multiplies weights of several outputs, all of which lie side by side in
memory. As the walk goes on from pixel to pixel, these outputs move on by one for every stride, so that their sums stay
in registers: of all sums the oldest are finished and the newest begun. Where a kernel has too many columns for that,
the row is walked along several times, for a group of columns each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm.script import tirx as T

from schedules.conv2d_panels import pack_panels
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.nonzero_rows import RowLists


@dataclass(frozen=True)
class Phase:
    """The pixels of the input at one place within each stride.

    Attributes
    ----------
    place : int
        Where the first one lies, padding included.
    sets : tuple of int
        How many outputs before the newest those lie that it counts for, one for each of `columns`.
    columns : tuple of int
        Of the kernel.
    """

    place: int
    sets: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Columns of the kernel that are taken in one walk.

    Attributes
    ----------
    sets : int
        Outputs whose sums are in registers.
    rounds : int
        Of as many steps as `sets`: each step begins an output and finishes another.
    phases : tuple of Phase
        Of each step.
    """

    sets: int
    rounds: int
    phases: tuple[Phase, ...]


def across(conv: Conv2d) -> Conv2d:
    """Return the same convolution lying down: images of one column as images of one row, which they are in memory."""
    if conv.padded_width != 1:
        return conv
    top, _, bottom, _ = conv.padding
    return replace(
        conv,
        height=1,
        width=conv.height,
        kernel=(1, conv.kernel[0]),
        strides=(1, conv.strides[0]),
        padding=(0, top, 0, bottom),
        dilation=(1, conv.dilation[0]),
    )


def outputs_at_once(conv: Conv2d) -> int:
    """Return how many neighbouring outputs a pixel counts for, those that the kernel's gaps leave out included."""
    return -(-conv.reach[1] // conv.strides[1])


def groups(conv: Conv2d, most: int) -> tuple[Group, ...]:
    """Return the walks that take all columns of the kernel, `most` outputs at once."""
    stride, every = conv.strides[1], outputs_at_once(conv)
    count = -(-every // most)
    found = []
    for i in range(count):
        first, stop = every * i // count, every * (i + 1) // count
        phases = []
        for offset in range(stride):
            # Column of the kernel, gaps included, by output.
            columns = [(output - first, offset + stride * output) for output in range(first, stop)]
            taken = [
                (back, column // conv.dilation[1])
                for back, column in columns
                if column < conv.reach[1] and column % conv.dilation[1] == 0
            ]
            if taken:
                phases.append(Phase(stride * first + offset, *zip(*taken, strict=True)))
        sets = stop - first
        found.append(Group(sets, -(-(conv.out_width + sets - 1) // sets), tuple(phases)))
    return tuple(found)


def runs(walks: tuple[Group, ...], stride: int) -> list[tuple[Group, int]]:
    """Return walks that differ only in how far along the row they begin as one and their number.

    One loop computes them: kernels of 64 or 512 columns would otherwise be compiled for minutes.
    """
    found: list[list[Group]] = []
    for group in walks:
        if found and _continues(found[-1][-1], group, stride):
            found[-1].append(group)
        else:
            found.append([group])
    return [(alike[0], len(alike)) for alike in found]


def _continues(before: Group, group: Group, stride: int) -> bool:
    """Say whether a walk is the one before, begun as many outputs further as that takes at once."""

    def shape(walk: Group, shift: int):
        phases = [(phase.place - shift, phase.sets, len(phase.columns)) for phase in walk.phases]
        return walk.sets, walk.rounds, phases

    return shape(before, 0) == shape(group, stride * before.sets)


def pack_walk(
    isa: Isa, conv: Conv2d, most: int, vectors: int, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights in the order in which walks read them, and the bias, as `schedules.conv2d_panels.pack_panels`.

    The weights are panel by panel, row by row of the kernel, walk by walk, phase by phase, channel by channel.
    """
    order = [np.array(phase.columns) for group in groups(conv, most) for phase in group.phases]
    packed, padded = pack_panels(isa, weight, bias, vectors)
    rows = packed.reshape(len(packed), *conv.kernel, conv.inputs, -1)
    parts = [rows[:, :, columns].swapaxes(2, 3).reshape(*rows.shape[:2], -1) for columns in order]
    return np.concatenate(parts, axis=2).reshape(-1), padded


def walk_row(isa: Isa, conv: Conv2d, vectors: int, group: Group, layout: RowLists, margin: int):
    """Return the macro ``(lists, at, weight, base, shift, sums, to)`` that adds one row's products to a row of sums.

    The row's block of ``lists``, laid out as `layout` says, begins at `at`, the weights of this walk at `base`, and the
    sums of the row's first output, `margin` outputs behind ones that nobody reads, at `to`. The walk begins `shift`
    pixels behind that of `group`.
    """
    lanes, sets, size = isa.lanes, group.sets, vectors * isa.lanes
    stride = conv.strides[1]
    before = (margin + 1 - sets) * size

    def start(total):
        for vector in total:
            T.buffer_store(vector, T.broadcast(T.float32(0), lanes), [T.ramp(0, 1, lanes)])

    def load(total, sums, at, which):
        for v in range(vectors):
            T.buffer_store(total[which * vectors + v], sums[T.ramp(at + v * lanes, 1, lanes)], [T.ramp(0, 1, lanes)])

    def save(total, sums, at, which):
        for v in range(vectors):
            T.buffer_store(sums, total[which * vectors + v][T.ramp(0, 1, lanes)], [T.ramp(at + v * lanes, 1, lanes)])

    def multiply(total, value, weight, place, newest, backs):
        for tap, back in enumerate(backs):
            for v in range(vectors):
                vector = total[(newest - back) % sets * vectors + v]
                product = T.broadcast(value, lanes) * weight[T.ramp(place + tap * size + v * lanes, 1, lanes)]
                T.buffer_store(vector, vector[T.ramp(0, 1, lanes)] + product, [T.ramp(0, 1, lanes)])

    def begun(lists, at, place):
        pixel = T.min(T.max(place - conv.padding[1], 0), conv.width)
        return T.reinterpret(lists[at + pixel], dtype="int32")

    def step(newest: int):
        def of_phase(phase, offset: int):
            taps = len(phase.columns)

            @inline
            def add(total, lists, at, weight, base, shift, turn):
                place: T.let = (turn * sets + newest) * stride + phase.place + shift
                first: T.let = begun(lists, at, place)
                last: T.let = begun(lists, at, place + 1)
                # Of the weights of a channel: a list has places in the row.
                to: T.let = base + (offset - (place - conv.padding[1]) * taps) * conv.inputs * size
                for i in T.serial(first, last):
                    listed: T.let = T.reinterpret(lists[at + layout.places + i], dtype="int32")
                    multiply(
                        total,
                        lists[at + layout.values + i],
                        weight,
                        to + listed * (taps * size),
                        newest,
                        phase.sets,
                    )

            return add

        offsets = np.cumsum([0, *(len(phase.columns) for phase in group.phases)])
        phases = [of_phase(phase, int(offset)) for phase, offset in zip(group.phases, offsets, strict=False)]

        def all_phases(*arguments):
            for add in phases:
                add(*arguments)

        @inline
        def stepped(total, lists, at, weight, base, shift, sums, to, turn):
            load(total, sums, to + before + (turn * sets + newest + sets - 1) * size, newest)
            all_phases(total, lists, at, weight, base, shift, turn)
            save(total, sums, to + before + (turn * sets + newest) * size, (newest + 1) % sets)

        return stepped

    steps = [step(newest) for newest in range(sets)]

    def all_steps(*arguments):
        for stepped in steps:
            stepped(*arguments)

    def registers():
        return [T.alloc_buffer((lanes,), "float32") for _ in range(sets * vectors)]

    @inline
    def walked(lists, at, weight, base, shift, sums, to):
        total = registers()
        start(total)
        for turn in T.serial(group.rounds):
            all_steps(total, lists, at, weight, base, shift, sums, to, turn)

    return walked
