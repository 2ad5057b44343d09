"""Panels of a convolution of bytes or of bf16, by AMX tiles or by registers."""

from __future__ import annotations

from schedules.conv2d_amx import amx_panels
from schedules.conv2d_dot4 import dot4_panels
from schedules.conv2d_lines import Lines
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa


def byte_panels(isa: Isa, lines: Lines, conv: Conv2d, tile, store):
    """Return the macro ``(image, origin, operands, y, to, first, last)`` of `tile`'s kind; see both."""
    return (
        amx_panels(lines, conv, tile, store) if isa.amx and tile.matrix else dot4_panels(isa, lines, conv, tile, store)
    )
