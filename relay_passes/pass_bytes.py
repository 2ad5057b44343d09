"""PassBytes: convolutions of bytes or of bf16 hand each other bytes or bf16.

A convolution that is to be computed on bytes has a scale and a zero point for what it reads. Where everybody who reads
the result of one is another, the result is written as bytes of that scale, and read as such: nothing goes through
floats between them, nor through four times the memory. If one of those who convolve it computes on bf16, the result is
bf16 instead, which those on bytes quantize as they read it. All others read floats and convert them, or write floats.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.conv2d_bytes_stage import NUMBERS
from relay_passes.conv2d_site import COMPOSITE, read_conv2d
from relay_passes.site_plan import SiteForm, read_form
from schedules.bf16_vectors import BF16


@tvm.transform.module_pass(opt_level=0, name="PassBytes")
class PassBytes:
    """The pass; run it when plans are attached, before convolutions are rewritten.

    Sites of bytes or of bf16 gain the attributes ``dual.result`` and ``dual.residual``: scale and zero point of what
    they write, and of the image that they add, where that is bytes, or its type, where that is bf16; and
    ``dual.source``, the type of what they read, if that is not floats.
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
        For each site of bytes or of bf16 the variable that its result is bound to, and its call.
    readers : dict
        For each variable what reads it: such a site, or None.
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
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar) and self._form(value.op):
            target = value.op
            self.calls[target] = (binding.var, value)
        for variable in _variables(value):
            self.readers.setdefault(variable, []).append(target)

    def _form(self, target) -> SiteForm | None:
        """Return the form of a site of bytes or of bf16, None of any other function."""
        function = self._module[target]
        if not isinstance(function, relax.Function) or not function.attrs:
            return None
        form = read_form(function) if function.attrs.get("Composite") == COMPOSITE else None
        return form if form and form.precision in NUMBERS else None

    def attributes(self) -> dict:
        """Return what each site of bytes or of bf16 gains."""
        found: dict = {target: {} for target in self.calls}
        for target, (image, _) in self.calls.items():
            readers = self.readers.get(image, [])
            if None in readers or image in self._kept:
                continue
            written = self._type(image, readers)
            if written is None:
                continue
            found[target]["dual.result"] = written
            for reader in readers:
                x, residual = self._reads(reader)
                if x.same_as(image):
                    found[reader]["dual.source"] = written if written == BF16 else "uint8"
                    if written != BF16:
                        found[reader] |= {"dual.scale": written[0], "dual.zero": written[1]}
                if residual is not None and residual.same_as(image):
                    found[reader]["dual.residual"] = written
        return {target: attributes for target, attributes in found.items() if attributes}

    def _type(self, image: relax.Var, readers: list) -> list | str | None:
        """Return scale and zero point of an image that becomes bytes, `BF16`, or None where it stays floats."""
        forms = [self._form(reader) for reader in readers if self._reads(reader)[0].same_as(image)]
        if any(form.precision == "bf16" for form in forms):
            return BF16
        # Of readers that were calibrated apart the first one's scale counts.
        return [forms[0].scale, forms[0].zero] if forms else None

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
