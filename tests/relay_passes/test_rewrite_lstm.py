"""RewriteLstm: a planned LSTM becomes one step; its kernels, their operands, its values."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from relay_passes.mark_sites import MarkSites
from relay_passes.products import LittleModule
from relay_passes.rewrite_lstm import RewriteLstm
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules import little, row_operands
from schedules.cpu import ISAS

H, K = 5, 7
N = 4 * H
LIMITS = (4, 2)
OPEN, CLOSED = (np.tile(np.array(limits, "float32"), (4, 1)) for limits in ([-2, 2], [1e30, 0]))


@pytest.fixture(scope="module")
def weights(tools):
    return tools.normal(N, K), tools.normal(N, H, seed=1), tools.normal(2 * N, seed=2)


def planned(tools, weights, form, little_module=None, layers=1, relu=False):
    marked = MarkSites()(tools.lstm_module(*weights, layers, relu))
    names = [f"lstm{i}" for i in range(layers)]
    littles = dict.fromkeys(names, little_module) if little_module else {}
    spreads = dict.fromkeys(names, np.ones(N, "float32"))
    return AttachPlan(dict.fromkeys(names, form), littles, spreads, {})(marked)


def whole_little(weight, recurrence, bias, *, both: bool, bits: int = 8) -> LittleModule:
    """Return a little module that is the layer itself: the sum of both halves, or the state's half."""
    if not both:
        return LittleModule((np.eye(H, dtype="float32"),), np.zeros(H, "float32"), recurrence, bias[N:], bits)
    projections = np.eye(K + H, K, dtype="float32"), np.eye(K + H, H, -K, dtype="float32")
    matrix = np.concatenate([weight, recurrence], axis=1)
    return LittleModule(projections, np.zeros(K + H, "float32"), matrix, bias[:N] + bias[N:], bits)


def packed(n: int, k: int, precision: str) -> list[tuple[int, ...]]:
    pack = row_operands.pack_rows_int8 if precision == "int8" else row_operands.pack_rows_fp32
    return [a.shape for a in pack(ISAS["avx2"], np.zeros((n, k), "float32"), None).values()]


def shapes(parts) -> list[tuple[int, ...]]:
    return [tuple(map(int, part.shape)) for part in parts]


def test_exact_form(tools, weights):
    after = RewriteLstm()(planned(tools, weights, SiteForm("fp32", "dense", "dense", "", 1, "avx2")))
    every = [row_operands.every_row(N).shape, (1,), (N,)]
    assert tools.step_calls(after, "lstm0") == [
        ("gated_rows", [(K,), *packed(N, K, "fp32"), *every]),
        ("gated_rows", [(H,), *packed(N, H, "fp32"), *every]),
        ("pointwise", [(N,), (N,), (H,)]),
    ]
    main = after["main"]
    assert shapes(p.ty for p in main.params) == [(1, 1, K), (1, 1, H), (1, 1, H)]
    assert shapes(main.ret_ty.fields) == [(1, 1, H)] * 3
    assert list(main.attrs["dual.thresholds"]) == [] and list(main.attrs["dual.counts"]) == []


def test_dual_form_of_both_matrices(tools, weights):
    """The little module predicts the sums; one gate, one list, both products from it."""
    small = whole_little(*weights, both=True)
    form = SiteForm("int8", "rows", "rows", "damage", 1, "avx2")
    after = RewriteLstm()(planned(tools, weights, form, little_module=small))
    k = K + H
    little_parts = [a.shape for a in little.pack_little(ISAS["avx2"], small.weight, small.bias, 8)]
    calls = tools.step_calls(after, "lstm0")
    assert [name for name, _ in calls] == [
        *("quantize", "gated_rows", "quantize", "gated_rows", "add", "quantize_projection", "little"),
        *("gate", "row_pairs", "pointwise"),
    ]
    operands = [shape for _, shape in calls]
    assert operands[0] == [(K,)] and operands[2] == [(H,)] and operands[4] == [(k,), (k,)]
    assert operands[6][2:] == little_parts
    assert operands[7] == [(N,), (N,), (H,), (N,), LIMITS]
    big = packed(N, K, "int8")[0][0] + packed(N, H, "int8")[0][0]
    assert operands[8][4:] == [(big,), (row_operands.list_length(N),), (1,), (N,), (N,)]
    assert operands[9] == [(N,), (N,), (H,)]
    main = after["main"]
    assert shapes(p.ty for p in main.params) == [(1, 1, K), (1, 1, H), (1, 1, H), LIMITS]
    assert shapes(main.ret_ty.fields) == [*[(1, 1, H)] * 3, (1,)]
    assert list(map(str, main.attrs["dual.thresholds"])) == ["lstm0"]
    assert list(map(str, main.attrs["dual.counts"])) == ["lstm0"]


def test_dual_form_of_the_state_alone(tools, weights):
    form = SiteForm("fp32", "columns", "rows", "activation", 1, "avx2")
    small = whole_little(*weights, both=False)
    after = RewriteLstm()(planned(tools, weights, form, little_module=small))
    assert [name for name, _ in tools.step_calls(after, "lstm0")] == [
        *("nonzeros", "columns", "quantize", "gated_rows", "quantize_projection", "little"),
        *("gate", "gated_rows", "pointwise"),
    ]


