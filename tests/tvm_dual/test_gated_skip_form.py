"""Gate and zero skipping together, as a form among others: where it is tried, and when it is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual import forms, site_times
from tvm_dual.errors import PlanError
from tvm_dual.forms import forms_beside, little_alone
from tvm_dual.model import Model
from tvm_dual.options import AdvancedOptions

BOTH = ("rows", "nonzeros")
#: Of a layer with no tile open, with all of them, and of its little module alone.
TIMES = {("rows", "dense"): (5.0, 20.0, 3.0), ("rows", "columns"): (3.0, 18.0, 2.0), BOTH: (4.0, 9.0, 2.0)}


@pytest.fixture(scope="module")
def builder():
    return blocks_builder()


@pytest.fixture(scope="module")
def model(builder) -> Model:
    return builder.model("fp32", AdvancedOptions(rule="damage", dimension_share=0.25, gate_unit="tile"))


def test_it_is_tried_where_half_of_the_input_is_zero(model):
    first, second = model.sites["conv2d0"], model.sites["conv2d1"]
    assert BOTH in forms.gated_forms(second, ("dense", ""), 0.5)
    assert BOTH not in forms.gated_forms(second, ("dense", ""), 0.4)
    assert BOTH not in forms.gated_forms(first, ("dense", ""), 0.9), "what it reads may be negative"
    assert BOTH in forms_beside(second, ("rows", "columns"), ("dense", ""))
    assert little_alone(BOTH) == ("little", "columns")


@pytest.mark.parametrize(("opened", "wanted"), [(9.0, BOTH), (18.0, ("rows", "columns"))])
def test_it_is_taken_if_it_is_faster_with_half_of_the_tiles_open(model, monkeypatch, opened, wanted):
    times = TIMES | {BOTH: (4.0, opened, 2.0)}

    def told(_gated, _model, _name, form, _size):
        return [(form, part) for part in range(3)]

    def in_turns(_model, entries, *_):
        return {name: [times[form][part] for form, part in found] for name, found in entries.items()}

    monkeypatch.setattr(site_times, "in_turns", in_turns)
    monkeypatch.setattr(forms, "MANY_ZEROS", 0.0)
    found = site_times._time_gated(model, {"conv2d2": (16, 32)}, {"conv2d2": ("columns", "")}, {}, told)["conv2d2"]
    assert found["gated"] == wanted
    assert found["opened"] == dict.fromkeys((16, 32), times[wanted][1])
    np.testing.assert_allclose([found["closed"][16], found["alone"][32]], [times[wanted][0], 2.0])


def test_the_little_module_alone_has_no_such_form(builder):
    plan = builder.build("fp32", options=AdvancedOptions(mode="skip")).report.plan
    sites = (replace(plan.sites[0], input="little", hidden="nonzeros", dimensions=16), *plan.sites[1:])
    with pytest.raises(PlanError, match="'little', 'nonzeros'"):
        builder.build("fp32", plan=replace(plan, sites=sites))
