"""Copies and coarse little modules: what is fitted, what is compiled, and models that are built with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.audio.mos import RATE, scores, spectrogram
from benchmarks.dnsmos import network_path
from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual import load
from tvm_dual.builder import Builder
from tvm_dual.closed_fit import ZERO, gate_table, refit_closed, zero_channels
from tvm_dual.closed_loss import closed_loss
from tvm_dual.conv_littles import predicted
from tvm_dual.errors import PlanError, SetupError
from tvm_dual.forms import exact_form, little_alone
from tvm_dual.gates import EFFORTS, FAR, OPEN
from tvm_dual.measure import open_share
from tvm_dual.model import Model
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.site_times import time_sites
from tvm_dual.variants import Fits

#: With and without an image that is added.
NAMES = ("conv2d1", "conv2d3")


@pytest.fixture(scope="module")
def builder() -> Builder:
    return blocks_builder()


@pytest.fixture(scope="module")
def model(builder) -> Model:
    return builder.model("fp32", AdvancedOptions(dimensions=48))


@pytest.fixture(params=["copy8", "copy4", "coarse"])
def kind(request) -> str:
    """Return each kind of little module that is no projection."""
    return request.param


def exact_forms(model: Model) -> dict:
    return {name: exact_form(site, False) for name, site in model.sites.items()}


def images(model: Model):
    """Return the calls of the calibration data."""
    return list(model.data.streams[0])


def outputs(library, model: Model) -> np.ndarray:
    run = library.stream()
    return np.concatenate([run(*call) for call in images(model)])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_predicted_is_what_the_library_computes(builder, model, kind, name):
    fits, form = Fits(model), ("rows", kind)
    variant = fits.variant(exact_forms(model) | {name: form})
    site, isa, wanted = model.sites[name], ISAS[builder.isa], outputs(builder._dense, model)
    limits = (OPEN, 0.02, 0.2, FAR)
    found = closed_loss(site, variant.fits[name], model.observations[name], isa, "damage", limits)
    assert found[0] == (1.0, 0.0) and found[-1][0] == 0 < found[-1][1]
    for limit, (density, _) in zip(limits, found, strict=True):
        variant.set_limit({name: limit})
        assert abs(open_share(variant.library, model.data.streams)[name] - density) < 0.03
        if limit == OPEN:
            np.testing.assert_allclose(outputs(variant.library, model), wanted, rtol=1e-3, atol=1e-4)
    closed = outputs(variant.library, model)
    alone = Fits(model).variant(exact_forms(model) | {name: little_alone(form)})
    np.testing.assert_allclose(outputs(alone.library, model), closed, rtol=1e-3, atol=1e-4)
    assert 1e-6 < np.abs(closed - wanted).max() < 0.2 * np.abs(wanted).max()


def test_a_copy_of_more_bits_loses_less(builder, model):
    site, observed, fits = model.sites["conv2d1"], model.observations["conv2d1"], Fits(model)
    losses = [
        closed_loss(site, fits.fit("conv2d1", ("rows", form)), observed, ISAS[builder.isa], "damage", [FAR])[0][1]
        for form in ("copy8", "copy4")
    ]
    # Sixteen times as fine, without VNNI eight times, but for what the bytes of the input lose.
    assert 0 < losses[0] < losses[1] / (50 if ISAS[builder.isa].vnni else 20)


def test_blocks_need_fewer_directions_than_four_pixels():
    # Neighbours of a smooth image see nearly the same.
    import torch
    from torch import nn

    torch.manual_seed(0)
    rows = np.cumsum(np.cumsum(np.random.default_rng(0).standard_normal((30, 8, 17, 15)), axis=2), axis=3)
    smooth = (rows / rows.std()).astype("float32")
    layer = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU()).eval()
    found = Builder(layer, [smooth], example_inputs=(torch.zeros(1, 8, 17, 15),)).model("fp32")
    site, observed = found.sites["conv2d0"], found.observations["conv2d0"]

    def lost(size: int, form: str) -> float:
        fit = Fits(found.sized({"conv2d0": size})).fit("conv2d0", ("rows", form))
        exact, rough, _ = predicted(site, fit, observed, 4000)
        return float(np.square(exact - rough).mean() / np.square(exact - exact.mean(axis=0)).mean())

    assert lost(32, "coarse") < 0.75 * lost(16, "dense"), "which multiply about as much"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [0.05, FAR])
def test_fitting_to_closed_tiles_loses_less_and_opens_the_same(builder, model, kind, name, limit):
    site, observed, isa = model.sites[name], model.observations[name], ISAS[builder.isa]
    fits, forms = Fits(model), exact_forms(model) | {name: ("rows", kind)}
    before = fits.fit(name, ("rows", kind))
    (density, loss), (again, less) = (
        closed_loss(site, fit, observed, isa, "damage", [limit])[0]
        for fit in (before, refit_closed(site, before, observed, isa, "damage", limit))
    )
    assert again == pytest.approx(density, abs=2e-3) and less < 1.02 * loss
    tables = [gate_table(site, "damage", limit, before)[EFFORTS.index(1.0)]]
    fits.refit(forms, "damage", {name: limit})
    variant = fits.variant(forms)
    variant.set_limit({name: limit})
    assert abs(open_share(variant.library, model.data.streams)[name] - density) < 0.03
    tables.append(gate_table(site, "damage", limit, variant.fits[name])[EFFORTS.index(1.0)])
    sums = np.linspace(-2, 2, 9)[:, None].astype("float32")
    scale, offset = variant.fits[name].refit
    for at, y in zip(tables, (sums, sums * scale + offset), strict=True):
        np.testing.assert_allclose(at[0] * y + at[1], tables[0][0] * sums + tables[0][1], rtol=1e-3, atol=1e-3)


def test_channels_that_nothing_predicts_hold_zero(builder, model):
    name, isa = "conv2d1", ISAS[builder.isa]
    site, observed, fit = model.sites[name], model.observations[name], Fits(model).fit("conv2d1", ("rows", "dense"))
    # A projection of nothing: what it gives is large and says nothing of the sums, whose mean is below zero.
    module = fit.little.module
    rng = np.random.default_rng(0)
    noise = (10 * rng.standard_normal(module.weight.shape)).astype("float32")
    noise[32:] = module.weight[32:]
    bad = replace(fit, little=replace(fit.little, module=replace(module, weight=noise)))
    low = replace(site, bias=np.where(np.arange(64) < 32, site.bias - 100, site.bias).astype("float32"))
    found = refit_closed(low, bad, observed, isa, "damage", FAR)
    # A line far below zero does as well.
    assert zero_channels(found) >= 8 and not (found.refit[0, 32:] == ZERO).any()
    before, after = (np.maximum(predicted(low, fit, observed, 500)[1][:, :32], 0) for fit in (bad, found))
    assert before.max() > 1 and after.max() < 1e-2


def test_kinds_are_timed_where_they_may_be_faster(builder):
    options = AdvancedOptions(dimension_share=0.25, little_kinds=("projection", "copy8", "copy4", "coarse"))
    model = builder.model("fp32", options)
    times = time_sites(model, {"conv2d1": (16, 32)}, lambda *_: None)
    assert not times["conv2d0"].alone and not times["conv2d3"].alone
    found = {kind.gated[1]: kind for kind in (times["conv2d1"], *times["conv2d1"].others)}
    assert {"copy8", "copy4"} <= set(found) <= {"dense", "columns", "nonzeros", "copy8", "copy4", "coarse"}
    assert found["copy8"].alone == found["copy4"].alone and set(found["copy8"].alone) == {0}
    for each in found.values():
        assert set(each.closed) == set(each.opened) == set(each.alone)
        assert all(time > 0 for part in (each.closed, each.opened, each.alone) for time in part.values())


@pytest.mark.usefixtures("gates_pay")
@pytest.mark.parametrize("kinds", [("copy8",), ("coarse",), ("projection", "copy8", "coarse")], ids="+".join)
def test_a_model_is_built_exported_and_built_again(builder, kinds, tmp_path):
    options = AdvancedOptions(
        rule="damage", dimensions=32, search_steps=0, little_kinds=kinds, keep_dense=("conv2d0", "conv2d2", "dense0")
    )
    library = builder.build("fp32", options=options, max_drop=0.2)
    plan = library.report.plan
    assert plan.quality >= plan.dense_quality - 0.2
    changed = [site for site in plan.sites if site.little]
    names = {"projection": "projection", "copy8": "copy", "coarse": "coarse"}
    assert {site.little for site in changed} <= {names[kind] for kind in kinds} and all(s.refit for s in changed)
    assert changed
    for site in changed:
        assert site.precision == "fp32" and site.operations > 0 and site.bytes_read > 0
        if site.little == "copy":
            assert (site.hidden, site.little_bits, site.dimensions) == ("copy8", 8, 0) and site.scale > 0
            assert "copy, 8 bit" in str(library.report)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    replayed = builder.build("fp32", options=options, plan=again)
    loaded = load(library.export_library(tmp_path / "model.so"))
    assert loaded.report.plan == plan
    for call in images(builder.model("fp32"))[:3]:
        np.testing.assert_allclose(replayed(*call), library(*call), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(loaded(*call), library(*call))


def test_a_coarse_little_module_in_a_whole_model(builder):
    model = builder.model("fp32", AdvancedOptions(site_dimensions={"conv2d1": 128, "conv2d2": 128}))
    forms = exact_forms(model) | dict.fromkeys(("conv2d1", "conv2d2"), ("little", "coarse"))
    found, wanted = outputs(Fits(model).variant(forms).library, model), outputs(builder._dense, model)
    assert 0 < np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()) < 0.3


@pytest.mark.parametrize("kinds", [("copies",), (), ("projection", "copy2")])
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(PlanError, match="little_kinds"):
        AdvancedOptions(little_kinds=kinds)


def test_scores_of_speech_stay_behind_copies():
    try:
        path = network_path("sig")
    except SetupError as error:
        pytest.skip(str(error))
    rng, time = np.random.default_rng(0), np.arange(9 * RATE) / RATE

    def clip(pitch: float, noise: float) -> np.ndarray:
        """Something like speech: harmonics that come and go, and noise."""
        voice = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 20))
        loudness = 0.1 * np.maximum(np.sin(2 * np.pi * 3 * time), 0)
        return spectrogram(loudness * voice + noise * rng.standard_normal(len(time)))

    builder = Builder(path, [np.stack([clip(110, 0.001), clip(180, 0.02)])], streaming=True)
    model = builder.model("fp32")
    forms = {name: exact_form(site, site.nonnegative) for name, site in model.sites.items()}
    copied = [name for name in model.sites if "copy8" in model.kinds(name)]
    assert len(copied) > 4
    library = Fits(model).variant(forms | dict.fromkeys(copied, ("little", "copy8"))).library
    exact = Fits(model).variant(forms).library
    for spoken in (clip(110, 0.001), clip(140, 0.005), clip(200, 0.03)):
        found, wanted = (scores("sig", lib.stream()(spoken[None]))["sig"] for lib in (library, exact))
        assert 0 < np.abs(found - wanted).max() < 0.05
