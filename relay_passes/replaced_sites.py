"""What passes share that put convolutions on bytes in the place of convolutions behind little modules."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.conv2d_site import COMPOSITE, Conv2dSite, conv2d_function, read_conv2d
from relay_passes.main_function import mutated
from relay_passes.mark_sites import layer_activation
from relay_passes.site_plan import SiteForm, read_form

#: Attributes that what takes a site's place has from it.
_KEPT = ("Composite", "Primitive", "dual.precision", "dual.rule", "dual.isa", "dual.threads")

#: From the module's builder, a planned site's function and what it consists of to what takes its place.
Put = Callable[[relax.BlockBuilder, relax.Function, Conv2dSite], relax.Expr]


def replace_sites(module: IRModule, wanted: Callable[[SiteForm], bool], put: Put) -> IRModule:
    """Return `module` with what `put` gives in place of each planned convolution whose form is `wanted`."""
    if not any(_found(function, wanted) for function in module.functions.values()):
        return module
    return relax.transform.DeadCodeElimination(["main"])(mutated(_Replacer(module, wanted, put), module))


def _found(function, wanted: Callable[[SiteForm], bool]) -> bool:
    if not isinstance(function, relax.Function) or not function.attrs or function.attrs.get("Composite") != COMPOSITE:
        return False
    form = read_form(function)
    return form is not None and wanted(form)


@mutator
class _Replacer(PyExprMutator):
    def __init__(self, module: IRModule, wanted: Callable[[SiteForm], bool], put: Put) -> None:
        super().__init__(module)
        self._module, self._wanted, self._put = module, wanted, put

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        function = self._module[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
        if function is None or not _found(function, self._wanted):
            return super().visit_call_(call)
        given = relax.Call(call.op, [self.visit_expr(argument) for argument in call.args], ret_ty=call.ty)
        result = self._put(self.builder_, function, read_conv2d(function, given, layer_activation(function)))
        # What the site was to give may be bytes, which its function does not say.
        return relax.Call(result.op, result.args, ret_ty=call.ty)


def call_of(
    builder: relax.BlockBuilder, function: relax.Function, site: Conv2dSite, name: str, attributes: dict, *images
) -> relax.Call:
    """Return the call of a convolution that takes the place of all or a part of another.

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
        taken(function, _KEPT)
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


def taken(function: relax.Function, names: tuple[str, ...]) -> dict:
    """Return those of a function's attributes that it has of `names`."""
    return {name: function.attrs[name] for name in names if name in function.attrs}
