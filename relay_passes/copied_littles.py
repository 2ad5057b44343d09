"""CopyLittles: a convolution behind a copy of itself on bytes, alone, becomes that copy.

From here on it is a convolution of bytes like any other: it hands bytes on, and may be part of a chain. A copy that a
gate reads is a stage of the gated convolution's step instead (`copied_sums`): floats in, sums as floats out.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_bytes_stage import ByteImages, convolved_bytes
from relay_passes.conv2d_site import Conv2dSite
from relay_passes.products import LittleModule
from relay_passes.replaced_sites import call_of, replace_sites, taken
from relay_passes.site_plan import COPIES, SiteForm, read_little
from relay_passes.step import StepBuilder
from schedules.conv2d_int8 import Affine
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa


@tvm.transform.module_pass(opt_level=0, name="CopyLittles")
class CopyLittles:
    """The pass; run it when plans are attached, before `relay_passes.pass_bytes.PassBytes`."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with a site on bytes in place of each convolution behind its copy alone."""
        return replace_sites(module, lambda form: form.input == "little" and form.hidden in COPIES, _copied)


def _copied(builder: relax.BlockBuilder, function: relax.Function, site: Conv2dSite) -> relax.Call:
    little, name = read_little(function), str(function.attrs["dual.site"])
    copy = replace(site, weight=little.weight.reshape(site.weight.shape), bias=little.bias)
    attributes = taken(function, ("dual.scale", "dual.zero")) | {"dual.site": name, "dual.precision": "int8"}
    return call_of(builder, function, copy, f"{name}_copy", attributes, site.x, site.residual)


def copied_sums(
    step: StepBuilder, isa: Isa, conv: Conv2d, threads: int, form: SiteForm, module: LittleModule, x: relax.Var
) -> relax.Var:
    """Emit the copy of a convolution that a gate reads into a step, and return its sums, float32.

    Parameters
    ----------
    step : StepBuilder
    isa : Isa
    conv : Conv2d
        With nothing behind the sums.
    threads : int
    form : SiteForm
        Scale and zero point of the bytes that the copy multiplies.
    module : LittleModule
        Weights and bias of the copy.
    x : Var
        The image, float32.
    """
    images = ByteImages("int8", Affine(form.scale, form.zero), None, None, *("float32",) * 3)
    weight = module.weight.reshape(conv.outputs, *conv.kernel, conv.inputs)
    return convolved_bytes(step, isa, conv, threads, images, weight, module.bias, x, None, "copy_")
