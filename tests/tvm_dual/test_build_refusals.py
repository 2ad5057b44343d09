"""What a build refuses: settings, evaluations, models that are not there."""

from __future__ import annotations

import pytest

from tvm_dual.builder import Builder, build
from tvm_dual.errors import DataError, EvaluationError, LibraryError, ModelError, PlanError, TvmDualError
from tvm_dual.options import AdvancedOptions


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
