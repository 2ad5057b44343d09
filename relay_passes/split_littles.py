"""SplitLittles: a convolution behind its little module, on bytes, becomes two convolutions of bytes.

The first gives few channels, whose scale and zero point are `LEVELS`: what else their values are scaled by is in its
weights and in those of the second, one product per pixel, which spreads the few channels over all, with what follows
the sums. From here on the two are convolutions like any other: they hand bytes on, and may be parts of chains.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_site import Conv2dSite
from relay_passes.products import LittleModule
from relay_passes.replaced_sites import call_of, replace_sites, taken
from relay_passes.site_plan import SiteForm, read_little
from schedules.conv2d_int8 import Affine

#: Scale and zero point of the few channels, whatever the layer.
LEVELS = Affine(1.0, 128)
#: Attributes of what the first reads and the second writes.
_READS, _WRITES = ("dual.scale", "dual.zero", "dual.source"), ("dual.result", "dual.residual")


@tvm.transform.module_pass(opt_level=0, name="SplitLittles")
class SplitLittles:
    """The pass; run it when plans are attached, before `relay_passes.pass_bytes.PassBytes`.

    The first convolution is called ``<site>_few``, the second has the site's name.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with two sites in place of each convolution behind its little module on bytes."""
        return replace_sites(module, _splits, _split)


def _splits(form: SiteForm) -> bool:
    """Whether a convolution is behind its little module alone, on bytes."""
    return form.precision == "int8" and form.input == "little"


def _split(builder: relax.BlockBuilder, function: relax.Function, site: Conv2dSite) -> relax.Call:
    (few, spread), name = _halves(site, read_little(function)), str(function.attrs["dual.site"])
    levels = {"dual.scale": LEVELS.scale, "dual.zero": LEVELS.zero, "dual.site": name}
    read, written = {"dual.site": f"{name}_few"} | taken(function, _READS), levels | taken(function, _WRITES)
    value = builder.emit(call_of(builder, function, few, f"{name}_few", read, site.x))
    return call_of(builder, function, spread, f"{name}_spread", written, value, site.residual)


def _halves(site: Conv2dSite, little: LittleModule) -> tuple[Conv2dSite, Conv2dSite]:
    """Return the convolution that gives few channels, and the one that spreads them."""
    conv, (projection,) = site.conv, little.projections
    k = len(projection)
    few = replace(conv, outputs=k, activation=None, residual=False)
    spread = replace(
        conv,
        height=conv.out_height,
        width=conv.out_width,
        inputs=k,
        kernel=(1, 1),
        strides=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
    )
    filters = projection.reshape(k, *conv.kernel, conv.inputs)
    rows = little.weight.reshape(conv.outputs, 1, 1, k)
    return (
        replace(site, conv=few, pool=None, weight=filters, bias=-little.center, residual=None),
        replace(site, conv=spread, weight=rows, bias=little.bias),
    )
