"""Little modules on bytes: what is fitted, what is compiled, and models that are built with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS, native_isa
from schedules.words import stored_taps
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.allocation import allocate
from tvm_dual.builder import Builder
from tvm_dual.byte_convs import byte_scale, choose_bytes
from tvm_dual.byte_little import as_bytes, byte_sums, bytes_little, stood_for
from tvm_dual.forms import GATED_BYTES, LITTLE_BYTES, exact_form
from tvm_dual.gates import FAR
from tvm_dual.little import fit_responses
from tvm_dual.model import Model
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.site_choices import sizes_of
from tvm_dual.site_times import time_sites
from tvm_dual.variants import Fits

OPTIONS = AdvancedOptions(rule="damage", dimension_share=0.25)
VNNI = ISAS["avx512_vnni"]


@pytest.fixture(scope="module")
def builder() -> Builder:
    # Not AMX: on its tiles layers as small as these take the time of a call in any form.
    return blocks_builder(native_isa().records)


@pytest.fixture(scope="module")
def model(builder) -> Model:
    """The network with every convolution on bytes."""
    found = builder.model("int8", OPTIONS)
    scales = {name: byte_scale(found.observations[name].inputs[0]) for name, site in found.sites.items() if site.conv}
    return replace(found, on_bytes=scales)


@pytest.fixture(scope="module")
def problem():
    """Inputs, weights of few directions, sums."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((3000, 96)), 0).astype("float32")
    weight = (rng.standard_normal((40, 8)) * 0.5 ** np.arange(8)) @ rng.standard_normal((8, 96))
    weight = (weight + 0.01 * rng.standard_normal((40, 96))).astype("float32")
    return x, weight, x @ weight.T + 3


@pytest.mark.parametrize("level, run, most", [("avx512_vnni", 30, 0.002), ("avx2", 30, 0.003), ("avx2", 96, 0.003)])
@pytest.mark.parametrize("k", [4, 16])
def test_bytes_lose_little_of_what_floats_predict(problem, k, level, run, most):
    (x, weight, targets), isa = problem, ISAS[level]
    importance, source = np.linspace(0.1, 2, 40).astype("float32"), byte_scale(x)
    floats = fit_responses(x, targets, weight, k, importance)
    found = bytes_little(floats, x, targets, importance, source, isa, run)
    assert found.module.bits == 8 and found.module.weight.shape == (40, k)
    errors = targets - byte_sums(found.module, x, source)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(found.spread, errors.std(axis=0), rtol=1e-3)
    lost = [float(((fit.spread * importance) ** 2).sum()) for fit in (floats, found)]
    power = float(((targets.std(axis=0) * importance) ** 2).sum())
    assert lost[1] - lost[0] < most * power
    for part, beside in ((found.module.projections[0], run), (found.module.weight, k)):
        np.testing.assert_allclose(stored_taps(isa, part, beside), part, rtol=1e-6)


def test_levels_of_every_direction_are_made_use_of(problem):
    x, weight, targets = problem
    importance, source = np.ones(40, "float32"), byte_scale(x)
    module = bytes_little(
        fit_responses(x, targets, weight, 8, importance), x, targets, importance, source, VNNI, 96
    ).module
    few = stood_for(x, source) @ module.projections[0].T - module.center
    reached = np.abs(few).max(axis=0)
    assert reached.max() > 120 and reached.min() > 12, "directions differ by 200 in what they reach as floats"
    assert np.abs(few).mean() > 8


def test_trained_rows_are_kept(problem):
    x, weight, targets = problem
    importance, source = np.ones(40, "float32"), byte_scale(x)
    floats = fit_responses(x, targets, weight, 8, importance)
    moved = replace(floats, module=replace(floats.module, bias=floats.module.bias + 5))
    found = bytes_little(moved, x, targets, importance, source, VNNI, 96, refit=False)
    assert (byte_sums(found.module, x, source) - targets).mean() == pytest.approx(5, abs=0.1)


def test_bytes_stand_for_values():
    levels = Affine(0.5, 100)
    np.testing.assert_array_equal(as_bytes(np.array([-99.0, -50.2, 0.0, 0.3, 99.0]), levels), [0, 0, 100, 101, 255])
    np.testing.assert_allclose(stood_for(np.array([-1.0, 0.3], "float32"), levels), [-1.0, 0.5])


