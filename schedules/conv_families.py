"""Families of convolutions that are tuned.

Nothing is transferred from one shape to another: which tile is best hangs on what is left over at the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tvm import tirx

from schedules import conv2d, conv2d_gated, conv2d_gated_bytes, conv2d_int8, conv2d_single, conv2d_skip
from schedules.conv2d_byte_tile import byte_tile, default_byte_tile, dot_tile
from schedules.conv2d_gated_tiles import default_gated_tiles, gated_knobs, gated_tiles
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import GEOMETRY, Conv2d
from schedules.conv2d_space import (
    dot_fits,
    dot_space,
    gated_dot_fits,
    gated_dot_space,
    gated_fits,
    gated_space,
    single_fits,
    single_space,
    skip_fits,
    skip_space,
    tile_fits,
    tile_space,
)
from schedules.cpu import ISAS, Isa
from schedules.family import Family
from schedules.knobs import ConvTile, DotTile, GatedDotTile, Knobs, SingleTile, SkipTile
from schedules.registry import kernel

if TYPE_CHECKING:
    from schedules.families import Workload


def _conv_label(shape: tuple[int, ...]) -> str:
    """Return ``56x56x64 to 64, 3x3``, with strides and images if they are more than one."""
    conv = Conv2d.of_geometry(shape)
    label = f"{conv.height}x{conv.width}x{conv.inputs} to {conv.outputs}, {conv.kernel[0]}x{conv.kernel[1]}"
    strides = f"/{conv.strides[0]}x{conv.strides[1]}" if conv.strides != (1, 1) else ""
    return f"{conv.batch}x" * (conv.batch > 1) + label + strides


def _byte_label(shape: tuple[int, ...]) -> str:
    """Return the same, with the few channels of a gate if there are any, and what images consist of."""
    *few, source, result = shape[len(GEOMETRY) :]
    few = "".join(f", by {count}" for count in few)
    kinds = ("bytes" if is_bytes else "floats" for is_bytes in (source, result))
    return f"{_conv_label(shape)}{few}, {' to '.join(kinds)}"


def _family(
    of: Callable[[Workload], tuple],
    knobs: type[Knobs],
    default: Callable[..., Knobs],
    space: Callable[..., dict[str, tuple[int, ...]]],
    fits: Callable[..., bool],
    build: Callable[..., tirx.PrimFunc],
    axes: tuple[str, ...] = (),
    label: Callable[[tuple[int, ...]], str] = _conv_label,
) -> Family:
    """Return a family of convolutions, whose `axes` come behind the geometry; in these alone may records differ.

    ``of(workload)`` is the level and what else the other functions take first: `fits` a point of the space after that,
    `build` one and the threads.
    """

    def of_default(workload: Workload) -> Knobs:
        return default(*of(workload))

    def of_space(workload: Workload) -> dict[str, tuple[int, ...]]:
        return space(*of(workload))

    def of_fits(workload: Workload, chosen: Knobs) -> bool:
        return fits(*of(workload), chosen)

    def of_build(workload: Workload, chosen: Knobs) -> tirx.PrimFunc:
        return build(*of(workload), chosen, workload.threads)

    return Family((*GEOMETRY, *axes), knobs, of_default, of_space, of_build, of_fits, GEOMETRY, label)


def _floats(builder: Callable, knobs: type[Knobs], default: Callable, space: Callable, fits: Callable) -> Family:
    """Return a family whose template takes a convolution of floats as it is."""

    def of(workload: Workload) -> tuple[Isa, Conv2d]:
        return workload.level, Conv2d.of_geometry(workload.shape)

    return _family(of, knobs, default, space, fits, partial(kernel, builder))


def _bytes() -> Family:
    """Return the family of every pixel; of AMX tiles there are no records."""

    def of(workload: Workload) -> tuple[Isa, ByteConv]:
        return ISAS[workload.level.records], ByteConv.of_shape(workload.shape)

    def default(isa: Isa, byte: ByteConv) -> DotTile:
        return dot_tile(default_byte_tile(isa, byte))

    def build(isa: Isa, byte: ByteConv, knobs: DotTile, threads: int) -> tirx.PrimFunc:
        return kernel(conv2d_int8.conv2d_int8, isa, byte, byte_tile(knobs), threads)

    return _family(of, DotTile, default, dot_space, dot_fits, build, ("source", "result"), _byte_label)


def _gated_bytes() -> Family:
    """Return the family of open pixels, behind `few` channels of a little module; of AMX tiles there are no records."""

    def of(workload: Workload) -> tuple[Isa, ByteConv, int]:
        *shape, few, source, result = workload.shape
        return ISAS[workload.level.records], ByteConv.of_shape((*shape, source, result)), few

    def default(isa: Isa, byte: ByteConv, few: int) -> GatedDotTile:
        return gated_knobs(default_gated_tiles(isa, byte, few))

    def build(isa: Isa, byte: ByteConv, few: int, knobs: GatedDotTile, threads: int) -> tirx.PrimFunc:
        tiles = gated_tiles(isa, byte, few, knobs)
        return kernel(conv2d_gated_bytes.gated_conv2d_bytes, isa, byte, few, tiles, threads)

    axes = ("few", "source", "result")
    return _family(of, GatedDotTile, default, gated_dot_space, gated_dot_fits, build, axes, _byte_label)


CONVOLUTIONS = {
    "conv2d": _floats(conv2d.conv2d, ConvTile, conv2d.default_tile, tile_space, tile_fits),
    "conv2d_gated": _floats(
        conv2d_gated.gated_conv2d, ConvTile, conv2d_gated.default_gated_tile, gated_space, gated_fits
    ),
    "conv2d_gated_int8": _gated_bytes(),
    "conv2d_int8": _bytes(),
    "conv2d_single": _floats(
        conv2d_single.conv2d_single, SingleTile, conv2d_single.default_single_tile, single_space, single_fits
    ),
    "conv2d_skip": _floats(conv2d_skip.conv2d_skip, SkipTile, conv2d_skip.default_skip_tile, skip_space, skip_fits),
}
