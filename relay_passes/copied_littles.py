"""CopyLittles: a convolution behind a copy of itself on bytes, alone, becomes that copy.

From here on it is a convolution of bytes like any other: it hands bytes on, and may be part of a chain. A copy that a
gate reads is a stage of the gated convolution's step instead (`copied_sums`): floats in, sums as floats out.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.conv2d_bytes_stage import ByteImages, convolved_bytes
from relay_passes.conv2d_site import COMPOSITE, read_conv2d
from relay_passes.mark_sites import layer_activation
from relay_passes.products import LittleModule
from relay_passes.site_plan import COPIES, SiteForm, read_form, read_little
from relay_passes.split_littles import call_of
from relay_passes.step import StepBuilder
from schedules.conv2d_int8 import Affine
from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa


@tvm.transform.module_pass(opt_level=0, name="CopyLittles")
class CopyLittles:
    """The pass; run it when plans are attached, before `relay_passes.pass_bytes.PassBytes`."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with a site on bytes in place of each convolution behind its copy alone."""
        if not any(map(_is_copy, module.functions.values())):
            return module
        copier = _Copier(module)
        main = copier.visit_expr(module["main"])
        copier.builder_.update_func(module.get_global_var("main"), main)
        return relax.transform.DeadCodeElimination(["main"])(copier.builder_.get())


@mutator
class _Copier(PyExprMutator):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self._module = module

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        function = self._module[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
        if function is None or not _is_copy(function):
            return super().visit_call_(call)
        given = relax.Call(call.op, [self.visit_expr(argument) for argument in call.args], ret_ty=call.ty)
        site, little = read_conv2d(function, given, layer_activation(function)), read_little(function)
        name, weight = str(function.attrs["dual.site"]), little.weight.reshape(site.weight.shape)
        read = {f"dual.{key}": function.attrs[f"dual.{key}"] for key in ("scale", "zero")}
        attributes = read | {"dual.site": name, "dual.precision": "int8"}
        copied = replace(site, weight=weight, bias=little.bias)
        return call_of(self.builder_, function, copied, f"{name}_copy", attributes, site.x, site.residual)


def _is_copy(function) -> bool:
    """Whether a function is a convolution behind its copy alone."""
    if not isinstance(function, relax.Function) or not function.attrs or function.attrs.get("Composite") != COMPOSITE:
        return False
    form = read_form(function)
    return form is not None and form.input == "little" and form.hidden in COPIES


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
