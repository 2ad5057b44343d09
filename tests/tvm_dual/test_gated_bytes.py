"""Models whose convolutions are gated on bytes or bf16: plans, times, effort, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules.cpu import ISAS, native_isa
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.builder import Builder
from tvm_dual.byte_convs import byte_scale, planned_bf16, planned_bytes
from tvm_dual.errors import PlanError
from tvm_dual.forms import EXACT_BYTES, GATED_BYTES, LITTLE_BYTES
from tvm_dual.gates import FAR
from tvm_dual.library import load
from tvm_dual.measure import open_share
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.search import limit_at_share
from tvm_dual.site_choices import choices_of, sizes_of
from tvm_dual.site_times import time_sites
from tvm_dual.variants import Fits

OPTIONS = AdvancedOptions(rule="damage", dimensions=16)


@pytest.fixture(scope="module")
def builder() -> Builder:
    return blocks_builder(native_isa().name)


@pytest.fixture(scope="module", params=["int8", "bf16"])
def dense(builder, request):
    """A library whose convolutions are exact, on bytes or bf16."""
    if request.param == "bf16" and not ISAS[builder.isa].amx:
        pytest.skip("this CPU lacks AMX")
    return builder.build(request.param, options=AdvancedOptions(mode="dense"), max_drop=1.0)


def gated_plan(plan: Plan, names: tuple[str, ...], limit: float) -> Plan:
    """Return a plan with gates in some convolutions."""
    sites = tuple(
        replace(site, input="rows", hidden="dense", rule="damage", limit=limit, dimensions=16)
        if site.name in names
        else site
        for site in plan.sites
    )
    return replace(plan, sites=sites)


def test_a_gate_opens_tiles_by_its_bound(builder, dense, tmp_path):
    plan, calls = dense.report.plan, builder.model().data.streams[0][:4]
    precision, names = plan.precision, ("conv2d1", "conv2d3")
    wanted = [dense(*call) for call in calls]
    differences, densities = [], []
    model = builder.model(precision, OPTIONS)
    model = replace(model, on_bytes=planned_bytes(plan), on_bf16=planned_bf16(plan))
    forms = {site.name: (site.input, site.hidden) for site in plan.sites} | dict.fromkeys(names, GATED_BYTES)
    variant = Fits(model).variant(forms)
    half = limit_at_share(variant, 0.5)
    for limit in (1e-9, half, 1e9):
        variant.set_limit(dict.fromkeys(names, limit))
        found = [variant.library(*call) for call in calls]
        differences.append(max(np.abs(y - exact).max() for y, exact in zip(found, wanted, strict=True)))
        shares = open_share(variant.library, model.data.streams)
        densities.append(np.mean([shares[name] for name in names]))
    assert densities[0] > 0.99 > densities[1] > 0.01 > densities[2]
    assert differences[0] < 1e-2 * np.abs(wanted).max() and differences[1] <= differences[2]
    library = builder.build(precision, options=OPTIONS, plan=gated_plan(plan, names, half))
    sites = {site.name: site for site in library.report.plan.sites}
    kind = "bytes" if precision == "int8" else "bf16"
    for name in names:
        site = sites[name]
        assert (site.input, site.hidden, site.precision) == ("rows", "dense", precision)
        assert site.reason == f"gated, little module on {kind}, 16 of 64 directions"
    assert 0.01 < np.mean([sites[name].density for name in names]) < 0.99
    # Sums of bytes are whole numbers, and those of bf16 are added up in the dense kernel's order here.
    library.effort = float("inf")
    for call, y in zip(calls, wanted, strict=True):
        np.testing.assert_array_equal(library(*call), y)
    library.effort = 0.25
    library.export_library(str(tmp_path / "model.so"))
    loaded = load(tmp_path / "model.so")
    assert loaded.report.plan == library.report.plan
    loaded.effort = 0.25
    for call in calls:
        np.testing.assert_array_equal(loaded(*call), library(*call))


def test_closed_tiles_hold_what_the_little_module_alone_gives(builder):
    model = builder.model("int8", OPTIONS)
    scales = {name: byte_scale(model.observations[name].inputs[0]) for name, site in model.sites.items() if site.conv}
    model = replace(model, on_bytes=scales)
    forms = {name: EXACT_BYTES if site.conv else ("dense", "") for name, site in model.sites.items()}
    fits = Fits(model)
    alone = fits.variant(forms | dict.fromkeys(("conv2d1", "conv2d3"), LITTLE_BYTES)).library
    gated = fits.variant(forms | dict.fromkeys(("conv2d1", "conv2d3"), GATED_BYTES))
    gated.set_limit(FAR)
    for call in model.data.streams[0][:3]:
        np.testing.assert_array_equal(gated.library(*call), alone(*call))


def test_layers_on_bytes_have_times_of_their_gates(builder):
    model = builder.model("int8", replace(OPTIONS, dimensions=None, dimension_share=0.25))
    scales = {name: byte_scale(model.observations[name].inputs[0]) for name, site in model.sites.items() if site.conv}
    model = replace(model, on_bytes=scales)
    sizes = {"conv2d1": sizes_of(model, "conv2d1")}
    times = time_sites(model, sizes, lambda *_: None)
    found = times["conv2d1"]
    assert found.gated in (GATED_BYTES, LITTLE_BYTES)
    # Whether a gate pays is the machine's to say; where it does, all bounds are choices.
    ends = dict.fromkeys(found.alone, found.exact / 2)
    for gated, count in ((GATED_BYTES, 12), (LITTLE_BYTES, 1)):
        some = replace(found, gated=gated, closed=ends, opened=ends) if gated == GATED_BYTES else found
        some = replace(some, gated=gated)
        choices = choices_of(model, "damage", times | {"conv2d1": some}, lambda *_: None)["conv2d1"]
        assert len(choices) == count * len(found.alone)
        assert all(choice.loss >= 0 for choice in choices)


def test_a_dual_build_says_why_a_layer_has_no_gate(builder, monkeypatch):
    # Exact forms are the fastest here, whatever the machine.
    monkeypatch.setattr(
        "tvm_dual.site_times.in_turns",
        lambda model, entries, *_: {
            name: [1.0 + (i > 0) for i in range(len(found))] for name, found in entries.items()
        },
    )
    library = builder.build(
        "int8", options=replace(OPTIONS, search_steps=0, keep_dense=("conv2d0", "conv2d2")), max_drop=0.2
    )
    reasons = {site.name: site.reason for site in library.report.plan.sites}
    for name in ("conv2d1", "conv2d3"):
        assert reasons[name].startswith("8-bit")
        assert reasons[name].endswith("; exact was fastest, or no gate met the budget")


def test_a_gate_needs_tiles_of_whole_vectors(builder, monkeypatch):
    plan = builder.build("int8", options=AdvancedOptions(mode="dense"), max_drop=1.0).report.plan
    monkeypatch.setattr("tvm_dual.byte_convs.can_gate_bytes", lambda isa, conv: conv.inputs > 64)
    with pytest.raises(PlanError, match=r"conv2d1 is gated on int8, and .* has no tiles of whole vectors"):
        builder.build("int8", options=OPTIONS, plan=gated_plan(plan, ("conv2d1",), 0.1))
    monkeypatch.setattr("tvm_dual.model.can_gate_bytes", lambda isa, conv: False)
    model = replace(builder.model("int8", OPTIONS), on_bytes=planned_bytes(plan))
    assert not model.gates("conv2d1") and replace(model, on_bytes={}).gates("conv2d1")
