"""Gated convolution, output by output: dot products of the open ones alone.

A tile of `schedules.conv2d_gated` is open if any of its channels matters. Where open outputs are spread over the
channels, few of a tile's sixteen or more are worth computing; here each is computed by itself, at about twice the time
of one in a register tile. What the others hold is what the little module predicts.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_bands import Bands
from schedules.conv2d_gated import default_gated_tile
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.epilogue import NONLINEARITIES
from schedules.inlining import inline
from schedules.knobs import SingleTile
from schedules.quantize import round_up
from schedules.single_dots import channel_values, dot_products, run_vectors
from schedules.single_lists import Groups, listed_groups, open_outputs

#: Pixels that share a channel's weights, and those among which they are looked for: where a tenth are open a list of
#: 64 holds six. Half as many fill fewer groups, twice as many read more than stays in L1.
_TOGETHER, _PIXELS = 4, 64
#: Vectors of an output's taps that are taken at once, so that what 64 pixels read of them nearly stays in L1.
_VECTORS = 48
#: Bytes of weights that do not stay in L2: they are fetched ahead.
_L2_BYTES = 1 << 20


def default_single_tile(isa: Isa, conv: Conv2d) -> SingleTile:
    """Return the tile that suits most layers; bands are those of gated tiles."""
    return SingleTile(_TOGETHER, _PIXELS, default_gated_tile(isa, conv).rows, _VECTORS * 16 // isa.lanes)


def taken_at_once(isa: Isa, conv: Conv2d, vectors: int) -> tuple[int, int]:
    """Return the rows of the kernel, and the pieces of each run of taps, of which up to `vectors` are taken at once."""
    number = max(1, run_vectors(isa, conv))
    whole = conv.kernel[0] * conv.runs[0] * number <= vectors
    return conv.kernel[0] if whole else 1, -(-number // vectors)


def conv2d_single(isa: Isa, conv: Conv2d, tile: SingleTile, threads: int):
    """Return the kernel ``(x, weight, bias, residual, limits, sums) -> (y: f32[output size], count: i32[1])``.

    ``x`` and ``residual`` are those of `schedules.conv2d.conv2d`, ``weight`` and ``bias`` from
    `schedules.single_dots.pack_singles`. ``sums: f32[output size]`` is what the little module predicts, ``limits:
    f32[3, outputs]`` what opens an output (`schedules.single_lists.open_outputs`); ``count`` is how many are open.
    Threads share the bands.
    """
    lanes, outputs, together = isa.lanes, conv.outputs, tile.together
    bands, size, number = Bands(conv, tile.rows), outputs * channel_values(isa, conv), max(1, run_vectors(isa, conv))
    rows, pieces = taken_at_once(isa, conv, tile.vectors)
    parts, piece = conv.kernel[0] // rows * pieces, -(-number // pieces)
    groups = Groups(outputs, min(tile.pixels, bands.pixels), together)
    runs = -(-bands.pixels // groups.pixels)
    most = groups.most * (1 if parts == 1 else runs)
    # Rows of the last band that are the band before it's, too.
    twice = bands.per_image * bands.rows - conv.out_height
    row_values = conv.padded_width * conv.inputs
    waits = most * together if parts > 1 else 1
    nonlinearity, choose = NONLINEARITIES[conv.activation], open_outputs(isa, conv)
    add, close = listed_groups(isa, groups)
    dots = dot_products(isa, conv, together, size * 4 > _L2_BYTES)
    room = round_up(outputs, lanes) + lanes

    def finished(value, residual, bias, channel, at):
        total = value + bias[channel]
        return nonlinearity(total + residual[at] if conv.residual else total)

    @inline
    def compute(image, origin, operands, y, to, lists, task, count, part):
        weight, bias, residual = operands
        channels, pixels, waiting, places = lists
        row: T.let = part // pieces * rows
        vector: T.let = part % pieces * piece
        for g in T.serial(count):
            base = T.alloc_buffer((together,), "int32")
            sums = T.alloc_buffer((together,), "float32")
            channel: T.let = channels[task * most + g]
            following: T.let = channels[task * most + T.min(g + 1, count - 1)]
            for p in T.unroll(together):
                pixel: T.let = pixels[(task * most + g) * together + p]
                base[p] = origin + places[pixel]
            dots(
                image,
                weight,
                base,
                channel,
                following,
                (row, row + rows),
                (vector, T.min(vector + piece, number)),
                sums,
            )
            if parts > 1:
                for p in T.unroll(together):
                    if part > 0:
                        sums[p] = sums[p] + waiting[task * waits + g * together + p]
            if part == parts - 1:
                for p in T.unroll(together):
                    at: T.let = (to + pixels[(task * most + g) * together + p]) * outputs + channel
                    y[at] = finished(sums[p], residual, bias, channel, at)
            else:
                for p in T.unroll(together):
                    waiting[task * waits + g * together + p] = sums[p]

    @inline
    def over_pixels(image, origin, context, to):
        operands, (limits, predicted), y, buffers, counts, task = context
        found, ends, lists, channels, pixels, waiting, places = buffers
        listed = T.alloc_buffer((1,), "int32", scope="local")
        kept = T.alloc_buffer((1,), "int32", scope="local")
        skip: T.let = T.Select(to // conv.out_width % conv.out_height == conv.out_height - bands.rows, twice, 0)
        first: T.let = skip * conv.out_width
        listed[0] = 0
        # TVM allocates a buffer in the innermost loop around all of its uses, which would forget the sums.
        waiting[task * waits] = T.float32(0)
        for run in T.serial(runs):
            for p in T.serial(T.max(run * groups.pixels, first), T.min((run + 1) * groups.pixels, bands.pixels)):
                choose(
                    predicted,
                    operands[2],
                    limits,
                    y,
                    to + p,
                    T.decl_buffer((room,), "int32", data=found.data, elem_offset=task * room),
                    kept,
                )
                counts[task] = counts[task] + kept[0]
                add((found, task * room), kept, p, (ends, task * outputs), (lists, task * (outputs * groups.room)))
            close(
                (ends, task * outputs),
                (lists, task * (outputs * groups.room)),
                (channels, task * most),
                (pixels, task * (most * together)),
                listed,
            )
            if parts == 1:
                compute(image, origin, operands, y, to, (channels, pixels, waiting, places), task, listed[0], 0)
                listed[0] = 0
        if parts > 1:
            for part in T.serial(parts):
                compute(image, origin, operands, y, to, (channels, pixels, waiting, places), task, listed[0], part)

    each_band = bands.each(over_pixels)

    @T.prim_func(s_tir=True, private=True)
    def single(
        x: T.Buffer((conv.input_size,), "float32"),
        weight: T.Buffer((size,), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        residual: T.Buffer((conv.residual_size,), "float32"),
        limits: T.Buffer((3, outputs), "float32"),
        predicted: T.Buffer((conv.output_size,), "float32"),
        y: T.Buffer((conv.output_size,), "float32"),
        count: T.Buffer((1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        scratch = T.sblock_alloc_buffer((threads * bands.scratch_size,), "float32")
        found = T.sblock_alloc_buffer((threads * room,), "int32")
        ends = T.sblock_alloc_buffer((threads * outputs,), "int32")
        lists = T.sblock_alloc_buffer((threads * outputs * groups.room,), "int32")
        channels = T.sblock_alloc_buffer((threads * most,), "int32")
        pixels = T.sblock_alloc_buffer((threads * most * together,), "int32")
        waiting = T.sblock_alloc_buffer((threads * waits,), "float32")
        places = T.sblock_alloc_buffer((bands.pixels,), "int32")
        counts = T.sblock_alloc_buffer((threads,), "int32")
        for p in T.serial(bands.pixels):
            with T.sblock("places"):
                vp = T.axis.spatial(bands.pixels, p)
                T.reads()
                T.writes(places[vp])
                places[vp] = vp // conv.out_width * (conv.strides[0] * row_values) + vp % conv.out_width * (
                    conv.strides[1] * conv.inputs
                )
        for task in T.parallel(threads):
            with T.sblock("bands"):
                vt = T.axis.spatial(threads, task)
                T.reads(
                    x[0 : conv.input_size],
                    weight[0:size],
                    bias[0:outputs],
                    residual[0 : conv.residual_size],
                    limits[0:3, 0:outputs],
                    places[0 : bands.pixels],
                    predicted[0 : conv.output_size],
                )
                T.writes(
                    y[0 : conv.output_size],
                    scratch[0 : threads * bands.scratch_size],
                    found[0 : threads * room],
                    ends[0 : threads * outputs],
                    lists[0 : threads * outputs * groups.room],
                    channels[0 : threads * most],
                    pixels[0 : threads * most * together],
                    waiting[0 : threads * waits],
                    counts[vt],
                )
                counts[vt] = 0
                for c in T.serial(outputs):
                    ends[vt * outputs + c] = 0
                each_band(
                    x,
                    scratch,
                    (
                        (weight, bias, residual),
                        (limits, predicted),
                        y,
                        (found, ends, lists, channels, pixels, waiting, places),
                        counts,
                        vt,
                    ),
                    vt,
                    vt * bands.count // threads,
                    (vt + 1) * bands.count // threads,
                )
        with T.sblock("count"):
            T.reads(counts[0:threads])
            T.writes(count[0])
            count[0] = 0
            for task in T.serial(threads):
                count[0] = count[0] + counts[task]

    return single
