"""What a build refuses: settings, evaluations, models that are not there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tvm_dual.builder import Builder, build
from tvm_dual.calibration import check_calibration
from tvm_dual.errors import DataError, EvaluationError, LibraryError, ModelError, PlanError, TvmDualError
from tvm_dual.metadata import Tensor
from tvm_dual.options import AdvancedOptions
from tvm_dual.quality import make_quality


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
    for drop in (-0.1, float("nan"), "0.1"):
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


@pytest.mark.parametrize("knobs", [{"keep_dense": ("lstm7",)}, {"site_dimensions": {"lstm7": 8}}])
def test_options_that_name_no_site(builder, knobs):
    with pytest.raises(PlanError, match=r"no site 'lstm7'.*accepted: dense0, gru0"):
        builder.build(options=AdvancedOptions(**knobs))


def test_agreement_needs_numbers():
    tensor = Tensor("y", (1, 1), "float32")
    library = SimpleNamespace(
        metadata=SimpleNamespace(outputs=(tensor,)), stream=lambda: lambda x: np.full((1, 1), np.inf, "float32")
    )
    data = check_calibration([np.zeros((3, 4), "float32")], (Tensor("x", (1, 4)),))
    with pytest.raises(EvaluationError, match=r"dense model gives NaN or infinity.*accepted: finite"):
        make_quality(library, data, None, None)


def test_agreement_over_sequences_of_different_lengths():
    """Half of the outputs off by twice their spread: the error's root mean square is sqrt(2) spreads."""

    def library(shift: float):
        def run(x):
            return np.where(np.arange(len(x))[:, None] % 2, x, x + shift), np.array([True])

        outputs = (Tensor("y", (-1, 1)), Tensor("long", (1,), "bool"))
        return SimpleNamespace(metadata=SimpleNamespace(outputs=outputs), stream=lambda: run)

    alternating = np.tile(np.array([-1, -1, 1, 1], "float32"), 100)[None, :, None]
    data = check_calibration([alternating, alternating[:, :200]], (Tensor("x", (-1, 1), symbols=("t", "")),))
    judge = make_quality(library(0.0), data, None, None).judge
    assert judge(library(0.0)) == 1
    assert judge(library(2.0)) == pytest.approx(1 - 2**0.5, abs=0.01)


def test_a_missing_model_and_other_errors_share_a_base(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        build(tmp_path / "no.onnx", [])
    assert all(issubclass(e, TvmDualError) for e in (ModelError, DataError, PlanError, LibraryError, EvaluationError))


def test_only_builders_of_the_same_layers_share_little_modules():
    def builder(outputs: int, like=None):
        torch.manual_seed(0)
        layer, calls = torch.nn.Linear(6, outputs).eval(), np.zeros((3, 1, 6), "float32")
        return Builder(layer, [calls], example_inputs=(torch.zeros(1, 6),), like=like)

    first = builder(5)
    assert builder(5, like=first)._known is first._known
    with pytest.raises(PlanError, match=r"like: a builder of dense0 \(5, 6\); accepted: one of dense0 \(7, 6\)"):
        builder(7, like=first)
