"""``build`` on a tiny streaming model: values, budget, plans, files, effort, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvm_dual
import tvm_dual.calibration
from schedules import cpu
from tvm_dual.builder import Builder, build
from tvm_dual.container import read_container, write_container
from tvm_dual.errors import DataError, EvaluationError, LibraryError, ModelError, PlanError, TvmDualError
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan

ROOT = Path(__file__).parents[2]
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


# Calls.


def test_calls_with_states_and_streams_agree(gated, calibration, run_stream):
    states, found = gated.initial_state(), []
    for frame in calibration[0][:10]:
        y, *states = gated(frame.reshape(gated.metadata.inputs[0].shape), *states)
        found.append(y.reshape(-1))
    np.testing.assert_array_equal(found, run_stream(gated, calibration[0][:10]))


def test_results_are_the_callers_own(gated, calibration):
    step = gated.stream()
    first = step(calibration[0][0])
    kept = first.copy()
    step(calibration[0][1])
    np.testing.assert_array_equal(first, kept)
    step.reset()
    np.testing.assert_array_equal(step(calibration[0][0]), kept)


def test_two_streams_do_not_disturb_each_other(gated, calibration, run_stream):
    one, two = gated.stream(), gated.stream()
    pairs = [(one(a).reshape(-1), two(b).reshape(-1)) for a, b in zip(*calibration, strict=True)][:20]
    np.testing.assert_array_equal([a for a, _ in pairs], run_stream(gated, calibration[0][:20]))
    np.testing.assert_array_equal([b for _, b in pairs], run_stream(gated, calibration[1][:20]))


@pytest.mark.parametrize(
    "arrays",
    [
        (),
        (np.zeros((1, 1, 40), "float32"),),
        (np.zeros((1, 1, 39), "float32"), np.zeros((1, 1, 40), "float32")),
        (np.zeros((1, 1, 40)), np.zeros((1, 1, 40), "float32")),
        ([0.0] * 40, np.zeros((1, 1, 40), "float32")),
        (np.zeros((1, 1, 40), "float32"), None),
    ],
)
def test_wrong_calls(gated, arrays):
    with pytest.raises(DataError, match="accepted"):
        gated(*arrays)


@pytest.mark.parametrize(
    "arrays",
    [(), (np.zeros(41, "float32"),), (np.zeros(40),), ("x",), (np.zeros(40, "float32"), np.zeros(40, "float32"))],
)
def test_wrong_steps(gated, arrays):
    with pytest.raises(DataError, match="accepted"):
        gated.stream()(*arrays)


# What a build refuses.


def test_wrong_evaluations(builder):
    def fails(library):
        raise RuntimeError("no data")

    options = AdvancedOptions(mode="dense")
    for evaluate, text in (
        (fails, "no data"),
        (lambda _: float("nan"), "nan"),
        (lambda _: "good", "good"),
        (lambda _: None, "None"),
    ):
        with pytest.raises(EvaluationError, match=text):
            builder.build(evaluate=evaluate, max_drop=0.1, options=options)
    with pytest.raises(EvaluationError, match="max_drop"):
        builder.build(evaluate=lambda _: 1.0, options=options)
    for drop in (-0.1, float("nan")):
        with pytest.raises(EvaluationError, match="max_drop"):
            builder.build(max_drop=drop, options=options)


@pytest.mark.parametrize(
    "data, text",
    [
        ([], "empty"),
        ([np.zeros((0, 40), "float32")], "empty"),
        ([np.zeros((5, 39), "float32")], r"item 0.*shape \(5, 39\).*40"),
        ([np.zeros((5, 40), "float32"), np.zeros((5, 40))], "item 1.*float64"),
        ([np.full((5, 40), np.nan, "float32")], "NaN"),
        ([np.full((5, 40), np.inf, "float32")], "infinity"),
        (np.zeros((5, 40), "float32"), "list"),
        (7, "int"),
        (["frames"], "item 0"),
    ],
)
def test_wrong_calibration(builder, data, text):
    with pytest.raises(DataError, match=text):
        tvm_dual.calibration.check_calibration(data, builder._dense.metadata.inputs)


def test_calibration_may_be_a_generator(builder, calibration):
    inputs = builder._dense.metadata.inputs
    one = tvm_dual.calibration.check_calibration((stream for stream in calibration), inputs)
    two = tvm_dual.calibration.check_calibration([stream[:, None, None] for stream in calibration], inputs)
    assert one.digest == two.digest == builder._data.digest and one.calls == 300


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"target": "arm"}, PlanError, r"'arm'.*accepted.*avx2"),
        ({"threads": 0}, PlanError, r"threads.*0.*accepted"),
        ({"threads": 10_000}, PlanError, r"threads.*accepted"),
        ({"threads": 1.5}, PlanError, r"threads.*accepted"),
    ],
)
def test_wrong_settings(model, calibration, options, error, text):
    with pytest.raises(error, match=text):
        Builder(model, calibration, streaming=True, **options)


def test_unknown_precision(builder):
    with pytest.raises(PlanError, match=r"'fp8'.*fp32, int8"):
        builder.build("fp8")


def test_a_missing_model_and_other_errors_share_a_base(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        build(tmp_path / "no.onnx", [])
    assert all(issubclass(e, TvmDualError) for e in (ModelError, DataError, PlanError, LibraryError, EvaluationError))


# Files.


def test_a_reloaded_library_gives_the_same_bits(gated, library_file, calibration, run_stream):
    again = tvm_dual.load(library_file)
    assert again.metadata == gated.metadata
    np.testing.assert_array_equal(run_stream(again, calibration[0]), run_stream(gated, calibration[0]))
    again.effort = gated.effort = INF
    np.testing.assert_array_equal(run_stream(again, calibration[0][:9]), run_stream(gated, calibration[0][:9]))
    gated.effort = 1.0


SCRIPT = """
import sys
for name in ("torch", "xgboost", "onnx", "scipy", "matplotlib", "rich"):
    sys.modules[name] = None
