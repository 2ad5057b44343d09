"""A share of closed rows in place of a quality budget."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tvm_dual import planner
from tvm_dual.errors import PlanError
from tvm_dual.gates import FAR
from tvm_dual.options import AdvancedOptions
from tvm_dual.quality import make_quality
from tvm_dual.report import Report
from tvm_dual.search import close_share, limit_at_share
from tvm_dual.variants import Fits

FORMS = {"dense0": ("dense", ""), "gru0": ("rows", "rows"), "dense1": ("dense", ""), "dense2": ("rows", "")}


def closed(library, streams) -> float:
    """Return closed rows / all rows, over all calls."""
    run, opened, calls = library.stream(), 0, 0
    for call in itertools.chain(*streams):
        run(*call)
        opened, calls = opened + sum(library.last_open_rows().values()), calls + 1
    return 1 - opened / calls / sum(library.all_rows().values())


@pytest.mark.parametrize("rule", ["damage", "activation"])
def test_a_share_is_reached(builder, rule):
    model = builder.model("fp32", AdvancedOptions())
    variant = Fits(model).variant(FORMS, rule)
    limits = []
    for wanted in (0.3, 0.7, 1.0):
        limits.append(limit_at_share(variant, wanted))
        variant.set_limit(limits[-1])
        assert closed(variant.library, model.data.streams) == pytest.approx(wanted, abs=0.05)
    assert limits == sorted(limits) and limits[-1] == FAR


def test_gate_factors_change_which_rows_are_closed_at_a_share(builder):
    opened = []
    for factors in ({}, {"z": 8.0}):
        model = builder.model("fp32", AdvancedOptions(gate_factors=factors))
        variant = Fits(model).variant(FORMS)
        variant.set_limit(limit_at_share(variant, 0.5))
        assert closed(variant.library, model.data.streams) == pytest.approx(0.5, abs=0.05)
        run, update = variant.library.stream(), 0
        for call in model.data.streams[0]:
            run(*call)
            # The first count of a GRU is that of its update gate.
            update += int(variant.library.last_extras()[variant.library.metadata.counts.index("gru0")][0])
        opened.append(update)
    assert opened[1] < 0.8 * opened[0]


def test_the_bound_is_taken_whatever_the_quality(builder):
    model = builder.model("fp32", AdvancedOptions(closed_share=0.6))
    quality = make_quality(builder._dense, builder._data, lambda library: -5.0, float("inf"))
    told = []
    found = close_share(model, quality, Fits(model).variant(FORMS), lambda *step: told.append(step)).found
    assert found.quality == -5 and found.density == pytest.approx(0.4, abs=0.03)
    assert told[-1][1:] == (1, 1)


def test_a_build_at_a_share(builder, monkeypatch):
    # Whether a gate pays on a model this small differs from run to run.
    monkeypatch.setattr(planner, "best_gated", lambda model, fits, exact, progress: fits.variant(FORMS))
    options = AdvancedOptions(closed_share=0.4, rule="damage")
    library = builder.build("fp32", options=options)
    plan = library.report.plan
    assert plan.max_drop == float("inf") and len(plan.trials) == 1
    assert plan.trials[0].density == pytest.approx(0.6, abs=0.03)
    text = str(Report(replace(plan, quality=0.123)))
    assert "no budget" in text and "0.123" in text


def test_factors_of_gates_that_the_model_lacks(builder):
    with pytest.raises(PlanError, match=r"gate_factors names 'f'; accepted.*z, r, n"):
        builder.build(options=AdvancedOptions(gate_factors={"f": 2.0}))


def test_a_share_stands_in_place_of_a_budget(builder):
    with pytest.raises(PlanError, match=r"max_drop=0\.1 and options\.closed_share=0\.5.*accepted"):
        builder.build(max_drop=0.1, options=AdvancedOptions(closed_share=0.5))
