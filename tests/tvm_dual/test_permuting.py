"""Models with channels in another order: the same model, whose gates open less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.builder import Builder
from tvm_dual.closed_loss import closed_loss
from tvm_dual.errors import PlanError
from tvm_dual.forms import exact_form
from tvm_dual.gates import OPEN
from tvm_dual.library import load
from tvm_dual.model import ChannelOrder, Model
from tvm_dual.options import AdvancedOptions
from tvm_dual.permuting import in_order, permuted
from tvm_dual.plan import Plan
from tvm_dual.variants import Fits

OPTIONS = AdvancedOptions(rule="damage", dimension_share=0.25)


@pytest.fixture(scope="module")
def builder() -> Builder:
    return blocks_builder()


@pytest.fixture(scope="module")
def model(builder) -> Model:
    return builder.model("fp32", OPTIONS)


@pytest.fixture(scope="module")
def skipping(builder) -> Plan:
    """The plan of zero skipping alone."""
    return builder.build("fp32", options=AdvancedOptions(mode="skip")).report.plan


def orders(model: Model) -> dict[str, ChannelOrder]:
    """Return random orders: conv2d1 and conv2d3 are added."""
    rng, found = np.random.default_rng(5), {}
    for names in (("conv2d0",), ("conv2d1", "conv2d3"), ("conv2d2",)):
        places = tuple(map(int, rng.permutation(len(model.sites[names[0]].weight))))
        found |= dict.fromkeys(names, ChannelOrder(places, "for a test"))
    return found


def test_what_was_observed_is_moved_with_the_weights(model):
    changed = in_order(model, orders(model))
    for name, site in model.sites.items():
        seen, moved, other = model.observations[name], changed.observations[name], changed.sites[name]
        sums = seen.inputs[0] @ site.weight.T + site.bias
        found = moved.inputs[0] @ other.weight.T + other.bias
        given = list(changed.orders[name].places) if site.conv else slice(None)
        np.testing.assert_allclose(found, sums[:, given], rtol=1e-4, atol=1e-4)
        if seen.residual is not None:
            np.testing.assert_array_equal(moved.residual, seen.residual[:, given])
        assert [len(call) for call in moved.examples] == [len(call) for call in seen.examples]
    assert (changed.observations["conv2d2"].examples[0][0] != model.observations["conv2d2"].examples[0][0]).any()


@pytest.mark.parametrize("skip", [False, True])
def test_an_exact_model_stays_what_it_is(builder, model, skip):
    changed = in_order(model, orders(model))
    forms = {name: exact_form(site, skip and site.nonnegative) for name, site in changed.sites.items()}
    library, wanted = Fits(changed).variant(forms).library, builder._dense.stream()
    for call in model.data.streams[0][:5]:
        np.testing.assert_allclose(library(*call), wanted(*call), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skips", [False, True])
def test_orders_lower_density_and_travel_in_the_plan(builder, model, skipping, tmp_path, skips):
    changed = permuted(model, lambda *_: None)
    assert {"conv2d0", "conv2d1", "conv2d2", "conv2d3"} == set(changed.orders)
    assert all("tiles" in order.reason or "panel" in order.reason for order in changed.orders.values())
    gated = {"input": "rows", "hidden": "nonzeros" if skips else "columns", "rule": "damage", "dimensions": 16}
    fit = Fits(model).fit("conv2d1", ("rows", "dense"))
    seen, ladder = model.observations["conv2d1"], [0.5**i for i in range(24)]
    shares = closed_loss(model.sites["conv2d1"], fit, seen, ISAS[builder.isa], "damage", ladder)
    limit = next(limit for limit, (density, _) in zip(ladder, shares, strict=True) if density > 0.2)
    given = {"conv2d1": gated | {"limit": limit}, "conv2d2": gated | {"limit": OPEN}}
    order = orders(model)["conv2d2"].places
    sites = [replace(site, **given.get(site.name, {})) for site in skipping.sites]
    sites = tuple(replace(site, order=order) if site.name == "conv2d2" else site for site in sites)
    plan = Plan.from_json(replace(skipping, sites=sites).to_json())
    library = builder.build("fp32", options=OPTIONS, plan=plan)
    found = {site.name: site for site in library.report.plan.sites}
    assert found["conv2d2"].order == order and "earlier plan" in found["conv2d2"].reason
    assert found["conv2d2"].density == 1 and 0 < found["conv2d1"].density < 1 and found["conv2d1"].order == ()
    # Every tile is open: what is spared are zeros.
    assert (found["conv2d2"].operations < found["conv2d2"].all_operations) == skips
    library.export_library(tmp_path / "blocks.so")
    again, wanted = load(tmp_path / "blocks.so"), builder._dense.stream()
    assert again.report.plan.sites == library.report.plan.sites
    for effort in (1.0, float("inf")):
        library.effort = again.effort = effort
        for call in model.data.streams[0][:3]:
            exact, result = wanted(*call), library(*call)
            np.testing.assert_array_equal(again(*call), result)
            np.testing.assert_allclose(
                result, exact, **({"atol": 0.3} if effort == 1 else {"rtol": 1e-3, "atol": 1e-4})
            )


def test_plans_whose_orders_are_none_are_refused(builder, skipping):
    def planned(name: str, order: tuple[int, ...]) -> Plan:
        return replace(skipping, sites=tuple(replace(s, order=order) if s.name == name else s for s in skipping.sites))

    for name, order, message in (
        ("conv2d2", (0, 0, 1), "3 channels in no order"),
        ("conv2d2", (1, 0, 2), "order of 3 channels of site 'conv2d2'"),
        ("dense0", (1, 0), "order of 2 channels of site 'dense0'"),
    ):
        with pytest.raises(PlanError, match=message):
            builder.build("fp32", plan=planned(name, order))


def test_nothing_is_ordered_where_nothing_is_gated(builder):
    kept = replace(OPTIONS, keep_dense=("conv2d0", "conv2d1", "conv2d2", "conv2d3"))
    model = builder.model("fp32", kept)
    assert permuted(model, lambda *_: None) is model
    low = builder.model("int8", OPTIONS)
    low = replace(low, on_bytes={name: Affine(0.02) for name, site in low.sites.items() if site.conv})
    assert low.gates("conv2d1") and permuted(low, lambda *_: None) is low, "those on bytes keep their order"