def test_little_modules_alone(tools, weights):
    form = SiteForm("int8", "little", "little", "", 1, "avx2")
    after = RewriteLstm()(planned(tools, weights, form, little_module=whole_little(*weights, both=True)))
    assert [name for name, _ in tools.step_calls(after, "lstm0")][-2:] == ["little", "pointwise"]
    form = SiteForm("fp32", "dense", "little", "", 1, "avx2")
    after = RewriteLstm()(planned(tools, weights, form, little_module=whole_little(*weights, both=False)))
    assert [name for name, _ in tools.step_calls(after, "lstm0")] == [
        *("gated_rows", "quantize", "gated_rows", "quantize_projection", "little", "pointwise")
    ]


def test_thresholds_and_states_follow_the_sites(tools):
    weights = tools.normal(N, H), tools.normal(N, H, seed=1), tools.normal(2 * N, seed=2)
    small = whole_little(*weights, both=False)
    form = SiteForm("fp32", "dense", "rows", "damage", 1, "avx2")
    main = RewriteLstm()(planned(tools, weights, form, little_module=small, layers=2))["main"]
    assert list(map(str, main.attrs["dual.thresholds"])) == ["lstm0", "lstm1"]
    assert list(map(str, main.attrs["dual.counts"])) == ["lstm0", "lstm1"]
    assert [p.name for p in main.params] == ["x", "h0", "c0", "h1", "c1", "lstm0_thresholds", "lstm1_thresholds"]
    assert shapes(main.ret_ty.fields) == [*[(1, 1, H)] * 5, (1,), (1,)]


def test_an_unplanned_site_stays(tools, weights):
    module = MarkSites()(tools.lstm_module(*weights))
    tvm.ir.assert_structural_equal(RewriteLstm()(module), module)


def run(tools, native, module, x, *states_and_limits):
    arrays = [a.reshape(1, 1, -1) if a.shape != LIMITS else a for a in (x, *states_and_limits)]
    return [value.reshape(-1) for value in tools.run(module, native, *arrays)]


@pytest.fixture(scope="module")
def read(tools):
    """Return an input, and the states h and c."""
    return tools.normal(K, seed=3), tools.normal(H, seed=4), tools.normal(H, seed=5) * 3


@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-6), ("int8", 0.03)])
@pytest.mark.parametrize("input_form", ["dense", "columns"])
def test_values_of_exact_forms(tools, native, weights, read, precision, tolerance, input_form):
    relu = input_form == "columns"
    form = SiteForm(precision, input_form, "dense", "", 1, native.name)
    module = RewriteLstm()(planned(tools, weights, form, relu=relu))
    x, h, c = read
    y, *states = run(tools, native, module, x, h, c)
    wanted = tools.lstm_step(np.maximum(x, 0) if relu else x, h, c, *weights)
    np.testing.assert_allclose(states, wanted, atol=tolerance)
    np.testing.assert_array_equal(y, states[0])


@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-6), ("int8", 0.03)])
@pytest.mark.parametrize("forms", [("rows", "rows"), ("dense", "rows"), ("columns", "rows")])
def test_values_of_dual_forms(tools, native, weights, read, forms, precision, tolerance):
    """Open, a dual form gives the exact values; closed, those of the little module, here nearly exact."""
    relu = forms[0] == "columns"
    form = SiteForm(precision, *forms, "damage", 1, native.name)
    small = whole_little(*weights, both=forms[0] == "rows")
    module = RewriteLstm()(planned(tools, weights, form, little_module=small, relu=relu))
    x, h, c = read
    wanted = tools.lstm_step(np.maximum(x, 0) if relu else x, h, c, *weights)
    for limits, allowed, open_rows in ((OPEN, tolerance, N), (CLOSED, 0.03, 0)):
        _, *states, count = run(tools, native, module, x, h, c, limits)
        np.testing.assert_allclose(states, wanted, atol=allowed)
        assert int(count[0]) == open_rows


def test_a_float_little_module_is_dense_rows(tools, native, weights, read):
    form = SiteForm("int8", "little", "little", "", 1, native.name)
    small = whole_little(*weights, both=True, bits=32)
    after = RewriteLstm()(planned(tools, weights, form, little_module=small))
    assert [name for name, _ in tools.step_calls(after, "lstm0")] == [
        *("gated_rows", "gated_rows", "add", "gated_rows", "pointwise")
    ]
    _, *states = run(tools, native, after, *read)
    np.testing.assert_allclose(states, tools.lstm_step(*read, *weights), atol=2e-6)


def test_values_of_little_modules_alone(tools, native, weights, read):
    for forms, both in ((("little", "little"), True), (("dense", "little"), False)):
        form = SiteForm("fp32", *forms, "", 1, native.name)
        module = RewriteLstm()(planned(tools, weights, form, little_module=whole_little(*weights, both=both)))
        _, *states = run(tools, native, module, *read)
        np.testing.assert_allclose(states, tools.lstm_step(*read, *weights), atol=0.03)
