"""NameActivations: what exporters write as several operators becomes the one that it is.

``x * sigmoid(x)`` is the SiLU (Elfwing et al., 2017), also called swish. As one operator it can be part of a site, and
keeps the layout of an image.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import is_op, rewrite_call, wildcard


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
        return result


def _silu(call: relax.Call, x: relax.Expr) -> relax.Expr:
    return relax.op.nn.silu(x) if str(call.ty.dtype.dtype) == "float32" else call
