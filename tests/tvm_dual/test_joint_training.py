"""Little modules trained together: the whole model is closer to the exact one, and plans say so and repeat it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from schedules.conv2d_gated import gate_panels
from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual import joint_training, step_search, variants
from tvm_dual.gates import EFFORTS, FAR, OPEN, thresholds
from tvm_dual.joint_training import Start, train_together
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import FineTuning, Plan, Trial
from tvm_dual.quality import mean_square, outputs_of
from tvm_dual.site_choices import Choice, Step
from tvm_dual.tile_gates import open_channels
from tvm_dual.torch_gates import ConvGate
from tvm_dual.torch_model import TorchModel
from tvm_dual.variants import Fits

ALONE = ("conv2d1", "conv2d2", "conv2d3")
OPTIONS = AdvancedOptions(dimensions=16, finetune_steps=40, little_kinds=("projection",), gate_unit="tile")


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


def test_outputs_are_closer_to_the_exact_models_than_after_layer_by_layer(builder, monkeypatch):
    forms, told, found = {}, [], {}
    for way in ("layer by layer", "together"):
        # What builders of one model know they share.
        model = blocks_builder(decay=0.95).model("fp32", OPTIONS)
        forms, fits = forms_of(model), Fits(model)
        with monkeypatch.context() as patched:
            patched.setattr(variants, "translatable", lambda _, way=way: way == "together")
            assert fits.finetune(forms, FAR, lambda *at: told.append(at))
        found[way] = error(fits.variant(forms).library, builder)
        assert all(fits.fit(name, forms[name]).tuned for name in ALONE)
    closed = Fits(builder.model("fp32", OPTIONS))
    assert found["together"] < 0.5 * error(closed.variant(forms).library, builder)
    assert found["together"] < found["layer by layer"]
    assert told[-1] == ("fine-tuning 3 layers together", 40, 40)
    assert not closed.fit("conv2d1", forms["conv2d1"]).tuned


def test_each_set_of_layers_is_trained_once(builder, monkeypatch):
    model = builder.model("fp32", replace(OPTIONS, finetune_steps=3))
    forms, first, again = forms_of(model), Fits(model), Fits(model)
    first.finetune(forms, FAR, lambda *_: None)
    monkeypatch.setattr(variants, "train_together", lambda *_: pytest.fail("trained again"))
    again.finetune(forms, FAR, lambda *_: None)
    assert again.fit("conv2d2", forms["conv2d2"]) is first.fit("conv2d2", forms["conv2d2"])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        again.finetune(forms | {"conv2d1": ("dense", "")}, FAR, lambda *_: None)


def test_what_was_trained_is_not_fitted_again(builder):
    model = builder.model("fp32", replace(OPTIONS, finetune_steps=3))
    forms, fits = forms_of(model) | {"conv2d3": ("rows", "dense")}, Fits(model)
    limits = {name: 0.1 if name == "conv2d3" else FAR for name in ALONE}
    fits.finetune(forms, limits, lambda *_: None)
    trained = [fits.fit(name, forms[name]) for name in ALONE]
    fits.refit(forms, "damage", limits)
    assert all(found is fits.fit(name, forms[name]) and found.tuned for name, found in zip(ALONE, trained, strict=True))
    fits.forget_tuned()
    fits.refit(forms, "damage", limits)
    assert not any(fits.fit(name, forms[name]).tuned for name in ALONE)


@pytest.mark.parametrize("gate", ["rows", "singles"])
@pytest.mark.parametrize("name", ["conv2d1", "conv2d3"])
def test_gates_open_what_the_kernels_open(builder, name, gate):
    model, isa = builder.model("fp32", OPTIONS), ISAS[builder.isa]
    site, fit = model.sites[name], Fits(model).fit(name, (gate, "dense"))
    panels = None if gate == "singles" else gate_panels(isa, site.conv)
    sums = np.random.default_rng(0).standard_normal((1, 5, 4, 64)).astype("float32")

    def opened(limit: float) -> np.ndarray:
        table = thresholds(site, "damage", limit, fit.spread, fit.weights, gate=gate)[EFFORTS.index(1.0)]
        return open_channels(table.astype("float32"), sums.reshape(-1, 64), panels)[0]

    limit = next(found for found in np.geomspace(1e-3, 1e3, 61) if 0.1 < opened(found).mean() < 0.9)
    found = ConvGate(torch, site, fit, isa, gate).opened(torch.from_numpy(sums), limit)
    assert (found.numpy().reshape(-1, 64) != opened(limit)).mean() < 0.01


@pytest.mark.parametrize("limit", [OPEN, FAR])
def test_open_gates_are_the_exact_layer_and_closed_ones_the_little_module(builder, limit):
    model, isa = builder.model("fp32", OPTIONS), ISAS[builder.isa]
    site, fit = model.sites["conv2d3"], Fits(model).fit("conv2d3", ("rows", "dense"))
    run, x = TorchModel(torch, model.compiler.module), torch.from_numpy(model.data.streams[0].arrays[0][:3])
    (exact,) = run.run([x])
    gated, alone = (joint_training._Little(torch, run, site, Start(fit, bound), isa) for bound in (limit, FAR))
    (found,), (closed,) = run.run([x], {"conv2d3": gated}), run.run([x], {"conv2d3": alone})
    torch.testing.assert_close(found, exact if limit == OPEN else closed)
    assert not torch.allclose(exact, closed)


def test_training_is_the_same_each_time_and_gives_threads_back(builder):
    model = builder.model("fp32", OPTIONS)
    forms, threads = forms_of(model), torch.get_num_threads()
    start = {name: Start(Fits(model).fit(name, forms[name])) for name in ALONE}
    given = (model.compiler.module, model.sites, start, model.data.streams, ISAS[builder.isa], 5)
    one, two = train_together(*given), train_together(*given)
    for name in ALONE:
        np.testing.assert_array_equal(one[name].little.module.weight, two[name].little.module.weight)
    assert torch.get_num_threads() == threads

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_together(*given, interrupted)
    assert torch.get_num_threads() == threads


def test_nothing_is_trained_without_steps_or_little_modules(builder):
    model, quiet = builder.model("fp32", OPTIONS), lambda *_: None
    forms = forms_of(model)
    untrained = replace(model, options=replace(OPTIONS, finetune_steps=0))
    assert not Fits(untrained).finetune(forms, FAR, quiet)
    exact = dict.fromkeys(forms, ("dense", ""))
    assert not Fits(model).finetune(exact, FAR, quiet)


@pytest.mark.usefixtures("gates_pay")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_plans_are_made_with_it_and_repeat_it(builder, monkeypatch, precision):
    monkeypatch.setattr(step_search, "LOOKED_AT", 0)
    library = builder.build(precision, options=replace(OPTIONS, search_steps=1), max_drop=0.25)
    plan, found = library.report.plan, library.report.plan.finetuning
    assert found is not None and found.kept and "fine-tuning, 40 steps: used" in str(library.report)
    assert any(site.tuned for site in plan.sites) and Plan.from_json(plan.to_json()) == plan
    again = builder.build(precision, options=OPTIONS, plan=plan)
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(again(*call), library(*call), rtol=1e-5, atol=1e-6)


def trial(quality: float) -> Trial:
    return Trial("damage", FAR, 0.0, quality, 1.0)


def test_what_goes_further_is_kept_whatever_it_judged_at_few_steps():
    assert FineTuning(40, trial(0.8), trial(0.9)).kept
    assert not FineTuning(40, trial(0.9), trial(0.8)).kept
    assert FineTuning(40, trial(0.9), trial(0.8), trial(0.9), trial(0.85)).kept


class Told:
    """Judges by a table of qualities, closed forms and trained, of so many steps."""

    finetune_steps, search_steps = 40, 0

    def __init__(self, closed: float, trained: list[float]) -> None:
        self.tuned, self._trained, self.held = False, trained, {}
        self.held[()] = (None, trial(closed), None)

    def accepts(self, found: Trial) -> bool:
        return found.quality >= 0.5

    def judge(self, taken: list) -> Trial:
        found = trial(self._trained[len(taken)])
        if self.accepts(found):
            self.held[step_search.state_of(taken)] = (None, found, None)
        return found

    def holds(self, taken: list) -> bool:
        return self.accepts(self.judge(taken))


@pytest.mark.parametrize(
    ("closed", "trained", "steps", "kept"),
    [
        (0.9, [0.8, 0.7, 0.4], 1, True),
        (0.9, [0.8, 0.4, 0.4], 0, False),
        (0.8, [0.9, 0.4, 0.4], 0, True),
        (0.6, [0.4, 0.7, 0.7], 0, False),
    ],
    ids=["worse, goes further", "worse, goes no further", "better, goes no further", "breaks the budget"],
)
def test_trained_modules_are_followed_as_far_as_they_go(closed, trained, steps, kept):
    path = [Step(name, Choice(8, FAR, 0.0, 1.0, ("rows", "dense")), 1.0) for name in ("one", "two")]
    judged = Told(closed, trained)
    taken, found = step_search.tuned([], path, judged)
    assert taken == path[:steps] and found.kept == judged.tuned == kept
    assert judged.held[step_search.state_of(taken)][1].quality == (trained[steps] if kept else closed)