@pytest.mark.parametrize("name, reads, writes", [("conv2d1", "uint8", "uint8"), ("conv2d3", "uint8", "float32")])
def test_a_layer_alone_reads_and_writes_what_it_does_in_the_model(model, name, reads, writes):
    fit = Fits(model).fit(name, LITTLE_BYTES)
    exact = {other: exact_form(model.sites[other], False) for other in model.on_bytes}
    compiler = model.compiler.with_bytes(model.site_forms(exact)).of_site(name)
    library = compiler.compile(model.site_forms({name: LITTLE_BYTES}), {name: fit.little}, {name: fit.spread})
    assert {tensor.dtype for tensor in library.metadata.inputs} == {reads}
    assert library.metadata.outputs[0].dtype == writes
    x, *residual = model.observations[name].examples[0]
    given = [as_bytes(image, model.on_bytes[name]) for image in (x, *residual)]
    found = library(*given)[0].reshape(-1, 64)
    padded = np.pad(stood_for(x, model.on_bytes[name])[0], ((1, 1), (1, 1), (0, 0)))
    seen = np.stack([padded[i : i + 3, j : j + 3].ravel() for i in range(x.shape[1]) for j in range(x.shape[2])])
    wanted = byte_sums(fit.little.module, seen, model.on_bytes[name])
    if residual:
        levels = model.on_bytes[site_after(model, "conv2d1")]
        wanted = wanted + (given[1].reshape(-1, 64).astype("float32") - levels.zero) * levels.scale
    wanted = np.maximum(wanted, 0)
    if writes == "uint8":
        levels = model.on_bytes[site_after(model, name)]
        assert np.abs(found.astype(int) - as_bytes(wanted, levels)).max() <= 1
    else:
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def site_after(model: Model, name: str) -> str:
    """Return the site whose scale an image has."""
    return model.sites[name].consumers[0]


def test_layers_on_bytes_have_times_of_their_little_modules_alone(model):
    sizes = {"conv2d1": (16,), "conv2d3": (16, 32)}
    found = time_sites(model, sizes, lambda *_: None)
    for name in model.sites:
        times = found[name]
        if name in sizes:
            # Whether a gate pays is the machine's to say.
            gated = sizes[name] if times.gated == GATED_BYTES else ()
            assert times.form == ("dense", "") and tuple(times.closed) == tuple(times.opened) == gated
        assert tuple(times.alone) == sizes.get(name, ())
        assert times.gated in ((LITTLE_BYTES, GATED_BYTES) if name in sizes else (times.form,))
        assert times.exact > 0 and all(value > 0 for value in times.alone.values())


