"""PoolFirst: leaky ReLUs stand behind maxima, where both are the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.pool_first import PoolFirst


def model(alpha: float) -> tvm.IRModule:
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 2, 7, 6], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            leaky = builder.emit(relax.op.nn.leakyrelu(x, alpha))
            result = builder.emit_output(relax.op.nn.max_pool2d(leaky, [3, 2], [2, 1], [1, 1, 1, 0]))
        builder.emit_func_output(result)
    return builder.get()


def operators(module: tvm.IRModule) -> list[str]:
    bindings = module["main"].body.blocks[0].bindings
    return [b.value.op.name for b in bindings if isinstance(b.value, relax.Call)]


@pytest.mark.parametrize("alpha, moved", [(0.1, True), (0.0, True), (2.0, True), (-0.5, False)])
def test_maxima_come_first_where_order_is_kept(alpha, moved):
    module, x = model(alpha), np.random.default_rng(0).standard_normal((1, 2, 7, 6)).astype("float32")
    after = PoolFirst()(module)
    names = ["relax.nn.leakyrelu", "relax.nn.max_pool2d"]
    assert operators(after) == (names[::-1] if moved else names)
    found = [
        relax.VirtualMachine(tvm.compile(m, target="llvm"), tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
        for m in (module, after)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
