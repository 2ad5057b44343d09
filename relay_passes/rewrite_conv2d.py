"""RewriteConv2d: a planned convolution becomes a step of kernels, and its pooling another kernel.

A convolution without a gate is one kernel, dense or skipping zeros, or dense on bytes or bf16; it may read and give
lists in place of images (`relay_passes.pass_lists`). One with a gate is project, little, gate, gated tiles, on bytes or
bf16 the last three in one, or project, little, open outputs one by one; the little module alone is the first two. Open
tiles and projection may both skip zeros.
"""

from __future__ import annotations

from functools import partial

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_bytes_stage import byte_bias, convolved_bytes, read_images
from relay_passes.conv2d_gated_bytes_stage import gated_bytes
from relay_passes.conv2d_site import COMPOSITE, read_conv2d
from relay_passes.conv2d_stages import Conv2dStages
from relay_passes.join_bytes import CHAIN, rewrite_chain
from relay_passes.mark_sites import layer_activation
from relay_passes.pass_lists import READS, WRITES
from relay_passes.site_plan import read_form, read_little
from relay_passes.site_rewriter import SiteRewriter, StepCall
from relay_passes.step import StepBuilder
from schedules.conv2d_skip import input_lists
from schedules.nonzero_rows import output_lists
from schedules.pool import max_pool2d
from schedules.registry import kernel


@tvm.transform.module_pass(opt_level=0, name="RewriteConv2d")
class RewriteConv2d:
    """The pass."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with every planned convolution as a step of kernels, and every chain of them."""
        return SiteRewriter(module, {COMPOSITE: _rewrite, CHAIN: partial(rewrite_chain, module)}).run()


def _rewrite(function: relax.Function, call: relax.Call) -> StepCall | None:
    form = read_form(function)
    if form is None:
        return None
    site, isa = read_conv2d(function, call, layer_activation(function)), form.level()
    conv, counts, threshold, residual = site.conv, [], None, None
    reads, writes = READS in function.attrs, WRITES in function.attrs
    read = input_lists(conv).size if reads else conv.input_size
    inputs = [(site.x, (read,))]
    images = read_images(function)
    kinds = (images.source_type, images.residual_type, images.result_type) if images else ("float32",) * 3
    with StepBuilder() as step:
        stages = Conv2dStages(step, isa, conv, form.threads)
        x = step.input("x", (read,), kinds[0])
        if site.residual is not None:
            inputs.append((site.residual, (conv.output_size,)))
            residual = step.input("residual", (conv.output_size,), kinds[1])
        if images is not None:
            big = (site.weight, byte_bias(function, isa, site), x, residual)
            if form.gated:
                threshold = (3, conv.outputs)
                limits = step.input("limits", threshold)
                little = read_little(function)
                y, count = gated_bytes(step, isa, conv, form.threads, images, little, *big, limits)
                counts.append(count)
            else:
                y = convolved_bytes(step, isa, conv, form.threads, images, *big)
        elif form.gated:
            threshold = (3, conv.outputs)
            sums = stages.little_sums(form, read_little(function), x, reads)
            limits = step.input("limits", threshold)
            if form.input == "singles":
                y, count = stages.singles(site.weight, site.bias, x, residual, limits, sums)
            else:
                opened, count = stages.gate(sums, residual, limits)
                tiles = partial(stages.gated_skip, reads) if form.skips_all else stages.gated
                y = tiles(site.weight, site.bias, x, residual, opened, sums)
            counts.append(count)
        elif form.needs_little:
            y = stages.little(form, read_little(function), x, residual)
        else:
            y = stages.exact(form.input, site.weight, site.bias, x, residual, reads, writes)
        if site.pool is not None:
            y = step.call("max_pool2d", kernel(max_pool2d, isa, site.pool, form.threads, kinds[2]), y)
        step.finish(y, *counts)
    return StepCall(
        step, inputs, outputs=[[(output_lists(conv).size,) if writes else tuple(call.ty.shape)]], threshold=threshold
    )
