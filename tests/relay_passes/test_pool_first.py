"""PoolFirst: leaky ReLUs stand behind maxima, where both are the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.pool_first import PoolFirst
from tests.relay_passes.conftest import built, computed, operators


def model(alpha: float) -> tvm.IRModule:
    return built(
        (1, 2, 7, 6),
        lambda x: relax.op.nn.leakyrelu(x, alpha),
        lambda y: relax.op.nn.max_pool2d(y, [3, 2], [2, 1], [1, 1, 1, 0]),
    )


@pytest.mark.parametrize("alpha, moved", [(0.1, True), (0.0, True), (2.0, True), (-0.5, False)])
def test_maxima_come_first_where_order_is_kept(alpha, moved):
    module, x = model(alpha), np.random.default_rng(0).standard_normal((1, 2, 7, 6)).astype("float32")
    after = PoolFirst()(module)
    names = ["leakyrelu", "max_pool2d"]
    assert operators(after) == (names[::-1] if moved else names)
    np.testing.assert_allclose(computed(after, x), computed(module, x), rtol=1e-6)
