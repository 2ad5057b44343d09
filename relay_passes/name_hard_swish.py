"""NameHardSwish: ``x * min(max(x + 3, 0), 6) / 6`` becomes one operator (Howard et al., 2019, MobileNetV3).

Relax has none for it, so it is one of ours, ``dual.hard_swish``. As one operator it can be part of a site; elsewhere it
is computed as it was. TVM knows no layout for it: the pass runs where layouts are decided.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

HARD_SWISH = "dual.hard_swish"


def hard_swish(x: relax.Expr) -> relax.Call:
    """Return the operator's call."""
    return relax.Call(tvm.ir.Op.get(HARD_SWISH), [x])


def _legalized(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,) = call.args
    moved = builder.emit(relax.op.clip(relax.op.add(x, relax.const(3.0, "float32")), 0, 6))
    return relax.op.multiply(relax.op.multiply(x, moved), relax.const(1 / 6, "float32"))


tvm.ir.register_op_attr(HARD_SWISH, "FInferType", lambda call, _: call.args[0].ty)
tvm.ir.register_op_attr(HARD_SWISH, "FPurity", True)
tvm.ir.register_op_attr(HARD_SWISH, "FLegalize", _legalized)


@tvm.transform.module_pass(opt_level=0, name="NameHardSwish")
class NameHardSwish:
    """The pass; run it behind `relay_passes.channels_last`, which writes clips as two operators."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with one operator for each hard swish of ``main``."""
        result = IRModule(module.functions, attrs=module.attrs)
        for pattern, x, constants in _forms():
            result["main"] = rewrite_call(
                pattern,
                lambda call, found, x=x, constants=constants: _named(call, found, x, constants),
                result["main"],
            )
        return result


def _named(call: relax.Call, found, x, constants: dict) -> relax.Expr:
    values = {part: found[part].value.numpy() for part in constants}
    is_one = all(np.allclose(values[part], constants[part], rtol=1e-3) for part in constants)
    floats = str(call.ty.dtype.dtype) == "float32"
    return hard_swish(found[x]) if is_one and floats and list(found[x].ty.shape) == list(call.ty.shape) else call


def _forms() -> list[tuple]:
    """Return the ways that exporters have of writing it: pattern, its input, and its constants with their values."""
    multiply, divide, add = (is_op(f"relax.{name}") for name in ("multiply", "divide", "add"))
    forms = []

    def clipped(value, limit):
        return is_op("relax.minimum")(is_op("relax.nn.relu")(value), limit)

    for swapped, divides in product((False, True), (False, True)):

        def times(x, other, swapped=swapped):
            return multiply(*((other, x) if swapped else (x, other)))

        sixth, by = (divide, 6.0) if divides else (multiply, 1 / 6)
        for last in (True, False):
            x, (three, six, scale) = wildcard(), (is_const() for _ in range(3))
            part = clipped(add(x, three), six)
            pattern = sixth(times(x, part), scale) if last else times(x, sixth(part, scale))
            forms.append((pattern, x, {three: 3.0, six: 6.0, scale: by}))
        # A hard sigmoid of the slope 1 / 6.
        x, (half, one, scale) = wildcard(), (is_const() for _ in range(3))
        pattern = times(x, clipped(add(sixth(x, scale), half), one))
        forms.append((pattern, x, {half: 0.5, one: 1.0, scale: by}))
    return forms
