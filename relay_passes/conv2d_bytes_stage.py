"""The stage of a convolution of bytes or of bf16: one kernel, whose images are of the types that neighbours want."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import relax

from relay_passes.conv2d_site import Conv2dSite
from relay_passes.site_plan import planned_bias, read_form
from relay_passes.step import StepBuilder
from schedules.bf16_vectors import BF16
from schedules.conv2d_byte_tile import ByteTile, byte_tile, default_byte_tile
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.history import chosen_knobs
from schedules.registry import kernel
from schedules.words import stored_taps

#: By precision: the type of the numbers that are multiplied.
NUMBERS = {"int8": "uint8", "bf16": BF16}


@dataclass(frozen=True)
class ByteImages:
    """Types of a site's images, with scales and zero points of those that are bytes.

    Attributes
    ----------
    precision : str
        ``int8`` or ``bf16``.
    source : Affine
        What the input is quantized with; of bf16 it says nothing.
    result, residual : Affine or None
        None where the image is not bytes.
    source_type, result_type, residual_type : str
        As `schedules.conv2d_lines.ByteConv` names them.
    """

    precision: str
    source: Affine
    result: Affine | None
    residual: Affine | None
    source_type: str
    result_type: str
    residual_type: str

    def of(self, conv: Conv2d) -> ByteConv:
        """Return a convolution of such images."""
        return ByteConv(conv, self.source_type, self.result_type, self.residual_type, NUMBERS[self.precision])


def read_images(function: relax.Function) -> ByteImages | None:
    """Return what `relay_passes.pass_bytes` left in a site function's attributes, None if it computes on floats."""
    form = read_form(function)
    if form.precision not in NUMBERS:
        return None

    def image(name: str) -> tuple[Affine | None, str]:
        found = function.attrs.get(f"dual.{name}")
        if found is None or isinstance(found, str):
            return None, str(found or "float32")
        return Affine(float(found[0]), int(found[1])), "uint8"

    (result, result_type), (residual, residual_type) = image("result"), image("residual")
    source_type = str(function.attrs.get("dual.source", "float32"))
    source = Affine(form.scale, form.zero) if form.precision == "int8" else Affine(1.0)
    return ByteImages(form.precision, source, result, residual, source_type, result_type, residual_type)


def byte_bias(function: relax.Function, isa: Isa, site: Conv2dSite) -> np.ndarray:
    """Return the bias of a convolution on bytes or bf16, corrected for what its level leaves of the weights."""
    stored = partial(stored_taps, isa, run=site.conv.runs[1])
    return planned_bias(function, 0, site.weight.reshape(len(site.weight), -1), site.bias, stored)


def chosen_byte_tile(isa: Isa, byte: ByteConv, threads: int) -> ByteTile:
    """Return the tile that tuning found for a convolution, or the default; of AMX tiles there are no records."""
    if isa.amx or byte.numbers == BF16:
        return default_byte_tile(isa, byte)
    return byte_tile(chosen_knobs("conv2d_int8", isa, byte.shape, threads))


def convolved_bytes(
    step: StepBuilder,
    isa: Isa,
    conv: Conv2d,
    threads: int,
    images: ByteImages,
    weight: np.ndarray,
    bias: np.ndarray,
    x: relax.Var,
    residual: relax.Var | None,
    prefix: str = "",
) -> relax.Var:
    """Emit the convolution into a step and return its result; names of its operands begin with `prefix`."""
    byte = images.of(conv)
    tile = chosen_byte_tile(isa, byte, threads)
    packed = pack_conv2d_int8(isa, byte, tile, weight, bias, images.source, images.result, images.residual)
    names = ("weight", "scale", "bias", "affine")
    operands = [step.operand(f"{prefix}{name}", value) for name, value in zip(names, packed, strict=True)]
    if residual is None:
        residual = step.operand(f"{prefix}no_residual", np.zeros(1, byte.residual))
    stage = kernel(conv2d_int8, isa, byte, tile, threads)
    return step.call(f"{prefix}conv2d_{images.precision}", stage, x, *operands, residual)
