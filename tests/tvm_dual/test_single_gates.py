"""Gates of single outputs of convolutions: chosen by the planner, recorded, exported, and what they lose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

import tvm_dual
from schedules.cpu import ISAS
from tvm_dual.builder import Builder
from tvm_dual.closed_loss import closed_loss
from tvm_dual.errors import PlanError
from tvm_dual.gates import FAR, OPEN
from tvm_dual.options import AdvancedOptions
from tvm_dual.output_gates import output_limits
from tvm_dual.plan import Plan
from tvm_dual.single_bounds import LIKELY, likely_bound
from tvm_dual.site_costs import SingleCosts
from tvm_dual.tile_gates import open_channels
from tvm_dual.variants import Fits

NAMES = ("conv2d1", "conv2d2")
SIZED = AdvancedOptions(rule="damage", dimensions=16, gate_unit="output")


class Sparse(nn.Module):
    """Convolutions most of whose outputs are zero, each somewhere else, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 80, 3, padding=1)
        self.third, self.head = nn.Conv2d(80, 64, 3, 2, padding=1), nn.Linear(64, 10)
        for layer in (self.first, self.second, self.third):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
            nn.init.constant_(layer.bias, -0.7)

    def forward(self, x):
        y = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(2 * x))))))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def builder() -> Builder:
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((40, 3, 20, 18)).astype("float32")
    images = (images + np.roll(images, 1, axis=2) + np.roll(images, 1, axis=3)) / 2
    return Builder(Sparse().eval(), [images], example_inputs=(torch.zeros(1, 3, 20, 18),))


@pytest.fixture(scope="module")
def dense(builder):
    return builder.build("fp32", options=AdvancedOptions(mode="dense"))


def gated(builder, dense, limit: float):
    """Return the library whose middle layers have a gate for each output."""
    sites = tuple(
        replace(site, input="singles", hidden="dense", rule="damage", limit=limit) if site.name in NAMES else site
        for site in dense.report.plan.sites
    )
    return builder.build("fp32", options=SIZED, plan=replace(dense.report.plan, sites=sites))


@pytest.mark.parametrize("bound", [0.01, 0.3, 1.5])
def test_an_output_is_open_where_its_damage_exceeds_the_bound(bound):
    rng = np.random.default_rng(0)
    spread, weights = rng.uniform(0.1, 1, 40), rng.uniform(0.2, 3, 40)
    sums = rng.standard_normal((200, 40)) * 3 * spread
    opened, density = open_channels(output_limits("relu", "damage", bound, 1.0, spread, weights), sums, None)
    np.testing.assert_array_equal(opened, spread * weights * ndtr(sums / spread) > bound)
    assert density == opened.mean() and 0 < density < 1
    assert open_channels(output_limits("relu", "damage", bound, np.inf, spread, weights), sums, None)[1] == 1
    assert open_channels(output_limits("relu", "damage", bound, 0, spread, weights), sums, None)[1] == 0
    (always,) = output_limits(None, "damage", 0.2, 1.0, np.full(1, 0.5), np.ones(1)).T
    assert open_channels(always[:, None], np.array([[-9.0], [9.0]]), None)[1] == 1


def test_time_rises_along_two_lines():
    times = SingleCosts(0.1, 10.0, 30.0, 120.0)
    assert [times.at(density) for density in (0, 0.05, 0.1, 0.55, 1)] == [10, 20, 30, 75, 120]


def test_a_likely_bound_opens_some(builder):
    model = builder.model("fp32", SIZED)
    fit, observed = Fits(model).fit("conv2d2", ("singles", "dense")), model.observations["conv2d2"]
    isa = ISAS[builder.isa]
    bound, density = likely_bound(model.sites["conv2d2"], fit, observed, isa)
    assert 0 < density < 3 * LIKELY and OPEN < bound < FAR
    ((found, _),) = closed_loss(model.sites["conv2d2"], fit, observed, isa, "damage", [bound], gate="singles")
    assert found == density


