"""PassLists: convolutions hand those that skip zeros lists of what is not zero.

An image of which few values are not zero takes several times the memory of their list, and a large one has to go
through memory twice. Where everybody who reads the result of a convolution of floats skips its zeros, the result is
written as lists, and read as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_site import COMPOSITE, Conv2dSite, read_conv2d
from relay_passes.mark_sites import layer_activation
from relay_passes.site_plan import SiteForm, read_form
from schedules.nonzero_rows import output_lists

#: Attributes of a site's function: whether what it reads, and what it gives, is lists.
READS, WRITES = "dual.reads_lists", "dual.writes_lists"
#: Kernels count words of an image's lists with 32 bits.
_MOST_WORDS = 1 << 31


@tvm.transform.module_pass(opt_level=0, name="PassLists")
class PassLists:
    """The pass; run it when plans are attached, before convolutions are rewritten."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with the attributes in place."""
        main = module["main"]
        made: dict[relax.Var, _Planned] = {}
        readers: dict[relax.Var, list[_Planned | None]] = {}
        for binding in (binding for block in main.body.blocks for binding in block.bindings):
            planned = _planned(module, binding.value)
            if planned is not None:
                made[binding.var] = planned
            for variable in relax.analysis.free_vars(binding.value):
                readers.setdefault(variable, []).append(planned)
        result = IRModule(module.functions, attrs=module.attrs)
        kept = list(relax.analysis.free_vars(main.body.body))
        for image, writer in made.items():
            found = readers.get(image, [])
            if image in kept or not found or not writer.can_write or not all(r and r.can_read(image) for r in found):
                continue
            result[writer.target] = result[writer.target].with_attr(WRITES, 1)
            for reader in found:
                result[reader.target] = result[reader.target].with_attr(READS, 1)
        return result


@dataclass(frozen=True, eq=False)
class _Planned:
    """A convolution of ``main``, and how it is to be computed."""

    target: tvm.ir.GlobalVar
    site: Conv2dSite
    form: SiteForm

    @property
    def can_write(self) -> bool:
        """Whether the kernel of this form can give lists: nothing may come between the sums and them."""
        site, conv = self.site, self.site.conv
        floats = self.form.precision == "fp32" and self.form.input in ("dense", "columns")
        # Images of one column lie down (`schedules.conv2d_walk.across`), and their lists with them.
        wide = conv.out_width > 1 and output_lists(conv).size < _MOST_WORDS
        return floats and wide and site.pool is None and site.residual is None

    def can_read(self, image: relax.Var) -> bool:
        """Whether it skips the zeros of this image, and does not need it otherwise."""
        site, form = self.site, self.form
        skips = form.precision == "fp32" and (form.input == "columns" or form.skips_all)
        added = site.residual is not None and site.residual.same_as(image)
        return skips and site.x.same_as(image) and not added


def _planned(module: IRModule, value: relax.Expr) -> _Planned | None:
    """Return the planned convolution that an expression calls, if it does."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
        return None
    function = module[value.op]
    if not isinstance(function, relax.Function) or not function.attrs or function.attrs.get("Composite") != COMPOSITE:
        return None
    form = read_form(function)
    return _Planned(value.op, read_conv2d(function, value, layer_activation(function)), form) if form else None
