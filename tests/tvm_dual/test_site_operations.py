"""Plans of few operations: what is counted, and what becomes of a model that is planned by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relay_passes.site_plan import COARSE
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.builder import Builder
from tvm_dual.errors import PlanError
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.site_operations import count_sites

OPTIONS = AdvancedOptions(
    rule="damage", minimize="operations", search_steps=0, dimension_share=0.25, keep_dense=("conv2d0",)
)
PIXELS = 12 * 11


@pytest.fixture(scope="module")
def builder() -> Builder:
    return blocks_builder()


def test_forms_skip_zeros_and_count_what_is_left(builder):
    model = builder.model("fp32", OPTIONS)
    found = count_sites(model, {"conv2d1": (16, 32)})
    site, (x,) = model.sites["conv2d1"], model.observations["conv2d1"].inputs
    nonzero, (rows, inputs) = float((x != 0).mean()), site.weight.shape
    costs = found["conv2d1"]
    assert costs.form == ("columns", "") and costs.gated == ("rows", "nonzeros") and 0.2 < nonzero < 0.8
    np.testing.assert_allclose(costs.exact, PIXELS * rows * inputs * nonzero)
    for size in (16, 32):
        little = PIXELS * (nonzero * size * inputs + size * rows)
        np.testing.assert_allclose([costs.closed[size], costs.alone[size]], little)
        np.testing.assert_allclose(costs.opened[size], little + costs.exact)
        # Dot products of single outputs skip nothing.
        np.testing.assert_allclose(costs.singles[size].at(0.25), little + 0.25 * PIXELS * rows * inputs)
    assert [other.gated for other in costs.others] == [("rows", COARSE)]
    first = found["conv2d0"]
    assert first.form == first.gated == ("dense", "") and not first.alone


def test_a_model_is_planned_by_operations_within_its_budget(builder):
    library = builder.build("fp32", options=OPTIONS, max_drop=0.2)
    plan = library.report.plan
    assert plan.quality >= plan.dense_quality - 0.2 and Plan.from_json(plan.to_json()) == plan
    skipping = builder.build("fp32", options=AdvancedOptions(mode="skip"))
    assert library.report.operations < skipping.report.operations < library.report.all_operations
    assert not any(site.little == "copy" for site in plan.sites)
    assert "fastest" not in str(library.report) and "slower" not in str(library.report)
    again = builder.build("fp32", options=OPTIONS, plan=plan)
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(again(*call), library(*call), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "more"), [("int8", {}), ("bf16", {}), ("fp32", {"closed_share": 0.5})])
def test_other_plans_are_not_made_by_operations(builder, precision, more):
    with pytest.raises(PlanError, match=r"minimize='operations' for precision .*; accepted: fp32 builds"):
        builder.build(precision, options=replace(OPTIONS, **more))


def test_what_is_to_be_few_is_time_or_operations():
    with pytest.raises(PlanError, match="minimize='energy' is out of range"):
        AdvancedOptions(minimize="energy")