def test_outputs_lose_less_than_tiles_at_equal_density(builder):
    model = builder.model("fp32", SIZED)
    fit, observed = Fits(model).fit("conv2d2", ("singles", "dense")), model.observations["conv2d2"]
    bounds = np.geomspace(16, 0.02, 60)
    by_gate = {
        gate: closed_loss(model.sites["conv2d2"], fit, observed, ISAS[builder.isa], "damage", bounds, gate=gate)
        for gate in ("rows", "singles")
    }
    tiles = [(density, loss) for density, loss in by_gate["rows"] if 0.1 < density < 0.9]
    shares, losses = zip(*by_gate["singles"], strict=True)
    assert tiles and all(np.interp(density, shares, losses) < loss for density, loss in tiles)


@pytest.mark.parametrize("limit", [1e-9, 0.02, 1e9])
def test_a_library_of_gated_outputs_is_exported_and_read_back(builder, dense, limit, tmp_path):
    library, images = gated(builder, dense, limit), builder.model("fp32").data.streams[0]
    plan = library.report.plan
    sites = [site for site in plan.sites if site.name in NAMES]
    assert all(site.gated and site.input == "singles" and site.limit == limit for site in sites)
    assert all((site.density > 0.95) == (limit < 1e-3) and (site.density == 0) == (limit > 1) for site in sites)
    assert ("one by one" in str(library.report)) and Plan.from_json(plan.to_json()) == plan
    library.export_library(tmp_path / "model.so")
    again = tvm_dual.load(tmp_path / "model.so")
    assert again.report.plan == plan
    wanted = [dense(*call) for call in images[:6]]
    found = [library(*call) for call in images[:6]]
    for call, y in zip(images[:6], found, strict=True):
        np.testing.assert_array_equal(again(*call), y)
    error = np.abs(np.concatenate(found) - np.concatenate(wanted)).max() / np.abs(np.concatenate(wanted)).max()
    assert error < {1e-9: 1e-4, 0.02: 0.05, 1e9: 0.5}[limit]
    again.effort = float("inf")
    (first,) = images[:1]
    np.testing.assert_allclose(again(*first), wanted[0], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("gates_pay")
def test_the_planner_takes_outputs_where_they_take_least_time(builder, monkeypatch):
    # Tiles and the little modules alone take longer than anything here.
    monkeypatch.setattr(SingleCosts, "at", lambda self, density: 0.01 + density)
    options = AdvancedOptions(
        rule="damage", dimensions=16, search_steps=1, little_kinds=("projection",), keep_dense=("conv2d0", "dense0")
    )
    library = builder.build("fp32", options=options, max_drop=0.02)
    plan = library.report.plan
    taken = [site for site in plan.sites if site.input == "singles"]
    assert taken and all(site.rule == "damage" and site.limit < FAR and site.dimensions for site in taken)
    assert plan.quality >= plan.dense_quality - 0.02
    assert {name for trial in plan.trials for name in trial.limits} >= {site.name for site in taken}
    again = builder.build("fp32", options=options, plan=Plan.from_json(plan.to_json()))
    for call in builder.model("fp32").data.streams[0][:3]:
        np.testing.assert_allclose(again(*call), library(*call), rtol=1e-5, atol=1e-6)


def test_units_are_an_option(builder, dense):
    with pytest.raises(PlanError, match="gate_unit"):
        AdvancedOptions(gate_unit="pixel")
    assert AdvancedOptions(gate_unit="tile").gates == ("rows",)
    sites = tuple(replace(site, input="singles") if site.name == "dense0" else site for site in dense.report.plan.sites)
    with pytest.raises(PlanError, match=r"dense0 has the forms 'singles'"):
        builder.build("fp32", plan=replace(dense.report.plan, sites=sites))


def test_a_share_of_outputs_is_closed_where_that_is_asked_for(builder, monkeypatch):
    # No form is faster than the one with all gates, whatever the machine.
    monkeypatch.setattr("tvm_dual.search.median_microseconds", lambda libraries, *_, **__: [1.0] * len(libraries))
    options = replace(SIZED, closed_share=0.8, keep_dense=("conv2d0", "dense0"))
    library = builder.build("fp32", options=options)
    found = {site.name: site for site in library.report.plan.sites}
    singles = [found[name] for name in NAMES if found[name].input == "singles"]
    assert singles and not any(site.input == "rows" and site.kind == "conv2d" for site in found.values())
