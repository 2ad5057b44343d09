"""Models of convolutions, from ONNX and PyTorch to a library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from relay_passes.pipeline import prepare_pipeline
from schedules.cpu import ISAS, native_isa
from tvm_dual.builder import Builder
from tvm_dual.errors import DataError, PlanError
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.gates import OPEN
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan

EXACT = AdvancedOptions(mode="skip")


def chain_model() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Return three convolutions on a spectrogram, pooling between them, and a dense layer on the maximum."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("float32")

    weights = [weight(16, 1, 3, 3), weight(9, 16, 3, 3), weight(8, 9, 2, 1), weight(5, 8).T.copy()]
    biases = [(-0.3 * np.abs(weight(n))).astype("float32") for n in (16, 9, 8)]
    names = {f"w{i}": w for i, w in enumerate(weights)} | {f"b{i}": b for i, b in enumerate(biases)}
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    last = {"kernel_shape": [2, 1], "pads": [1, 0, 0, 0], "strides": [2, 1], "dilations": [2, 1]}
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[3]),
        helper.make_node("Transpose", ["u"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["c", "w0", "b0"], ["y0"], **conv),
        helper.make_node("Relu", ["y0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["y1"], **conv),
        helper.make_node("Relu", ["y1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["y2"], **last),
        helper.make_node("Relu", ["y2"], ["r2"]),
        helper.make_node("Transpose", ["r2"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMax", ["t"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "w3"], ["o"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 13, 10])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in names.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    return model, [*weights, *biases]


def chain_reference(arrays, x: np.ndarray) -> np.ndarray:
    """Return what `chain_model` gives for one spectrogram, by PyTorch."""
    w0, w1, w2, w3, b0, b1, b2 = (torch.from_numpy(a) for a in arrays)
    y = torch.relu(torch.conv2d(torch.from_numpy(x)[None, None], w0, b0, padding=1))
    y = torch.max_pool2d(torch.relu(torch.conv2d(y, w1, b1, padding=1)), 2)
    y = torch.conv2d(nn.functional.pad(y, (0, 0, 1, 0)), w2, b2, stride=(2, 1), dilation=(2, 1))
    return (torch.relu(y).amax((2, 3)) @ w3).numpy()


@pytest.fixture(scope="module")
def spectrograms() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 13, 10)).astype("float32")


def test_a_chain_of_convolutions_gives_the_same_as_its_layers(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms], streaming=True)
    library = builder.build("fp32", options=EXACT)
    for x in spectrograms:
        np.testing.assert_allclose(library.stream()(x), chain_reference(arrays, x), rtol=1e-4, atol=1e-5)
    forms = {site.name: (site.input, site.precision) for site in library.report.plan.sites}
    assert forms["conv2d0"] == ("dense", "fp32")
    assert forms["conv2d1"] == forms["conv2d2"] == ("columns", "fp32")


def test_convolutions_of_an_int8_build_are_on_bytes(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms], streaming=True)
    library = builder.build("int8", options=AdvancedOptions(mode="dense"))
    plan = library.report.plan
    convs = [site for site in plan.sites if site.kind == "conv2d"]
    assert [(site.input, site.precision) for site in convs] == [("dense", "int8")] * 3
    assert all("8-bit" in site.reason and site.scale > 0 for site in convs)
    assert 0 < convs[0].zero < 255 and convs[1].zero == convs[2].zero == 0
    again = builder.build("int8", plan=Plan.from_json(plan.to_json()))
    for x in spectrograms:
        found = library.stream()(x)
        np.testing.assert_allclose(found, chain_reference(arrays, x), atol=0.05)
        np.testing.assert_array_equal(again.stream()(x), found)


def test_convolutions_whose_bytes_cost_too_much_keep_floats(spectrograms):
    model, _ = chain_model()
    # Where there are tiles, bf16 stands between bytes and floats.
    builder = Builder(model, [spectrograms], streaming=True, target=native_isa().records)
    kept = AdvancedOptions(mode="dense", keep_dense=("conv2d1",))
    library = builder.build("int8", options=kept)
    forms = {site.name: (site.precision, site.reason) for site in library.report.plan.sites}
    assert forms["conv2d1"] == ("fp32", "fp32: kept by option") and forms["conv2d0"][0] == "int8"
    exact = builder.build("int8", options=AdvancedOptions(mode="dense", keep_dense=("dense0",)), max_drop=0.003)
    found = {site.name: site for site in exact.report.plan.sites if site.kind == "conv2d"}
    floats = [site for site in found.values() if site.precision == "fp32"]
    assert floats and all("below the budget" in site.reason for site in floats)


def test_convolutions_of_a_bf16_build_are_in_bf16_where_the_cpu_has_tiles(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms], streaming=True)
    if not ISAS[builder.isa].amx:
        pytest.skip("this CPU lacks AMX")
    library = builder.build("bf16", options=AdvancedOptions(mode="dense"))
    plan = library.report.plan
    assert plan.precision == "bf16" and "\nbf16, amx" in str(library.report)
    forms = {site.name: (site.precision, site.reason) for site in plan.sites}
    assert forms == {f"conv2d{i}": ("bf16", "bf16 matrix tiles (AMX)") for i in range(3)} | {
        "dense0": ("fp32", forms["dense0"][1])
    }
    again = builder.build("bf16", plan=Plan.from_json(plan.to_json()))
    for x in spectrograms:
        found, wanted = library.stream()(x), chain_reference(arrays, x)
        assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
        np.testing.assert_array_equal(again.stream()(x), found)


def test_a_bf16_build_without_tiles_says_so(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms], streaming=True, target="avx2")
    library = builder.build("bf16", options=AdvancedOptions(mode="dense"))
    convs = [site for site in library.report.plan.sites if site.kind == "conv2d"]
    assert all(site.precision == "fp32" and "avx2 has no bf16 matrix tiles" in site.reason for site in convs)
    wanted = chain_reference(arrays, spectrograms[0])
    np.testing.assert_allclose(library.stream()(spectrograms[0]), wanted, rtol=1e-4, atol=1e-5)
    sites = tuple(
        replace(site, precision="bf16") if site.kind == "conv2d" else site for site in library.report.plan.sites
    )
    with pytest.raises(PlanError, match=r"conv2d0 is computed in bf16, and avx2 has no matrix tiles"):
        builder.build("bf16", plan=replace(library.report.plan, sites=sites))


def test_convolutions_whose_bytes_cost_too_much_go_back_to_bf16(spectrograms):
    model, _ = chain_model()
    builder = Builder(model, [spectrograms], streaming=True)
    if not ISAS[builder.isa].amx:
        pytest.skip("this CPU lacks AMX")
    options = AdvancedOptions(mode="dense", keep_dense=("dense0",))
    whole = builder.build("int8", options=options).report.plan
    least = 1 - builder.build("bf16", options=options).report.plan.quality
    budget = 0.9 * (1 - whole.quality)
    assert 0 < least < budget
    library = builder.build("int8", options=options, max_drop=budget)
    plan = library.report.plan
    found = {site.name: site for site in plan.sites if site.kind == "conv2d"}
    assert {site.precision for site in found.values()} == {"int8", "bf16"}
    assert all(
        ("at 8 bits quality is below the budget" in site.reason) == (site.precision == "bf16")
        for site in found.values()
    )
    assert plan.quality >= 1 - budget and plan.quality > whole.quality
    again = builder.build("int8", plan=Plan.from_json(plan.to_json()), options=options)
    np.testing.assert_array_equal(again.stream()(spectrograms[0]), library.stream()(spectrograms[0]))
    strict = builder.build("int8", options=options, max_drop=least / 2).report.plan
    floats = [site for site in strict.sites if site.kind == "conv2d" and site.precision == "fp32"]
    assert floats and all("in bf16 quality is below the budget" in site.reason for site in floats)


def test_forms_of_convolutions_are_chosen_by_time(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms], streaming=True, target="avx2")
    library = builder.build("int8", max_drop=0.5)
    plan = {site.name: site for site in library.report.plan.sites}
    assert {site.precision for site in plan.values()} <= {"fp32", "int8"} and plan["dense0"].precision == "int8"
    assert {plan[f"conv2d{i}"].input for i in range(3)} <= {"dense", "columns", "little"}, "too few channels to gate"
    found = library.stream()(spectrograms[0])
    np.testing.assert_allclose(found, chain_reference(arrays, spectrograms[0]), atol=0.1)


@pytest.mark.parametrize("gate", ["rows", "singles"])
def test_a_gate_opens_tiles_or_outputs_by_its_bound(spectrograms, gate):
    model, arrays = chain_model()
    # The first convolution has 9 taps: a little module of one vector of 16 would be exact, and close everything.
    builder = Builder(model, [spectrograms], streaming=True, target="avx2")
    options = AdvancedOptions(dimensions=2)
    plan = builder.build("fp32", options=EXACT).report.plan
    differences = []
    for limit in (OPEN, 0.05, 1e9):
        sites = (replace(plan.sites[0], input=gate, hidden="dense", rule="damage", limit=limit), *plan.sites[1:])
        library = builder.build("fp32", options=options, plan=replace(plan, sites=sites))
        wanted = [chain_reference(arrays, x) for x in spectrograms]
        found = [library.stream()(x) for x in spectrograms]
        differences.append(np.abs(np.concatenate(found) - np.concatenate(wanted)).max())
        (site, *_) = library.report.plan.sites
        assert site.rule == "damage" and site.little_bits == 32
        assert (site.density > 0.99) == (limit == OPEN) and (site.density == 0) == (limit == 1e9)
        library.effort = float("inf")
        np.testing.assert_allclose(library.stream()(spectrograms[0]), wanted[0], rtol=1e-4, atol=1e-5)
    assert differences[0] < 1e-5 < differences[1] < differences[2]
    gated = tuple(replace(site, input=gate, hidden="dense") if site.name == "conv2d1" else site for site in plan.sites)
    with pytest.raises(PlanError, match="conv2d1"):
        builder.build("fp32", plan=replace(plan, sites=gated))


def test_an_open_batch_is_left_to_tvm(spectrograms):
    model, arrays = chain_model()
    builder = Builder(model, [spectrograms[:2, None], spectrograms[None, :2]])
    library = builder.build("fp32", options=EXACT)
    assert not [site for site in library.report.plan.sites if site.kind == "conv2d"]
    wanted = np.concatenate([chain_reference(arrays, x) for x in spectrograms[:3]])
    np.testing.assert_allclose(library(spectrograms[:3]), wanted, rtol=1e-4, atol=1e-5)


def test_a_batch_that_all_data_has_is_fixed(spectrograms):
    model, arrays = chain_model()
    library = Builder(model, [spectrograms[:2, None]]).build("fp32", options=EXACT)
    assert "conv2d" in {site.kind for site in library.report.plan.sites}
    np.testing.assert_allclose(
        library(spectrograms[:1]), chain_reference(arrays, spectrograms[0]), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(DataError, match=r"shape \(3, .*accepted"):
        library(spectrograms[:3])


def test_no_image_is_transposed_between_convolutions():
    model, _ = chain_model()
    module = prepare_pipeline()(import_model(model, streaming=True))
    operators = [
        getattr(getattr(b.value, "op", None), "name", "")
        for block in module["main"].body.blocks
        for b in block.bindings
    ]
    assert "relax.permute_dims" not in operators


def test_a_dense_layer_behind_a_relu_says_that_skipping_was_slower(monkeypatch, spectrograms):
    # Zero skipping takes longer here than computing everything, whatever the machine.
    monkeypatch.setattr(
        "tvm_dual.site_times.in_turns",
        lambda model, entries, *_: {
            name: [1.0 + (i > 0) for i in range(len(found))] for name, found in entries.items()
        },
    )
    model, _ = chain_model()
    options = AdvancedOptions(keep_dense=("conv2d0", "conv2d1", "conv2d2", "dense0"))
    report = Builder(model, [spectrograms], streaming=True).build("fp32", options=options).report
    reasons = {site.name: site.reason for site in report.plan.sites}
    assert "zero" not in reasons["conv2d0"]
    assert "of the inputs are zero, and skipping them was slower" in reasons["conv2d1"]
