"""The stage of a convolution of bytes: one kernel, whose images are bytes or floats as their neighbours want them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.site_plan import read_form
from relay_passes.step import StepBuilder
from schedules.conv2d_byte_tile import default_byte_tile
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.registry import kernel


@dataclass(frozen=True)
class ByteImages:
    """Scales and zero points of a site's images.

    Attributes
    ----------
    source : Affine
        What the input is quantized with.
    result, residual : Affine or None
        None where the image is floats.
    quantized : bool
        Whether the input comes as bytes.
    """

    source: Affine
    result: Affine | None
    residual: Affine | None
    quantized: bool

    @property
    def source_type(self) -> str:
        """Type of the input."""
        return "uint8" if self.quantized else "float32"

    @property
    def residual_type(self) -> str:
        """Type of the image to be added."""
        return "uint8" if self.residual else "float32"

    @property
    def result_type(self) -> str:
        """Type of the result."""
        return "uint8" if self.result else "float32"


def read_images(function: relax.Function) -> ByteImages | None:
    """Return what `relay_passes.pass_bytes` left in a site function's attributes, None if it computes on floats."""
    form = read_form(function)
    if form.precision != "int8":
        return None

    def levels(name: str) -> Affine | None:
        found = function.attrs.get(f"dual.{name}")
        return None if found is None else Affine(float(found[0]), int(found[1]))

    return ByteImages(
        Affine(form.scale, form.zero), levels("result"), levels("residual"), "dual.source" in function.attrs
    )


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
) -> relax.Var:
    """Emit the convolution into a step and return its result."""
    byte = ByteConv(conv, images.source_type, images.result_type, images.residual_type)
    tile = default_byte_tile(isa, byte)
    packed = pack_conv2d_int8(byte, tile, weight, bias, images.source, images.result, images.residual)
    names = ("weight", "scale", "bias", "affine")
    operands = [step.operand(name, value) for name, value in zip(names, packed, strict=True)]
    if residual is None:
        residual = step.operand("no_residual", np.zeros(1, byte.residual))
    return step.call("conv2d_int8", kernel(conv2d_int8, isa, byte, tile, threads), x, *operands, residual)