@pytest.mark.usefixtures("gates_pay")
def test_a_model_is_built_with_little_modules_on_bytes_and_again_from_its_plan(builder):
    options = replace(OPTIONS, dimensions=16, search_steps=0)
    library = builder.build("int8", options=options, max_drop=0.2)
    plan = library.report.plan
    assert plan.quality >= plan.dense_quality - 0.2
    chosen = [site for site in plan.sites if (site.input, site.hidden) == LITTLE_BYTES]
    assert chosen, "three layers of this model are mostly of few directions"
    for site in chosen:
        k, (rows, inputs) = site.dimensions, builder.model().sites[site.name].weight.shape
        assert (site.precision, site.little_bits, site.density) == ("int8", 8, 0.0) and site.scale > 0
        assert k % 16 == 0 and site.reason == f"little module on bytes, {k} of {min(rows, inputs)} directions"
        assert site.operations == 12 * 11 * (k * inputs + rows * k)
        assert site.all_operations == 12 * 11 * rows * inputs
        assert site.bytes_read == k * -(-inputs // 4) * 4 + rows * k
    assert "little module on bytes" in str(library.report)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    replayed = builder.build("int8", options=options, plan=again)
    for before, after in zip(plan.sites, replayed.report.plan.sites, strict=True):
        names = ("input", "hidden", "precision", "dimensions", "scale", "zero", "bytes_read", "reason")
        assert [getattr(before, n) for n in names] == [getattr(after, n) for n in names]
    for call in builder.model().data.streams[0][:3]:
        np.testing.assert_array_equal(replayed(*call), library(*call))


def test_layers_go_back_to_floats_for_their_time_only_where_the_budget_allows_it(model, monkeypatch):
    # Floats are faster wherever they skip zeros.
    monkeypatch.setattr(
        "tvm_dual.site_times.in_turns",
        lambda model, entries, *_: {name: [9.0 - i for i in range(len(found))] for name, found in entries.items()},
    )
    model = replace(model, options=replace(OPTIONS, keep_dense=tuple(model.sites), search_steps=0))
    found = [allocate(model, Answers(answers), lambda *_: None).exact.forms for answers in ([0.0], [-1.0])]
    skipping = {name for name in model.on_bytes if model.sites[name].nonnegative}
    assert skipping and all(found[0][name] == ("columns", "") for name in skipping)
    assert all(found[1][name] == ("dense", "") for name in model.on_bytes)


@pytest.mark.parametrize("slower, skipping", [(10.0, True), (30.0, False)])
def test_layers_follow_others_to_floats_if_that_keeps_the_budget_and_is_faster(model, monkeypatch, slower, skipping):
    first, *rest = (name for name in model.on_bytes if model.sites[name].nonnegative)
    assert rest
    # On bytes every layer takes 9; where it skips zeros the first one 1, all others longer.
    monkeypatch.setattr(
        "tvm_dual.site_times.in_turns",
        lambda model, entries, *_: {
            name: [9.0, 1.0 if name == first else slower][: len(found)] + [9.0] * (len(found) - 2)
            for name, found in entries.items()
        },
    )
    model = replace(model, options=replace(OPTIONS, keep_dense=tuple(model.sites), search_steps=0))
    # The first layer alone loses too much; with any other one it does not.
    found = allocate(model, Answers([-1.0, *[0.0] * 20]), lambda *_: None).exact.forms
    others = [name for name in rest if found[name] == ("columns", "")]
    assert (found[first] == ("columns", "")) == skipping
    assert len(others) == skipping


def test_a_dense_layer_goes_back_to_floats_if_the_budget_asks_for_it(builder, monkeypatch):
    class Seen:
        """Stands for `Fits`: what is judged is the model."""

        def __init__(self, model: Model) -> None:
            self.model = model

        def judged(self, forms) -> Model:
            return self.model

    monkeypatch.setattr("tvm_dual.byte_convs.Fits", Seen)
    answers = Answers([])
    monkeypatch.setattr(answers, "judge", lambda model: 0.0 if "dense0" in model.on_floats else -1.0)
    found = choose_bytes(builder.model("int8", OPTIONS), answers, lambda *_: None)
    assert found.on_floats == {"dense0"} and set(found.on_bytes) == {n for n, site in found.sites.items() if site.conv}
    assert found.site_precision("dense0", ("dense", "")) == "fp32"


def test_a_plan_with_a_dense_layer_in_floats_is_followed(builder):
    plan = builder.build("int8", options=AdvancedOptions(mode="dense"), max_drop=1.0).report.plan
    sites = tuple(replace(site, precision="fp32") if site.name == "dense0" else site for site in plan.sites)
    assert [site.precision for site in plan.sites if site.name == "dense0"] == ["int8"]
    again = builder.build("int8", plan=replace(plan, sites=sites)).report.plan
    assert [site.precision for site in again.sites] == [site.precision for site in sites]


class Answers:
    """Judges what comes by a list, and takes what is not below zero."""

    def __init__(self, answers: list[float]) -> None:
        self.answers = answers

    def judge(self, library) -> float:
        return self.answers.pop(0)

    def accepts(self, value: float) -> bool:
        return value >= 0


def test_trained_little_modules_become_bytes(builder):
    model = builder.model("int8", replace(OPTIONS, finetune_steps=20))
    scales = {"conv2d1": byte_scale(model.observations["conv2d1"].inputs[0])}
    model = replace(model, on_bytes=scales, known={})
    fits, observed, site = Fits(model), model.observations["conv2d1"], model.sites["conv2d1"]
    closed = fits.fit("conv2d1", LITTLE_BYTES)
    assert fits.finetune({"conv2d1": LITTLE_BYTES}, {"conv2d1": FAR}, lambda *_: None)
    tuned = fits.fit("conv2d1", LITTLE_BYTES)
    assert tuned.tuned and not closed.tuned and tuned.little.module.bits == 8
    assert (tuned.little.module.weight != closed.little.module.weight).any()
    (x,) = observed.inputs
    wanted = np.maximum(x @ site.weight.T + site.bias, 0)
    errors = [
        np.square(np.maximum(byte_sums(fit.little.module, x, scales["conv2d1"]), 0) - wanted).mean()
        for fit in (closed, tuned)
    ]
    # Training can gain nothing that rounding does not hide here: sixteen directions are nearly all of this layer.
    assert max(errors) < 0.01 * np.square(wanted).mean()


def test_an_image_that_is_convolved_and_added_is_seen_in_both_places(builder):
    seen = builder.model().observations
    (third,), (_, residual) = seen["conv2d2"].examples[0], seen["conv2d3"].examples[0]
    assert third.any()
    np.testing.assert_array_equal(third, residual)


def test_a_site_that_is_kept_stays_exact(model):
    kept = replace(model, options=replace(OPTIONS, keep_dense=("conv2d1",)))
    assert [name for name in kept.sites if kept.littles_on_bytes(name)] == ["conv2d0", "conv2d2", "conv2d3"]
    assert [name for name in kept.on_bytes if kept.gates(name)] == ["conv2d0", "conv2d2", "conv2d3"]


def test_directions_on_bytes_fill_vectors(builder):
    model = builder.model("int8", replace(OPTIONS, dimensions=None, dimension_share=1 / 8))
    lanes = ISAS[builder.isa].lanes
    low = replace(model, on_bytes={"conv2d1": Affine(0.02)}, known={})
    assert sizes_of(model, "conv2d1")[0] == max(8, lanes) and sizes_of(low, "conv2d1")[0] == 16
    assert len(Fits(low).fit("conv2d1", LITTLE_BYTES).little.module.center) == 16
