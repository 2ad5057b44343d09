"""PassBytes: convolutions of bytes hand each other bytes.

A convolution that is to be computed on bytes has a scale and a zero point for what it reads. Where everybody who reads
the result of one is another, the result is written as bytes of that scale, and read as such: nothing goes through
floats between them, nor through four times the memory. All others read floats and quantize them, or write floats.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_site import COMPOSITE, read_conv2d
from relay_passes.site_plan import read_form


@tvm.transform.module_pass(opt_level=0, name="PassBytes")
class PassBytes:
    """The pass; run it when plans are attached, before convolutions are rewritten.

    Sites of bytes gain the attributes ``dual.result`` and ``dual.residual``: scale and zero point of what they write,
    and of the image that they add, where that is bytes, and ``dual.source`` if what they read is bytes already.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with the attributes in place."""
        found = Images(module)
        result = IRModule(module.functions, attrs=module.attrs)
        for target, attributes in found.attributes().items():
            result[target] = result[target].with_attrs(attributes)
        return result


class Images:
    """Who writes and who reads each image of ``main``.

    Attributes
    ----------
    calls : dict
        For each site of bytes the variable that its result is bound to, and its call.
    readers : dict
        For each variable what reads it: a site of bytes, or None.
    """

    def __init__(self, module: IRModule) -> None:
        self._module = module
        self.calls: dict = {}
        self.readers: dict[relax.Var, list] = {}
        for block in module["main"].body.blocks:
            for binding in block.bindings:
                self._note(binding)
        self._kept = set(_variables(module["main"].body.body))

    def _note(self, binding) -> None:
        value, target = binding.value, None
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar) and self._scale(value.op):
            target = value.op
            self.calls[target] = (binding.var, value)
        for variable in _variables(value):
            self.readers.setdefault(variable, []).append(target)

    def _scale(self, target) -> tuple[float, int] | None:
        """Return the scale and zero point of what a site of bytes reads, None of any other function."""
        function = self._module[target]
        if not isinstance(function, relax.Function) or not function.attrs:
            return None
        form = read_form(function) if function.attrs.get("Composite") == COMPOSITE else None
        return (form.scale, form.zero) if form and form.precision == "int8" else None

    def attributes(self) -> dict:
        """Return what each site of bytes gains."""
        found: dict = {target: {} for target in self.calls}
        for target, (image, _) in self.calls.items():
            readers = self.readers.get(image, [])
            if None in readers or image in self._kept:
                continue
            first = next((reader for reader in readers if self._reads(reader)[0].same_as(image)), None)
            if first is None:
                continue
            # Of readers that were calibrated apart the first one's scale counts.
            levels = self._scale(first)
            found[target]["dual.result"] = list(levels)
            for reader in readers:
                x, residual = self._reads(reader)
                if x.same_as(image):
                    found[reader] |= {"dual.source": 1, "dual.scale": levels[0], "dual.zero": levels[1]}
                if residual is not None and residual.same_as(image):
                    found[reader]["dual.residual"] = list(levels)
        return {target: attributes for target, attributes in found.items() if attributes}

    def _reads(self, target) -> tuple[relax.Expr, relax.Expr | None]:
        """Return the image that a site convolves, and the one that it adds."""
        site = read_conv2d(self._module[target], self.calls[target][1], None)
        return site.x, site.residual


def _variables(expression) -> list[relax.Var]:
    """Return the variables of an expression without bindings."""
    found = []

    def note(part) -> None:
        if isinstance(part, relax.Var):
            found.append(part)

    relax.analysis.post_order_visit(expression, note)
    return found
