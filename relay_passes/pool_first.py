"""PoolFirst: a leaky ReLU of an image moves behind the maximum over windows, which gives the same of fewer values.

The convolution before it is then followed by the maximum, which is part of its site.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import is_op, rewrite_call, wildcard


@tvm.transform.module_pass(opt_level=0, name="PoolFirst")
class PoolFirst:
    """The pass; it looks at ``main`` alone. Slopes below zero, which turn order round, stay where they are."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with leaky ReLUs behind maxima."""
        x = wildcard()
        leaky = is_op("relax.nn.leakyrelu")(x)
        result = IRModule(module.functions, attrs=module.attrs)
        result["main"] = rewrite_call(
            is_op("relax.nn.max_pool2d")(leaky),
            lambda call, found: _swapped(call, found[leaky], found[x]),
            result["main"],
        )
        return result


def _swapped(pool: relax.Call, leaky: relax.Call, x: relax.Expr) -> relax.Expr:
    if float(leaky.attrs.alpha) < 0:
        return pool
    return relax.Call(leaky.op, [relax.Call(pool.op, [x], pool.attrs)], leaky.attrs)
