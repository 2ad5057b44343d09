"""NameHardSwish: however it is written, it is one operator, and computes the same where it is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.name_hard_swish import HARD_SWISH, NameHardSwish
from tests.relay_passes.conftest import built, computed


def of(value) -> relax.Expr:
    return relax.const(value, "float32")


def clipped(value, limit: float = 6.0):
    return relax.op.minimum(relax.op.nn.relu(value), of(limit))


WRITTEN = {
    "last": lambda x: relax.op.divide(relax.op.multiply(x, clipped(relax.op.add(x, of(3.0)))), of(6.0)),
    "swapped": lambda x: relax.op.multiply(relax.op.multiply(clipped(relax.op.add(x, of(3.0))), x), of(1 / 6)),
    "first": lambda x: relax.op.multiply(x, relax.op.divide(clipped(relax.op.add(x, of(3.0))), of(6.0))),
    "sigmoid": lambda x: relax.op.multiply(
        x, clipped(relax.op.add(relax.op.multiply(x, of(0.16666667)), of(0.5)), 1.0)
    ),
    "rounded": lambda x: relax.op.multiply(x, clipped(relax.op.add(relax.op.multiply(x, of(0.1667)), of(0.5)), 1.0)),
}
OTHERS = {
    "two": lambda x: relax.op.divide(relax.op.multiply(x, clipped(relax.op.add(x, of(2.0)))), of(6.0)),
    "wide": lambda x: relax.op.multiply(x, clipped(relax.op.add(relax.op.multiply(x, of(0.2)), of(0.5)), 1.0)),
    "each": lambda x: relax.op.divide(
        relax.op.multiply(x, clipped(relax.op.add(x, of(np.array([[3.0], [2.0]], "float32"))))), of(6.0)
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_way_of_writing_it(name):
    module = NameHardSwish()(built((2, 40), WRITTEN[name]))
    (binding,) = module["main"].body.blocks[0].bindings
    assert binding.value.op.name == HARD_SWISH and binding.value.args[0].same_as(module["main"].params[0])
    x = (4 * np.random.default_rng(0).standard_normal((2, 40))).astype("float32")
    np.testing.assert_allclose(computed(module, x), x * np.clip(x + 3, 0, 6) / 6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay(name):
    module = built((2, 40), OTHERS[name])
    tvm.ir.assert_structural_equal(NameHardSwish()(module), module)
