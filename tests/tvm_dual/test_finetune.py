"""``finetune``: trained little modules beside the closed form, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

import tvm_dual
from tests.tvm_dual.conftest import tiny_model
from tvm_dual import finetuning, planner, variants
from tvm_dual.cli import main
from tvm_dual.errors import DataError, PlanError, SetupError
from tvm_dual.finetuning import check_trainable
from tvm_dual.judging import compare_in_budget, tune
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import FineTuning, Plan, Trial
from tvm_dual.quality import make_quality
from tvm_dual.report import Report
from tvm_dual.search import Search, search_limit
from tvm_dual.variants import Fits

FORMS = {"dense0": ("dense", ""), "gru0": ("rows", "rows"), "dense1": ("dense", ""), "dense2": ("dense", "")}
OPTIONS = AdvancedOptions(finetune_steps=40, site_dimensions={"gru0": 4}, search_steps=0)


def quiet(*told) -> None:
    """Take progress, and tell nobody."""


@pytest.fixture(scope="module")
def tuned(builder):
    """Return a model, its judge, its modules after training, the variant before it, and the comparison."""
    model = builder.model("fp32", OPTIONS)
    quality = make_quality(builder._dense, builder._data, None, None)
    fits = Fits(model)
    gated = fits.variant(FORMS)
    return model, quality, fits, gated, tune(model, quality, fits, gated, quiet)


def test_training_is_judged_beside_the_closed_form(tuned):
    model, quality, fits, gated, found = tuned
    assert found.steps == 40 and found.closed_form.limit == found.tuned.limit
    gated.set_limit(found.closed_form.limit)
    assert quality.judge(gated.library) == found.closed_form.quality
    assert found.kept and fits.fit("gru0", FORMS["gru0"]).tuned
    assert not Fits(model).fit("gru0", FORMS["gru0"]).tuned, (
        "another plan of the same model starts from the closed form"
    )


def test_what_judges_worse_is_not_used(builder, monkeypatch):
    monkeypatch.setattr(finetuning, "RELATIVE_RATE", 10.0)
    model = builder.model("fp32", replace(OPTIONS, finetune_steps=3))
    quality = make_quality(builder._dense, builder._data, None, None)
    fits = Fits(model)
    found = tune(model, quality, fits, fits.variant(FORMS), quiet)
    assert not found.kept and not fits.fit("gru0", FORMS["gru0"]).tuned


def test_both_are_searched_within_the_budget(tuned):
    model, quality, fits, gated, found = tuned
    best = search_limit(model, quality, fits.variant(FORMS), quiet)
    whole = compare_in_budget(model, quality, fits, gated, found, best, quiet)
    assert whole.tuned_in_budget == best.found
    assert whole.closed_form_in_budget.limit <= best.found.limit
    assert quality.accepts(whole.closed_form_in_budget.quality)


@pytest.mark.parametrize("form", ["rows", "little"])
def test_a_plan_that_is_applied_trains_nothing_again(tuned, monkeypatch, form):
    model, quality, fits, _, found = tuned
    variant = fits.variant(FORMS | {"gru0": (form, form)})
    plan = planner._plan(model, quality, variant, found.tuned if form == "rows" else None, finetuning=found)
    monkeypatch.setattr(variants, "finetune", lambda *arguments: pytest.fail("trained again"))
    untrained = replace(model, options=replace(model.options, finetune_steps=0))
    again = planner.apply_plan(untrained, quality, plan, quiet).report.plan
    assert {site.name: site.tuned for site in again.sites}["gru0"]
    assert again.quality == pytest.approx(plan.quality) and again.finetuning == found


def test_a_budget_that_the_closed_form_does_not_meet(tuned):
    model, quality, fits, gated, found = tuned
    best = Search(gated, [], Trial("damage", 0.1, 0.1, 1.0, 1.0))
    strict = replace(quality, max_drop=-1.0)
    whole = compare_in_budget(model, strict, fits, gated, found, best, quiet)
    assert whole.closed_form_in_budget is None and whole.tuned_in_budget == best.found


def test_the_comparison_stands_in_plan_and_report(dense):
    closed, tuned = (Trial("damage", 0.2, density, quality, 90.0) for density, quality in ((0.14, 0.9), (0.12, 0.93)))
    found = FineTuning(400, closed, tuned, None, tuned)
    plan = replace(dense.report.plan, finetuning=found)
    assert Plan.from_json(plan.to_json()) == plan
    text = str(Report(plan))
    assert "fine-tuning, 400 steps: used; at one bound quality 0.93 (12.0% open), closed form 0.9 (14.0% open)" in text
    assert "within the budget: fine-tuned 12.0% open, 90 us; closed form no bound meets it" in text
    assert "fine-tuning" not in str(dense.report)
    assert "not used" in str(Report(replace(plan, finetuning=FineTuning(400, tuned, closed))))


def test_the_entry_builds_with_steps(calibration, monkeypatch):
    # Whether a gate pays on a model this small differs from run to run.
    monkeypatch.setattr(planner, "best_gated", lambda model, fits, exact, progress: fits.variant(FORMS))
    options = AdvancedOptions(rule="damage", search_steps=0)
    library = tvm_dual.finetune(tiny_model(), calibration, steps=2, streaming=True, options=options)
    assert library.report.plan.finetuning.steps == 2
    assert np.isfinite(library.stream()(calibration[0][0])).all()


@pytest.mark.parametrize("steps", [0, -1, 1.5, None])
def test_wrong_steps(steps):
    with pytest.raises(PlanError, match=r"steps=.*accepted: 1 or more"):
        tvm_dual.finetune("model.onnx", [], steps=steps)


def test_a_mode_that_gates_nothing():
    with pytest.raises(PlanError, match=r"'dense'.*accepted: mode 'dual'"):
        tvm_dual.finetune("model.onnx", [], options=AdvancedOptions(mode="dense"))


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SetupError, match=r"torch is not installed.*accepted"):
        tvm_dual.finetune("model.onnx", [])


def test_nothing_to_train(builder):
    sites, seen = builder._sites, builder._observations
    with pytest.raises(PlanError, match=r"dense0, dense1.*none.*accepted"):
        check_trainable({name: site for name, site in sites.items() if site.kind == "dense"}, seen)
    with pytest.raises(PlanError, match="dense0"):
        builder.build(options=replace(OPTIONS, keep_dense=("gru0",)))


def test_nothing_to_train_on(builder):
    seen = {"gru0": replace(builder._observations["gru0"], runs=tuple(range(0, 300, 20)))}
    with pytest.raises(DataError, match=r"run of consecutive calls.*is 20; accepted: at least 49"):
        check_trainable({"gru0": builder._sites["gru0"]}, seen)


def test_the_command_line(tmp_path, capsys):
    arguments = ["build", "a.onnx", "--calibration", str(tmp_path / "a.npz"), "--out", str(tmp_path / "a.so")]
    np.savez(tmp_path / "a.npz", np.zeros((4, 2), "float32"))
    assert main([*arguments, "--finetune", "0"]) == 2
    assert "steps=0; accepted: 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "a.so").exists()
