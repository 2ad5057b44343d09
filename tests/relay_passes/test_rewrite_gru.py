"""RewriteGru: a planned GRU becomes one step; its kernels, their operands, its values."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from relay_passes.mark_sites import MarkSites
from relay_passes.products import LittleModule
from relay_passes.rewrite_gru import RewriteGru
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules import little, row_operands
from schedules.cpu import ISAS

H, K = 5, 7
LIMITS = (3, 2)
OPEN, CLOSED = (np.tile(np.array(limits, "float32"), (3, 1)) for limits in ([-2, 2], [1e30, 0]))


@pytest.fixture(scope="module")
def weights(tools):
    return tools.normal(3 * H, K), tools.normal(3 * H, H, seed=1), tools.normal(6 * H, seed=2)


def planned(tools, weights, form, late_reset=1, little_module=None, layers=1):
    marked = MarkSites()(tools.gru_module(*weights, late_reset, layers))
    names = [f"gru{i}" for i in range(layers)]
    littles = dict.fromkeys(names, little_module) if little_module else {}
    spreads = dict.fromkeys(names, np.ones(3 * H, "float32"))
    return AttachPlan(dict.fromkeys(names, form), littles, spreads, {})(marked)


def whole_little(weight, recurrence, bias, *, both: bool, bits: int = 8) -> LittleModule:
    """Return a little module that is the layer itself: z and r together, then both halves of n."""
    eye, n = np.eye(H, dtype="float32"), 2 * H
    if not both:
        return LittleModule((eye,), np.zeros(H, "float32"), recurrence, bias[3 * H :], bits)
    projections = np.eye(K + H, K, dtype="float32"), np.eye(K + H, H, -K, dtype="float32")
    matrix = np.zeros((4 * H, K + H), "float32")
    matrix[:n], matrix[n : 3 * H, :K] = np.concatenate([weight[:n], recurrence[:n]], axis=1), weight[n:]
    matrix[3 * H :, K:] = recurrence[n:]
    biases = np.concatenate([bias[:n] + bias[3 * H : 5 * H], bias[n : 3 * H], bias[5 * H :]])
    return LittleModule(projections, np.zeros(K + H, "float32"), matrix, biases, bits)


def packed(n: int, k: int, precision: str) -> list[tuple[int, ...]]:
    pack = row_operands.pack_rows_int8 if precision == "int8" else row_operands.pack_rows_fp32
    return [a.shape for a in pack(ISAS["avx2"], np.zeros((n, k), "float32"), None).values()]


def test_exact_form(tools, weights):
    after = RewriteGru()(planned(tools, weights, SiteForm("fp32", "dense", "dense", "", 1, "avx2")))
    n = 3 * H
    every = [row_operands.every_row(n).shape, (1,), (n,)]
    assert tools.step_calls(after, "gru0") == [
        ("gated_rows", [(K,), *packed(n, K, "fp32"), *every]),
        ("gated_rows", [(H,), *packed(n, H, "fp32"), *every]),
        ("pointwise", [(n,), (n,), (H,)]),
    ]
    main = after["main"]
    assert [tuple(map(int, p.ty.shape)) for p in main.params] == [(1, 1, K), (1, 1, H)]
    assert [tuple(map(int, f.shape)) for f in main.ret_ty.fields] == [(1, 1, H), (1, 1, H)]
    assert list(main.attrs["dual.thresholds"]) == [] and list(main.attrs["dual.counts"]) == []


def test_dual_form_of_both_matrices(tools, weights):
    """The update gate's rows come first; the other rows' gate sees them exact."""
    small = whole_little(*weights, both=True)
    form = SiteForm("int8", "rows", "rows", "damage", 1, "avx2")
    after = RewriteGru()(planned(tools, weights, form, little_module=small))
    n, k = 3 * H, K + H
    little_parts = [a.shape for a in little.pack_little(ISAS["avx2"], small.weight, small.bias, 8)]
    every = [row_operands.every_row(k).shape, (1,), (k,)]
    calls = tools.step_calls(after, "gru0")
    assert [name for name, _ in calls] == [
        *("quantize", "gated_rows", "quantize", "gated_rows", "add", "quantize_projection", "little", "split"),
        *("update_gate", "row_pairs", "candidate_gate", "row_pairs", "pointwise"),
    ]
    shapes = [operands for _, operands in calls]
    assert shapes[0] == [(K,)] and shapes[2] == [(H,)]
    assert shapes[1][1:] == [(2,), *packed(k, K, "int8"), *every]
    assert shapes[3][1:] == [(2,), *packed(k, H, "int8"), *every]
    assert shapes[1][0][0] >= K and shapes[3][0][0] >= H
    assert shapes[4] == [(k,), (k,)] and shapes[5] == [(k,)]
    assert shapes[6][2:] == little_parts and shapes[7] == [(4 * H,)]
    assert shapes[8] == [(n,), (n,), (H,), (n,), LIMITS] and shapes[10] == [(n,), (n,), (n,), LIMITS]
    big = packed(n, K, "int8")[0][0] + packed(n, H, "int8")[0][0]
    for pair in (9, 11):
        assert shapes[pair][1] == shapes[pair][3] == (2,) and shapes[pair][4] == (big,)
        assert shapes[pair][5][0] >= n and shapes[pair][6:] == [(1,), (n,), (n,)]
    assert shapes[12] == [(n,), (n,), (H,)]
    main = after["main"]
    assert [tuple(map(int, p.ty.shape)) for p in main.params] == [(1, 1, K), (1, 1, H), LIMITS]
    assert [tuple(map(int, f.shape)) for f in main.ret_ty.fields] == [(1, 1, H), (1, 1, H), (1,), (1,)]
    assert list(map(str, main.attrs["dual.thresholds"])) == ["gru0"]
    assert list(map(str, main.attrs["dual.counts"])) == ["gru0", "gru0"]


def test_dual_form_of_the_state_alone(tools, weights):
    form = SiteForm("fp32", "columns", "rows", "activation", 1, "avx2")
    small = whole_little(*weights, both=False)
    after = RewriteGru()(planned(tools, weights, form, little_module=small))
    assert [name for name, _ in tools.step_calls(after, "gru0")] == [
        *("nonzeros", "columns", "quantize", "gated_rows", "quantize_projection", "little"),
        *("update_gate", "gated_rows", "candidate_gate", "gated_rows", "pointwise"),
    ]


def test_reset_before_the_product(tools, weights):
    form = SiteForm("fp32", "dense", "dense", "", 1, "avx2")
    after = RewriteGru()(planned(tools, weights, form, late_reset=0))
    assert [name for name, _ in tools.step_calls(after, "gru0")] == [
        *("gated_rows", "gated_rows", "reset", "gated_rows", "pointwise"),
    ]


def test_thresholds_follow_the_sites(tools):
    weights = tools.normal(3 * H, H), tools.normal(3 * H, H, seed=1), tools.normal(6 * H, seed=2)
    small = whole_little(*weights, both=False)
    form = SiteForm("fp32", "dense", "rows", "damage", 1, "avx2")
    main = RewriteGru()(planned(tools, weights, form, little_module=small, layers=2))["main"]
    assert list(map(str, main.attrs["dual.thresholds"])) == ["gru0", "gru1"]
    assert list(map(str, main.attrs["dual.counts"])) == ["gru0", "gru0", "gru1", "gru1"]
    assert [p.name for p in main.params[-2:]] == ["gru0_thresholds", "gru1_thresholds"]


def test_an_unplanned_site_stays(tools, weights):
    module = MarkSites()(tools.gru_module(*weights, 1))
    tvm.ir.assert_structural_equal(RewriteGru()(module), module)


@pytest.mark.parametrize("late_reset", [0, 1])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-6), ("int8", 0.03)])
def test_values_of_exact_forms(tools, native, weights, late_reset, precision, tolerance):
    form = SiteForm(precision, "dense", "dense", "", 1, native.name)
    module = RewriteGru()(planned(tools, weights, form, late_reset))
    x, h = tools.normal(K, seed=3), tools.normal(H, seed=4)
    y, state = tools.run(module, native, x.reshape(1, 1, K), h.reshape(1, 1, H))
    wanted = tools.gru_step(x, h, *weights, late_reset)
    np.testing.assert_allclose(y.reshape(-1), wanted, atol=tolerance)
    np.testing.assert_array_equal(y.reshape(-1), state.reshape(-1))


@pytest.mark.parametrize("forms", [("rows", "rows"), ("dense", "rows"), ("columns", "rows")])
def test_values_of_dual_forms(tools, native, weights, forms):
    """Open, a dual form gives the exact values; closed, those of the little module, here nearly exact."""
    form = SiteForm("fp32", *forms, "damage", 1, native.name)
    small = whole_little(*weights, both=forms[0] == "rows")
    module = RewriteGru()(planned(tools, weights, form, little_module=small))
    x, h = np.abs(tools.normal(K, seed=3)), tools.normal(H, seed=4)
    wanted = tools.gru_step(x, h, *weights, 1)
    for limits, tolerance, counts in ((OPEN, 2e-6, [H, 2 * H]), (CLOSED, 0.03, [0, 0])):
        y, _, *found = tools.run(module, native, x.reshape(1, 1, K), h.reshape(1, 1, H), limits)
        np.testing.assert_allclose(y.reshape(-1), wanted, atol=tolerance)
        assert [int(c[0]) for c in found] == counts
