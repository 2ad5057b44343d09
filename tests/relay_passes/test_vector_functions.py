"""VectorFunctions: exponentials of loops are arithmetic that gives the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from scipy.special import expit, softmax
from tvm import relax

from relay_passes.schedule_loops import ScheduleLoops
from relay_passes.vector_functions import VectorFunctions
from tests.relay_passes.conftest import built, computed

N = 1001
ENDS = [np.inf, -np.inf, np.nan, 0.0, 88.0, 89.0, -87.0, -88.0, 1e30, -1e30]


def loops(operator, dtype: str = "float32") -> tvm.IRModule:
    """Return the kernels of an operator as they reach the pass."""
    passes = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps()]
    return tvm.transform.Sequential([*passes, relax.transform.FuseTIR(), ScheduleLoops(1)])(
        built((3, N), operator, dtype=dtype)
    )


@pytest.mark.parametrize(
    "operator, wanted, error",
    [
        (relax.op.exp, np.exp, {"rtol": 1e-6, "atol": 1e-37}),
        (relax.op.sigmoid, expit, {"rtol": 0, "atol": 1e-6}),
        (relax.op.tanh, np.tanh, {"rtol": 0, "atol": 1e-6}),
        (relax.op.nn.softmax, lambda x: softmax(x, axis=-1), {"rtol": 1e-5, "atol": 1e-12}),
        (lambda x: relax.op.exp(relax.op.tanh(relax.op.exp(x))), lambda x: np.exp(np.tanh(np.exp(x))), {"rtol": 2e-6}),
    ],
    ids=["exp", "sigmoid", "tanh", "softmax", "chain"],
)
def test_values(operator, wanted, error):
    module = VectorFunctions()(loops(operator))
    assert not any(f"T.{name}(" in module.script() for name in ("exp", "sigmoid", "tanh"))
    x = (20 * np.random.default_rng(0).standard_normal((3, N))).astype("float32")
    np.testing.assert_allclose(computed(module, x), wanted(x.astype("float64")), **error)


def test_exponentials_of_what_is_no_number_or_too_large():
    x = np.zeros((3, N), "float32")
    x[0, : len(ENDS)] = ENDS
    with np.errstate(over="ignore"):
        wanted = np.exp(x)
    wanted[wanted < 1.2e-38] = 0  # what has fewer than 24 bits
    np.testing.assert_allclose(computed(VectorFunctions()(loops(relax.op.exp)), x), wanted, rtol=1e-6)


@pytest.mark.parametrize("operator, dtype", [(relax.op.exp, "float64"), (relax.op.log, "float32")])
def test_others_stay(operator, dtype):
    module = loops(operator, dtype)
    tvm.ir.assert_structural_equal(VectorFunctions()(module), module)
