"""Little modules trained together: the whole model is closer to the exact one, and plans say so and repeat it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual import joint_training, step_search, variants
from tvm_dual.finetuning import finetune
from tvm_dual.forms import trains_alone
from tvm_dual.gates import FAR
from tvm_dual.joint_training import operations_per_call, train_together
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import FineTuning, Plan, Trial
from tvm_dual.quality import mean_square, outputs_of
from tvm_dual.report import Report
from tvm_dual.variants import Fits

ALONE = ("conv2d1", "conv2d2", "conv2d3")
OPTIONS = AdvancedOptions(dimensions=16, finetune_steps=40, little_kinds=("projection",), gate_unit="tile")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    # More threads would wait for each other: matrices are small, and other tests have the other cores.
    monkeypatch.setattr(joint_training, "available_cores", lambda: 1)
    monkeypatch.setattr("tvm_dual.finetuning.available_cores", lambda: 1)


@pytest.fixture(scope="module")
def builder():
    # Of more directions than little modules have.
    return blocks_builder(decay=0.95)


def forms_of(model):
    return {name: ("little", "dense") if name in ALONE else ("dense", "") for name in model.sites}


def error(library, builder) -> float:
    streams = builder._data.streams
    found, wanted = outputs_of(library, streams), outputs_of(builder._dense, streams)
    return mean_square([a - b for a, b in zip(found, wanted, strict=True)])


def test_outputs_are_closer_to_the_exact_models_than_after_layer_by_layer(builder):
    model = builder.model("fp32", OPTIONS)
    forms, told = forms_of(model), []
    closed = Fits(model)
    by_layer = Fits(model)
    assert by_layer.finetune(forms, FAR, lambda *_: None)
    together = Fits(model)
    assert together.train_together(forms, lambda *at: told.append(at))
    errors = [error(fits.variant(forms).library, builder) for fits in (closed, by_layer, together)]
    assert errors[2] < 0.5 * errors[0] and errors[2] < errors[1]
    assert told[-1] == ("fine-tuning 3 layers together", 40, 40)
    assert all(together.fit(name, forms[name]).tuned for name in ALONE)
    assert not closed.fit("conv2d1", forms["conv2d1"]).tuned


def test_each_set_of_layers_is_trained_once(builder, monkeypatch):
    model = builder.model("fp32", replace(OPTIONS, finetune_steps=3))
    forms, first, again = forms_of(model), Fits(model), Fits(model)
    first.train_together(forms, lambda *_: None)
    monkeypatch.setattr(variants, "train_together", lambda *_: pytest.fail("trained again"))
    again.train_together(forms, lambda *_: None)
    assert again.fit("conv2d2", forms["conv2d2"]) is first.fit("conv2d2", forms["conv2d2"])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        again.train_together(forms | {"conv2d1": ("dense", "")}, lambda *_: None)


def test_what_was_trained_stays_when_others_are_fitted_again(builder):
    model = builder.model("fp32", replace(OPTIONS, finetune_steps=3))
    forms, fits = forms_of(model) | {"conv2d3": ("rows", "dense")}, Fits(model)
    fits.train_together(forms, lambda *_: None)
    trained = fits.fit("conv2d1", forms["conv2d1"])
    fits.refit(forms, "damage", {name: 1e-3 if name == "conv2d3" else FAR for name in ALONE})
    assert fits.fit("conv2d1", forms["conv2d1"]) is trained and trained.tuned
    assert not fits.fit("conv2d3", forms["conv2d3"]).tuned


def test_training_is_the_same_each_time_and_gives_threads_back(builder):
    model = builder.model("fp32", OPTIONS)
    forms, threads = forms_of(model), torch.get_num_threads()
    start = {name: Fits(model).fit(name, forms[name]) for name in ALONE}
    given = (model.compiler.module, model.sites, start, model.data.streams, 5)
    one, two = train_together(*given), train_together(*given)
    for name in ALONE:
        np.testing.assert_array_equal(one[name].little.module.weight, two[name].little.module.weight)
    assert torch.get_num_threads() == threads


def test_nothing_is_trained_without_steps_or_layers_that_stand_alone(builder):
    model, quiet = builder.model("fp32", OPTIONS), lambda *_: None
    forms = forms_of(model)
    untrained = replace(model, options=replace(OPTIONS, finetune_steps=0))
    assert not Fits(untrained).train_together(forms, quiet)
    gated = {name: ("rows", "dense") if name in ALONE else form for name, form in forms.items()}
    assert not Fits(model).train_together(gated, quiet)
    assert not trains_alone(model.sites["conv2d1"], ("little", "copy8"))
    assert not trains_alone(model.sites["dense0"], ("little", ""))


def test_operations_are_all_multiplications_of_a_call(builder):
    sites = builder.model("fp32").sites
    images = 12 * 11 * 9 * (3 * 32 + 32 * 64 + 64 * 64 + 64 * 64)
    assert operations_per_call(sites) == images + 64 * 10


@pytest.mark.usefixtures("gates_pay")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_plans_are_made_with_it_and_repeat_it(builder, monkeypatch, precision):
    monkeypatch.setattr(step_search, "LOOKED_AT", 0)
    library = builder.build(precision, options=replace(OPTIONS, search_steps=1), max_drop=0.25)
    plan, found = library.report.plan, library.report.plan.finetuning
    assert found is not None and found.together is not None and found.kept_together
    assert "trained together: used" in str(library.report)
    assert any(site.tuned for site in plan.sites) and Plan.from_json(plan.to_json()) == plan
    again = builder.build(precision, options=OPTIONS, plan=plan)
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(again(*call), library(*call), rtol=1e-5, atol=1e-6)


def test_the_report_says_that_it_was_worse(builder):
    trials = [Trial("damage", FAR, 0.0, quality, 1.0) for quality in (0.8, 0.9, 0.85)]
    found = FineTuning(40, trials[0], trials[1], together=trials[2])
    assert found.kept and not found.kept_together
    plan = replace(builder.build("fp32", options=AdvancedOptions(mode="dense")).report.plan, finetuning=found)
    assert "trained together: not used; at the same bounds quality 0.85" in str(Report(plan))


def test_trained_rows_of_floats_are_where_those_on_bytes_start(builder):
    model = builder.model("fp32", OPTIONS)
    forms, fits = forms_of(model), Fits(model)
    fits.finetune(forms, FAR, lambda *_: None)
    site, observed = model.sites["conv2d1"], model.observations["conv2d1"]
    closed = Fits(model).fit("conv2d1", forms["conv2d1"])
    wanted = finetune(site, closed, observed, np.array([FAR]), 40, isa=ISAS[builder.isa])
    found = fits._of_floats("conv2d1", forms["conv2d1"])
    np.testing.assert_array_equal(found.little.module.weight, wanted.little.module.weight)
