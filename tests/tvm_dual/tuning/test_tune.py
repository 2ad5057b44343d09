"""From a model to records, and to a build that uses them; and what users get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tvm_dual
from schedules.cpu import ISAS
from tvm_dual.builder import Builder
from tvm_dual.cli import main
from tvm_dual.errors import DataError, PlanError, SetupError
from tvm_dual.tuning import records
from tvm_dual.tuning.api import check_tuning, model_kernels, tune_kernels
from tvm_dual.tuning.manifest import read_manifest
from tvm_dual.tuning.workloads import common_workloads


@pytest.fixture(scope="module")
def tuned(model, calibration, gated, tmp_path_factory):
    """Return logs with two trials of each kernel of the gated library."""
    logs = tmp_path_factory.mktemp("logs")
    plan = gated.report.plan
    folder = tvm_dual.tune(
        model, calibration, streaming=True, plan=plan, precisions=("int8",), trials=2, logs=logs, seed=5
    )
    return logs, folder


def test_the_log_says_what_was_measured_on_what(tuned, gated):
    _, folder = tuned
    found = records.read(folder)
    shares = {site.name: site.density for site in gated.report.plan.sites}
    pairs = next(r for r in found if r.workload.family == "row_pairs_int8")
    assert pairs.density == pytest.approx(max(1e-3, shares["gru0"]))
    assert pairs.workload.shape == (120, 48, 40)
    assert {record.seed for record in found} == {5}
    assert not any(record.error for record in found)
    assert read_manifest(folder).versions["apache-tvm"] == "0.27.0.post1"


def test_a_build_says_that_its_kernels_are_tuned_and_computes_the_same(
    tuned, model, calibration, gated, run_stream, tmp_path
):
    logs, _ = tuned
    plan = gated.report.plan
    one = Builder(model, calibration, streaming=True, logs=logs)
    two = Builder(model, calibration, streaming=True, logs=tmp_path, like=one)
    with_logs, without = one.build(plan=plan), two.build(plan=plan)
    kernels = with_logs.report.plan.kernels
    assert {kernel.origin for kernel in kernels} == {"tuned"}
    assert f"kernels: {len(kernels)} tuned" in str(with_logs.report)
    assert {kernel.origin for kernel in without.report.plan.kernels} == {"default"}
    # Sums of bytes are exact in any order, but LLVM may round once for two operations behind them.
    found, wanted = run_stream(with_logs, calibration[0]), run_stream(without, calibration[0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_complete_logs_are_left_as_they_are(tuned, model, calibration, gated):
    logs, folder = tuned
    before = (folder / records.FILE).read_bytes()
    options = {"streaming": True, "plan": gated.report.plan, "precisions": ("int8",), "logs": logs}
    for trials in (2, 0):
        assert tvm_dual.tune(model, calibration, trials=trials, **options) == folder
    assert (folder / records.FILE).read_bytes() == before


def test_without_a_plan_all_forms_are_listed(model, calibration):
    found = model_kernels(model, calibration, streaming=True, precisions=("int8",))
    shapes = {(w.family, w.shape) for w in found}
    assert {("rows_int8", (120, 48, 1)), ("rows_int8", (48, 40, 0)), ("columns_int8", (24, 64))} <= shapes
    assert {("row_pairs_int8", (120, 48, 40)), ("little", (160, 9, 8))} <= shapes
    skipped = next(usage for w, usage in found.items() if (w.family, w.shape) == ("columns_int8", (24, 64)))
    assert 0 < skipped.density < 1


def test_common_shapes_come_in_every_form():
    found = common_workloads("avx2", 1)
    assert {w.family for w in found} == {f"{f}_{p}" for f in ("rows", "columns", "matmul") for p in ("int8", "fp32")}


@pytest.mark.parametrize("trials", [-1, 2.5, "many"])
def test_trials_must_be_a_number(trials):
    with pytest.raises(PlanError, match="trials: found"):
        check_tuning("native", 1, trials, "local", None)


def test_a_target_must_be_known_and_run_where_it_is_measured():
    with pytest.raises(PlanError, match="target 'sparc' is not known"):
        check_tuning("sparc", 1, 1, "local", None)
    with pytest.raises(PlanError, match="target 'sparc' is not known"):
        check_tuning("sparc", 1, 1, "127.0.0.1:1", "key")


def test_a_target_that_does_not_run_here_needs_a_fleet(monkeypatch):
    monkeypatch.setattr("tvm_dual.targets.native_isa", lambda: ISAS["avx2"])
    with pytest.raises(PlanError, match="target 'avx512_vnni' does not run on this CPU"):
        check_tuning("avx512_vnni", 1, 1, "local", None)
    monkeypatch.setattr("tvm_dual.tuning.fleet.Tracker.servers", lambda self: 1)
    assert check_tuning("avx512_vnni", 1, 1, "127.0.0.1:1", "key") == "avx512_vnni"


def test_a_tracker_must_be_named_with_a_key_and_answer():
    with pytest.raises(PlanError, match="accepted: HOST:PORT"):
        check_tuning("native", 1, 1, "nowhere", "key")
    with pytest.raises(PlanError, match="no key"):
        check_tuning("native", 1, 1, "127.0.0.1:1", None)
    with pytest.raises(SetupError, match=r"tracker 127\.0\.0\.1:1 does not answer"):
        check_tuning("native", 1, 1, "127.0.0.1:1", "key")


def test_logs_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    # Nobody may make files in the second, not even root.
    for logs in (tmp_path / "file", Path("/sys")):
        with pytest.raises(DataError, match="cannot be written"):
            tune_kernels({}, "avx2", logs=logs)


def test_the_command_reports_a_log(tuned, capsys):
    logs, folder = tuned
    assert main(["tune", "--report", "--logs", str(logs)]) == 0
    assert "row_pairs_int8 120x48x40" in capsys.readouterr().out
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "--logs", "nowhere"], "no records in it"),
        ([], "accepted: a model with --calibration"),
        (["model.onnx", "--shapes"], "accepted: a model with --calibration"),
        (["--shapes", "--trials", "-3"], "trials: found -3"),
        (["--shapes", "--target", "sparc"], "target 'sparc' is not known"),
        (["--shapes", "--rpc", "127.0.0.1:1", "--key", "k"], "does not answer"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(arguments, message, capsys):
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_goes_on_with_a_log(tuned, model, calibration, tmp_path, capsys):
    """Of the kernels that planning compares some are in the log; with no trials none is measured."""
    logs, folder = tuned
    before = (folder / records.FILE).read_bytes()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "data.npz", *calibration)
    arguments = ["--calibration", str(tmp_path / "data.npz"), "--streaming", "--precision", "int8"]
    assert main(["tune", str(tmp_path / "model.onnx"), *arguments, "--logs", str(logs), "--trials", "0"]) == 0
    assert "kernels decided" in capsys.readouterr().out
    assert (folder / records.FILE).read_bytes() == before
