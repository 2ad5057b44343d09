"""AttachPlan: forms, little modules and spreads as attributes of the sites' functions."""

from __future__ import annotations

import numpy as np
import tvm

from relay_passes.products import LittleModule
from relay_passes.site_plan import AttachPlan, SiteForm, planned_bias, read_form, read_little
from schedules.quantize import quantize_rows


def test_what_is_attached_is_read_back(tools):
    module = tools.dense_relu(tools.normal(6, 4), tools.normal(6))
    form = SiteForm("int8", "rows", "", "damage", 2, "avx2")
    little = LittleModule((tools.normal(3, 4),), tools.normal(3), tools.normal(6, 3), tools.normal(6), 4)
    spread, mean = tools.normal(6), tools.normal(4)
    planned = AttachPlan({"dense0": form}, {"dense0": little}, {"dense0": spread}, {"dense0": (mean,)})(module)
    site = planned["dense0"]
    assert read_form(site) == form
    found = read_little(site)
    assert found.bits == 4 and len(found.projections) == 1
    np.testing.assert_array_equal(found.projections[0], little.projections[0])
    for key in ("center", "weight", "bias"):
        np.testing.assert_array_equal(getattr(found, key), getattr(little, key))
    np.testing.assert_array_equal(site.attrs["dual.spread"].numpy(), spread)
    np.testing.assert_array_equal(site.attrs["dual.means"][0].numpy(), mean)
    tvm.ir.assert_structural_equal(site.body, module["dense0"].body, map_free_vars=True)


def test_a_site_without_a_form_stays_as_it_is(tools):
    module = tools.dense_relu(tools.normal(6, 4), tools.normal(6))
    planned = AttachPlan({"gru7": SiteForm("fp32", "dense", "dense", "", 1, "avx2")}, {}, {}, {})(module)
    tvm.ir.assert_structural_equal(planned, module)
    assert read_form(planned["dense0"]) is None


def test_a_form_without_a_gate_carries_no_little_module(tools):
    module = tools.dense_relu(tools.normal(6, 4), tools.normal(6))
    form = SiteForm("fp32", "dense", "", "", 1, "avx2")
    attributes = AttachPlan({"dense0": form}, {}, {}, {})(module)["dense0"].attrs
    assert not [key for key in map(str, attributes.keys()) if key.startswith("dual.little") or key == "dual.spread"]
    assert not form.gated and not form.needs_little


def test_forms_know_what_they_need():
    gated = SiteForm("fp32", "columns", "rows", "damage", 1, "avx2")
    little = SiteForm("fp32", "little", "little", "", 1, "avx2")
    assert gated.gated and gated.needs_little
    assert not little.gated and little.needs_little


def test_quantized_weights_have_the_mean_output_of_the_exact_ones(tools):
    weight, mean = tools.normal(6, 4), tools.normal(4, seed=1) + 2
    for precision in ("int8", "fp32"):
        form = SiteForm(precision, "dense", "", "", 1, "avx2")
        module = AttachPlan({"dense0": form}, {}, {}, {"dense0": (mean,)})(tools.dense_relu(weight, tools.normal(6)))
        bias = planned_bias(module["dense0"], 0, weight, None)
        stored = quantize_rows(weight).dequantized() if precision == "int8" else weight
        np.testing.assert_allclose(stored @ mean + bias, weight @ mean, rtol=1e-5)
