from pathlib import Path

import numpy as np
import pytest

from benchmarks.image_suite import Network, _Ours, with_quality
from tvm_dual.errors import BudgetError, PlanError
from tvm_dual.options import AdvancedOptions


def small_network() -> Network:
    calls = np.zeros((2, 1, 4), "float32")
    return Network(
        "small",
        Path("small.onnx"),
        calls,
        calls,
        lambda outputs, published: {"mean": float(outputs.mean()), "off": float(np.abs(outputs - published).max())},
        ("mean", 0.25),
        lambda library: 0.0,
        0.1,
        AdvancedOptions(),
    )


def test_rows_say_whether_their_quality_is_that_of_the_published_model():
    network = small_network()
    published = np.array([[1.0], [3.0]])
    outputs = [published, published + 0.25, published - 0.5, None]
    rows = with_quality(network, [{"engine": name} for name in "abcd"], outputs, published)
    assert [row.get("same_quality") for row in rows] == [True, True, False, None]
    assert rows[2]["quality"] == {"mean": 1.5, "off": 0.5}
    assert rows[3] == {"engine": "d"}


def test_a_build_that_the_budget_refuses_is_a_row_and_no_end(tmp_path):
    error: PlanError = BudgetError("too much is lost")

    class Refusing:
        def build(self, precision, **given):
            assert given["max_drop"] == 0.1
            raise error

    ours = _Ours(small_network(), tmp_path, Refusing())
    assert ours.add("dual", "int8", AdvancedOptions()) is None
    assert ours.refused == [{"engine": "tvm_dual", "mode": "dual", "precision": "int8", "error": "too much is lost"}]
    assert not ours.specs and not ours.reports
    error = PlanError("no such option")
    with pytest.raises(PlanError, match="no such option"):
        ours.add("dual", "int8", AdvancedOptions())
