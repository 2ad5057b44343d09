"""Bounds by layer: the order of steps, what they lose, and models that are built so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual import planner
from tvm_dual.allocation import allocates
from tvm_dual.builder import Builder
from tvm_dual.closed_loss import closed_loss
from tvm_dual.errors import BudgetError
from tvm_dual.forms import exact_form, gated_form, mode_form
from tvm_dual.gates import FAR, OPEN
from tvm_dual.measure import open_share
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.quality import make_quality
from tvm_dual.site_choices import Choice, Step, merged, sizes_of, steps
from tvm_dual.step_search import LOOKED_AT, worthwhile
from tvm_dual.variants import Fits

EXACT = Choice(0, OPEN, 0.0, 10.0)


@pytest.fixture(scope="module")
def builder() -> Builder:
    return blocks_builder()


def test_steps_are_the_corners_of_the_hull():
    above, first, second = Choice(8, 1.0, 1.0, 7.0), Choice(8, 2.0, 1.0, 6.0), Choice(8, FAR, 3.0, 1.0)
    slower, third = Choice(16, 1.0, 0.5, 11.0), Choice(4, FAR, 9.0, 0.5)
    found = steps(EXACT, [above, slower, third, second, first])
    assert [choice for choice, _ in found] == [first, second, third]
    np.testing.assert_allclose([worth for _, worth in found], [4.0, 2.5, 0.5 / 6])
    assert steps(EXACT, [slower]) == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 20)), max_size=12))
def test_steps_get_faster_and_less_worthwhile(points):
    choices = [Choice(8, 1.0, loss, time) for loss, time in points]
    found = steps(EXACT, choices)
    times, worths = [10.0, *(choice.cost for choice, _ in found)], [worth for _, worth in found]
    assert times == sorted(set(times), reverse=True) and worths == sorted(worths, reverse=True)
    assert times[-1] == min([10.0, *(time for _, time in points)])


def test_the_most_worthwhile_step_of_all_layers_comes_first():
    a, b = Choice(8, 1.0, 1.0, 8.0), Choice(8, 2.0, 2.0, 7.5)
    found = merged({"x": [(a, 2.0), (b, 0.5)], "y": [(a, 1.0)]})
    assert found == [Step("x", a, 2.0), Step("y", a, 1.0), Step("x", b, 0.5)]


class Measured:
    """Judges by a table: what a layer saves by itself, and what the whole model takes with it."""

    def __init__(self, saved: list[float], added: list[float]) -> None:
        self.saved, self.added, self.looked = saved, added, []

    def saving(self, name: str, choice: Choice) -> float:
        return self.saved[int(name)]

    def is_worthwhile(self, taken: list[Step], fewer: list[Step]) -> bool:
        (name,) = {step.name for step in taken} - {step.name for step in fewer}
        self.looked.append(int(name))
        return self.added[int(name)] < 0


def test_a_layer_that_makes_the_whole_model_slower_keeps_its_exact_form():
    taken = [Step(name, EXACT, worth) for worth in (2.0, 1.0) for name in "0123"]
    judged = Measured(saved=[4.0, 2.0, 1.0, 3.0], added=[-1.0, 0.5, -0.5, 0.1])
    assert worthwhile(taken, judged) == [step for step in taken if step.name in "02"]
    assert judged.looked == [2, 1, 3, 0]
    # The last layer is compared with the exact forms by the planner.
    alone = Measured([1.0], [0.5])
    assert worthwhile(taken[:1], alone) == taken[:1] and not alone.looked
    many = Measured([1.0] * 10, [0.5] * 10)
    assert len(worthwhile([Step(str(i), EXACT, 1.0) for i in range(10)], many)) == 10 - LOOKED_AT


def test_sizes_are_multiples_unless_the_options_name_one(builder):
    lanes = ISAS[builder.isa].lanes
    model = builder.model("fp32", AdvancedOptions(dimension_share=0.25))
    assert sizes_of(model, "conv2d1") == tuple(k for k in (16, 32) if k % lanes == 0)
    named = builder.model("fp32", AdvancedOptions(site_dimensions={"conv2d1": 24}))
    assert sizes_of(named, "conv2d1") == (-(-24 // lanes) * lanes,)


def test_one_bound_for_all_where_a_share_is_to_be_closed(builder):
    assert allocates(builder.model("fp32"))
    assert not allocates(builder.model("fp32", AdvancedOptions(closed_share=0.5)))


@pytest.mark.parametrize(
    "name, gate",
    [("conv2d1", "rows"), ("conv2d3", "rows"), ("dense0", "rows"), ("conv2d1", "singles"), ("conv2d3", "singles")],
)
def test_density_and_loss_at_a_bound_are_what_the_library_does(builder, name, gate):
    model = builder.model("fp32", AdvancedOptions(dimensions=16, little_bits=32))
    exact = {n: exact_form(site, False) for n, site in model.sites.items()}
    fits, site = Fits(model), model.sites[name]
    variant = fits.variant(exact | {name: gated_form(site, exact[name], gate)})
    wanted = builder._dense
    observed, isa = model.observations[name], ISAS[builder.isa]
    limits = (OPEN, 0.05, 0.2, FAR)
    found = closed_loss(site, variant.fits[name], observed, isa, "damage", limits, gate=gate)
    assert found[0] == (1.0, 0.0) and found[-1][0] == 0
    assert [loss for _, loss in found] == sorted(loss for _, loss in found)
    images = model.data.streams[0]
    for limit, (density, _) in zip(limits, found, strict=True):
        variant.set_limit({name: limit})
        assert abs(open_share(variant.library, model.data.streams)[name] - density) < 0.02
        if limit == OPEN:
            for call in images[:3]:
                np.testing.assert_allclose(variant.library(*call), wanted.stream()(*call), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("gates_pay")
def test_a_model_is_built_by_layer_within_its_budget_and_again_from_its_plan(builder):
    kept = ("conv2d0", "conv2d2", "dense0")
    options = AdvancedOptions(rule="damage", dimensions=16, gate_unit="tile", search_steps=1, keep_dense=kept)
    library = builder.build("fp32", options=options, max_drop=0.2)
    plan = library.report.plan
    assert plan.quality >= plan.dense_quality - 0.2 and plan.trials
    changed = [site for site in plan.sites if {"rows", "singles", "little"} & {site.input}]
    assert changed and all(site.little for site in changed), "this model is mostly of few directions"
    again = Plan.from_json(plan.to_json())
    assert again == plan
    replayed = builder.build("fp32", options=options, plan=again)
    for before, after in zip(plan.sites, replayed.report.plan.sites, strict=True):
        assert (before.input, before.hidden, before.limit, before.dimensions) == (
            after.input,
            after.hidden,
            after.limit,
            after.dimensions,
        )
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(replayed(*call), library(*call), rtol=1e-5, atol=1e-6)


def test_bounds_differ_by_layer_at_every_effort(builder):
    model = builder.model("fp32", AdvancedOptions(dimension_share=0.25))
    forms = {name: mode_form(site, "dense") for name, site in model.sites.items()}
    gated = ["conv2d1", "conv2d2"]
    forms |= {name: gated_form(model.sites[name], forms[name]) for name in gated}
    variant = Fits(model).variant(forms)
    variant.set_limit({"conv2d1": OPEN, "conv2d2": FAR})
    assert open_share(variant.library, model.data.streams) == {"conv2d1": 1.0, "conv2d2": 0.0}
    tables = variant.thresholds({"conv2d1": 0.1, "conv2d2": 0.4}, effort=2.0)
    np.testing.assert_allclose(tables["conv2d1"], variant.thresholds(0.05)["conv2d1"], rtol=1e-6)
    np.testing.assert_allclose(tables["conv2d2"], variant.thresholds(0.2)["conv2d2"], rtol=1e-6)


@pytest.mark.parametrize("times", [(2.0, 1.0), (1.0, 2.0)], ids=["slower", "faster"])
def test_layers_skip_zeros_where_the_whole_model_is_faster_so(builder, monkeypatch, times):
    model = builder.model("fp32")
    skipping = Fits(model).variant({name: exact_form(site, site.nonnegative) for name, site in model.sites.items()})
    quality = make_quality(builder._dense, model.data, None, None)
    monkeypatch.setattr(planner, "median_microseconds", lambda libraries, _: list(times))
    found = planner._fastest_exact(skipping, quality)
    assert ("columns", "") in skipping.forms.values()
    assert (found is skipping) == (times[0] < times[1])
    assert (("columns", "") in found.forms.values()) == (found is skipping)


def test_a_precision_that_alone_loses_more_than_the_budget_is_refused():
    # The dense model scores 1; what is built in int8 and bf16 scores 0.
    builder, scores = blocks_builder(), iter([1.0])
    with pytest.raises(BudgetError, match=r"precision int8: .*the allowed drop 0.1. Build with precision='fp32'"):
        builder.build(
            "int8",
            options=AdvancedOptions(keep_dense=("conv2d0", "conv2d1", "conv2d2", "conv2d3", "dense0")),
            evaluate=lambda library: next(scores, 0.0),
            max_drop=0.1,
        )


def test_a_budget_of_nothing_leaves_every_layer_exact(builder):
    kept = ("conv2d0", "conv2d2", "conv2d3")
    options = AdvancedOptions(
        dimensions=16, search_steps=0, keep_dense=kept, little_kinds=("projection",), gate_unit="tile"
    )
    library = builder.build("fp32", options=options, max_drop=0.0)
    assert {site.input for site in library.report.plan.sites} <= {"dense", "columns"}


@pytest.mark.usefixtures("gates_pay")
def test_trained_little_modules_go_on_from_where_closed_forms_end(builder):
    kept, kinds = ("conv2d0", "conv2d2"), ("projection",)
    options = AdvancedOptions(
        dimensions=16, search_steps=1, finetune_steps=30, little_kinds=kinds, gate_unit="tile", keep_dense=kept
    )
    library = builder.build("fp32", options=options, max_drop=0.2)
    plan, found = library.report.plan, library.report.plan.finetuning
    assert found.steps == 30 and found.closed_form.limits == found.tuned.limits
    assert any(site.tuned for site in plan.sites) == found.kept
    assert plan.quality >= plan.dense_quality - 0.2 and Plan.from_json(plan.to_json()) == plan
    again = builder.build("fp32", options=options, plan=plan)
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(again(*call), library(*call), rtol=1e-5, atol=1e-6)
