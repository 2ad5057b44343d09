"""SplitLittles: a convolution behind its little module, on bytes, becomes two convolutions of bytes.

The first gives few channels, whose scale and zero point are `LEVELS`: what else their values are scaled by is in its
weights and in those of the second, one product per pixel, which spreads the few channels over all, with what follows
the sums. From here on the two are convolutions like any other: they hand bytes on, and may be parts of chains.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.conv2d_site import COMPOSITE, Conv2dSite, conv2d_function, read_conv2d
from relay_passes.mark_sites import layer_activation
from relay_passes.products import LittleModule
from relay_passes.site_plan import read_form, read_little
from schedules.conv2d_int8 import Affine

#: Scale and zero point of the few channels, whatever the layer.
LEVELS = Affine(1.0, 128)
#: Attributes that both have from the site, and those of what the first reads and the second writes.
_BOTH = ("Composite", "Primitive", "dual.precision", "dual.rule", "dual.isa", "dual.threads")
_READS, _WRITES = ("dual.scale", "dual.zero", "dual.source"), ("dual.result", "dual.residual")


@tvm.transform.module_pass(opt_level=0, name="SplitLittles")
class SplitLittles:
    """The pass; run it when plans are attached, before `relay_passes.pass_bytes.PassBytes`.

    The first convolution is called ``<site>_few``, the second has the site's name.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with two sites in place of each convolution behind its little module on bytes."""
        if not any(map(_splits, module.functions.values())):
            return module
        splitter = _Splitter(module)
        main = splitter.visit_expr(module["main"])
        splitter.builder_.update_func(module.get_global_var("main"), main)
        return relax.transform.DeadCodeElimination(["main"])(splitter.builder_.get())


@mutator
class _Splitter(PyExprMutator):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self._module = module

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        function = self._module[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
        if function is None or not _splits(function):
            return super().visit_call_(call)
        given = relax.Call(call.op, [self.visit_expr(argument) for argument in call.args], ret_ty=call.ty)
        site, name = read_conv2d(function, given, layer_activation(function)), str(function.attrs["dual.site"])
        few, spread = _halves(site, read_little(function))
        levels = {"dual.scale": LEVELS.scale, "dual.zero": LEVELS.zero}
        read, written = {"dual.site": f"{name}_few"} | _taken(function, _READS), levels | _taken(function, _WRITES)
        value = self.builder_.emit(call_of(self.builder_, function, few, f"{name}_few", read, site.x))
        written |= {"dual.site": name}
        result = call_of(self.builder_, function, spread, f"{name}_spread", written, value, site.residual)
        # What the site was to give may be bytes, which its function does not say.
        return relax.Call(result.op, result.args, ret_ty=call.ty)


def call_of(
    builder: relax.BlockBuilder, function: relax.Function, site: Conv2dSite, name: str, attributes: dict, *images
) -> relax.Call:
    """Return the call of a convolution on bytes that takes the place of all or a part of another.

    Parameters
    ----------
    builder : BlockBuilder
        Of the module that gains the convolution's function.
    function : Function
        Of the planned site whose place it takes.
    site : Conv2dSite
    name : str
        Of the new function.
    attributes : dict
        What it does not have from `function`.
    *images : Expr or None
        What it reads, and the image that it adds, if there is one.
    """
    made = conv2d_function(site).with_attrs(
        _taken(function, _BOTH)
        | {"dual.nonnegative": 0, "dual.input": "dense", "dual.hidden": "", "dual.means": []}
        | attributes
    )
    target = builder.add_func(made, name)
    x, *residual = (image for image in images if image is not None)
    return relax.Call(
        target,
        [x, relax.const(site.weight), relax.const(site.bias.reshape(1, 1, 1, -1)), *residual],
        ret_ty=made.ret_ty,
    )


def _splits(function) -> bool:
    """Whether a function is a convolution behind its little module alone, on bytes."""
    if not isinstance(function, relax.Function) or not function.attrs or function.attrs.get("Composite") != COMPOSITE:
        return False
    form = read_form(function)
    return form is not None and form.precision == "int8" and form.input == "little"


def _taken(function: relax.Function, names: tuple[str, ...]) -> dict:
    return {name: function.attrs[name] for name in names if name in function.attrs}


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
