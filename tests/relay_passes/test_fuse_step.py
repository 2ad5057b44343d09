"""FuseStep: which modules become one kernel."""

from __future__ import annotations

import pytest
from tvm import relax

from relay_passes.fuse_step import FuseStep


def module(twice: bool):
    """Return a legalized ``main`` of two results, or of one that is given twice."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y, z = builder.emit(relax.op.exp(x)), builder.emit(relax.op.tanh(x))
            output = builder.emit_output(relax.Tuple([y, y if twice else z]))
        builder.emit_func_output(output)
    return relax.transform.LegalizeOps()(builder.get())


@pytest.mark.parametrize("twice", [False, True])
def test_a_result_that_is_given_twice_would_be_written_once(twice):
    before = module(twice)
    after = FuseStep()(before)
    assert after.same_as(before) == twice
    assert any("step" in target.name_hint for target in after.functions) != twice
