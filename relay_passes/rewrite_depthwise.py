"""RewriteDepthwise: depthwise convolutions of floats become kernels, with their bias and nonlinearity.

They are no sites: of a few products an output, nothing is worth a gate. TVM's own loops take several times as long.
"""

from __future__ import annotations

from functools import partial

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_site import DEPTHWISE, depthwise_patterns, read_conv2d
from relay_passes.mark_sites import layer_activation
from relay_passes.site_rewriter import SiteRewriter, StepCall
from relay_passes.step import StepBuilder
from schedules.cpu import Isa
from schedules.depthwise import depthwise_conv2d, pack_depthwise
from schedules.registry import kernel


@tvm.transform.module_pass(opt_level=0, name="RewriteDepthwise")
class RewriteDepthwise:
    """The pass; run it behind `relay_passes.channels_last`, where weights are constants."""

    def __init__(self, isa: Isa, threads: int) -> None:
        """Generate kernels for a level and a number of threads."""
        self._isa, self._threads = isa, threads

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with kernels in place of depthwise convolutions."""
        patterns = depthwise_patterns()
        module = relax.transform.FuseOpsByPattern(patterns, bind_constants=False, entry_functions=["main"])(module)
        named, count = IRModule(module.functions, attrs=module.attrs), 0
        for target, function in module.functions.items():
            if isinstance(function, relax.Function) and function.attrs and function.attrs.get("Composite") == DEPTHWISE:
                named[target] = function.with_attr("dual.site", f"depthwise{count}")
                count += 1
        return SiteRewriter(named, {DEPTHWISE: partial(_rewrite, self._isa, self._threads)}).run()


def _rewrite(isa: Isa, threads: int, function: relax.Function, call: relax.Call) -> StepCall:
    site = read_conv2d(function, call, layer_activation(function))
    with StepBuilder() as step:
        x = step.input("x", (site.conv.input_size,))
        weight, bias = step.operand("weight", pack_depthwise(site.weight)), step.operand("bias", site.bias)
        step.finish(step.call("depthwise_conv2d", kernel(depthwise_conv2d, isa, site.conv, threads), x, weight, bias))
    return StepCall(step, [(site.x, (site.conv.input_size,))], [[tuple(call.ty.shape)]])
