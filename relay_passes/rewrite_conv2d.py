"""RewriteConv2d: a planned convolution becomes one kernel, dense or skipping zeros, and its pooling another."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_site import COMPOSITE, read_conv2d
from relay_passes.mark_sites import layer_activation
from relay_passes.site_plan import read_form
from relay_passes.site_rewriter import SiteRewriter, StepCall
from relay_passes.step import StepBuilder
from schedules.conv2d import conv2d, default_tile, pack_conv2d
from schedules.conv2d_skip import conv2d_skip, default_skip_tile, pack_conv2d_skip
from schedules.pool import max_pool2d
from schedules.registry import kernel

#: By form: kernel, tile and packing.
_FORMS = {
    "dense": (conv2d, default_tile, pack_conv2d),
    "columns": (conv2d_skip, default_skip_tile, pack_conv2d_skip),
}


@tvm.transform.module_pass(opt_level=0, name="RewriteConv2d")
class RewriteConv2d:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned convolution as a step of kernels."""
        return SiteRewriter(module, COMPOSITE, _rewrite).run()


def _rewrite(function: relax.Function, call: relax.Call) -> StepCall | None:
    form = read_form(function)
    if form is None:
        return None
    site, isa = read_conv2d(function, call, layer_activation(function)), form.level()
    conv, (builder, choose_tile, pack) = site.conv, _FORMS[form.input]
    tile = choose_tile(isa, conv)
    inputs = [(site.x, (conv.input_size,))]
    with StepBuilder() as step:
        operands = [step.input("x", (conv.input_size,))]
        packed = pack(isa, tile, site.weight, site.bias)
        operands += [step.operand(name, value) for name, value in zip(("weight", "bias"), packed, strict=True)]
        if site.residual is not None:
            inputs.append((site.residual, (conv.output_size,)))
            operands.append(step.input("residual", (conv.output_size,)))
        y = step.call(builder.__name__, kernel(builder, isa, conv, tile, form.threads), *operands)
        if site.pool is not None:
            y = step.call("max_pool2d", kernel(max_pool2d, isa, site.pool, form.threads), y)
        step.finish(y)
    return StepCall(step, inputs, outputs=[[tuple(call.ty.shape)]])
