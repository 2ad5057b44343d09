"""``build`` on a tiny streaming model: values, budget, plans, threads, effort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules import cpu
from tvm_dual.builder import build
from tvm_dual.errors import PlanError
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan

INF = float("inf")


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    return 1 - float(np.sqrt(((found - wanted) ** 2).mean() / ((wanted - wanted.mean(axis=0)) ** 2).mean()))


@pytest.fixture(scope="module")
def exact(model, calibration) -> np.ndarray:
    """Return what ONNX Runtime makes of the first stream."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": calibration[0][:, None]})[0].reshape(len(calibration[0]), -1)


# What a build gives.


def test_every_row_in_fp32_is_the_model(dense, calibration, exact, run_stream):
    np.testing.assert_allclose(run_stream(dense, calibration[0]), exact, atol=3e-6)
    assert dense.report.plan.quality == pytest.approx(1, abs=1e-4)


def test_a_build_stays_within_its_budget(built, calibration, exact, run_stream):
    plan = built.report.plan
    assert plan.max_drop == 0.05 and plan.dense_quality == 1
    assert plan.quality >= 0.95
    assert agreement(run_stream(built, calibration[0]), exact) >= 0.93
    assert [site.name for site in plan.sites] == ["dense0", "gru0", "dense1", "dense2"]
    assert plan.samples == 300 and {trial.rule for trial in plan.trials} <= {"damage", "activation"}
    assert "gru0" in str(built.report)


def test_modes(builder, calibration, exact, run_stream):
    skip = builder.build("fp32", options=AdvancedOptions(mode="skip"))
    np.testing.assert_allclose(run_stream(skip, calibration[0]), exact, atol=3e-6)
    assert {site.input for site in skip.report.plan.sites} == {"dense", "columns"}
    little = builder.build("int8", options=AdvancedOptions(mode="little"))
    assert "little" in {site.input for site in little.report.plan.sites}
    assert 0.3 < agreement(run_stream(little, calibration[0]), exact) < 1
    for library in (skip, little):
        assert library.all_rows() == {}


def test_an_earlier_plan_gives_the_same_library(builder, gated, calibration, run_stream):
    plan = gated.report.plan
    again = Plan.from_json(plan.to_json())
    assert again == plan
    library = builder.build(plan=again)
    np.testing.assert_array_equal(run_stream(library, calibration[0]), run_stream(gated, calibration[0]))


def test_a_plan_of_another_model(builder, built):
    plan = built.report.plan
    with pytest.raises(PlanError, match=r"sites.*gru0"):
        builder.build(plan=replace(plan, sites=plan.sites[:1]))


def test_threads_give_the_same_values(model, calibration, dense, run_stream):
    if cpu.available_cores() < 2:
        pytest.skip("one core")
    two = build(model, calibration, streaming=True, precision="fp32", threads=2, options=AdvancedOptions(mode="dense"))
    assert two.metadata.threads == 2
    np.testing.assert_allclose(run_stream(two, calibration[0]), run_stream(dense, calibration[0]), atol=3e-6)


# Effort.


def test_open_rows_grow_with_effort(gated, calibration):
    opened = []
    for effort in gated.metadata.plan.efforts:
        gated.effort, step, total = effort, gated.stream(), 0
        for frame in calibration[0][:40]:
            step(frame)
            total += sum(gated.last_open_rows().values())
        opened.append(total)
    gated.effort = 1.0
    assert opened == sorted(opened)
    assert opened[0] == 0 and opened[-1] == 40 * sum(gated.all_rows().values())
    assert gated.all_rows() == {"dense0": 48, "gru0": 120, "dense1": 64, "dense2": 24}


def test_full_effort_is_the_dense_model(gated, calibration, exact, run_stream):
    gated.effort = INF
    full = agreement(run_stream(gated, calibration[0]), exact)
    gated.effort = 0
    none = agreement(run_stream(gated, calibration[0]), exact)
    gated.effort = 1.0
    assert full > 0.95 and full > none


@pytest.mark.parametrize("effort", [-1, 0.3, float("nan"), "high", None])
def test_unknown_effort(gated, effort):
    with pytest.raises(PlanError, match=r"effort.*accepted: 0\.0, 0\.25"):
        gated.effort = effort
    assert gated.effort == 1.0