import numpy as np
import tvm_dual
import tvm_dual.calibration
step = tvm_dual.load(sys.argv[1]).stream()
np.save(sys.argv[3], np.stack([step(frame).reshape(-1) for frame in np.load(sys.argv[2])]))
"""


@pytest.mark.parametrize("runtime_alone", [False, True])
def test_a_deployment_machine(gated, library_file, calibration, run_stream, tmp_path, runtime_alone):
    np.save(tmp_path / "x.npy", calibration[0][:30])
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"TVM_USE_RUNTIME_LIB": "1"} if runtime_alone else {})
    command = [sys.executable, "-c", SCRIPT, str(library_file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), run_stream(gated, calibration[0][:30]))


def test_export_to_where_nothing_can_be_written(gated, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder", tmp_path / "missing" / "a.so", tmp_path / "file" / "a.so", Path("/proc/a.so")):
        with pytest.raises(LibraryError, match=r"cannot be written.*accepted"):
            gated.export_library(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_files_that_are_no_library(library_file, tmp_path):
    content = library_file.read_bytes()
    path = tmp_path / "broken.so"
    middle = len(content) // 2
    for wrong in (b"", b"text", content[:-1], content[:middle], content[:middle] + b"\0" + content[middle:]):
        path.write_bytes(wrong)
        with pytest.raises(LibraryError, match=r"broken\.so.*accepted"):
            tvm_dual.load(path)
    for at in (0, 5000, middle, len(content) - 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        with pytest.raises(LibraryError, match=r"broken\.so.*accepted"):
            tvm_dual.load(path)
    with pytest.raises(LibraryError, match="cannot be read"):
        tvm_dual.load(tmp_path / "missing.so")


def test_a_library_of_another_version(library_file, tmp_path):
    raw, arrays = read_container(library_file)
    for change in ({"versions": raw["versions"] | {"apache-tvm": "0.1"}}, {"format": 99}, {"versions": None}):
        write_container(tmp_path / "old.so", b"\x7fELF", arrays, json.loads(json.dumps(raw | change)))
        with pytest.raises(LibraryError, match=r"old\.so.*another version.*accepted"):
            tvm_dual.load(tmp_path / "old.so")


def test_a_cpu_that_lacks_something(library_file, monkeypatch):
    monkeypatch.setattr("tvm_dual.metadata.missing_flags", lambda isa: ["avx512_vnni"])
    with pytest.raises(LibraryError, match=r"lacks avx512_vnni.*avx2"):
        tvm_dual.load(library_file)


def test_a_step_of_planning_is_no_product(builder, tmp_path):
    with pytest.raises(LibraryError, match="accepted"):
        builder._dense.export_library(tmp_path / "a.so")
    with pytest.raises(PlanError, match="accepted"):
        _ = builder._dense.report
