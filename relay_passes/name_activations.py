"""NameActivations: what exporters write in another way becomes the operator that it is.

``x * sigmoid(x)`` is the SiLU (Elfwing et al., 2017), also called swish. As one operator it can be part of a site, and
keeps the layout of an image. A square written as a power is a product, which takes a hundredth of the time.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard


@tvm.transform.module_pass(opt_level=0, name="NameActivations")
class NameActivations:
    """The pass; it looks at ``main`` alone."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with one operator for each nonlinearity."""
        x = wildcard()
        logistic = is_op("relax.sigmoid")(x)
        product = is_op("relax.multiply")
        result = IRModule(module.functions, attrs=module.attrs)
        for operands in ((x, logistic), (logistic, x)):
            result["main"] = rewrite_call(product(*operands), lambda call, found: _silu(call, found[x]), result["main"])
        power = is_op("relax.power")(wildcard(), is_const())
        result["main"] = rewrite_call(power, lambda call, _: _product(call), result["main"])
        return result


def _product(call: relax.Call) -> relax.Expr:
    """Return a square or a root by what computes it."""
    value, exponent = call.args
    exponents = exponent.value.numpy()
    if exponents.size != 1 or len(exponents.shape) > len(value.ty.shape or ()):
        return call
    if isinstance(value, GenericConst) or exponents.item() not in (0.5, 2.0):
        return call
    return relax.op.multiply(value, value) if exponents.item() == 2.0 else relax.op.sqrt(value)


def _silu(call: relax.Call, x: relax.Expr) -> relax.Expr:
    return relax.op.nn.silu(x) if str(call.ty.dtype.dtype) == "float32" else call
