"""Gates: which rows are open, as compacted lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import dense, gate, row_operands
from tests.schedules.conftest import (
    RUNNABLE,
    Output,
    band_score,
    call,
    check_against_score,
    compile_kernel,
    gate_limits,
    join,
    list_outputs,
    run,
)

SIZES = [1, 19, 600]


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def check_list(rows, count, expected):
    """Compare with the open rows, and check the tail that fills the last group."""
    assert count[0] == len(expected)
    np.testing.assert_array_equal(rows[: len(expected)], expected)
    if len(expected):
        assert (rows[len(expected) : len(expected) + row_operands.SIDE_BY_SIDE] == expected[-1]).all()


@pytest.mark.parametrize("n", SIZES)
def test_rows_inside_their_band_are_listed_in_order(isa, n):
    kernel = compile_kernel(isa, gate.band_gate(isa, n))
    rng = np.random.default_rng(n)
    y = rng.standard_normal(n).astype("float32")
    one = np.full((2, n), np.inf, "float32")
    one[0, n // 2] = -np.inf
    bands = {
        "own": np.sort(rng.standard_normal((2, n)).astype("float32"), axis=0),
        "empty": np.full((2, n), np.inf, "float32"),
        "full": np.array([[-np.inf] * n, [np.inf] * n], "float32"),
        "one": one,
    }
    for band in bands.values():
        rows, count = call(kernel, y, band, *list_outputs(n))
        check_list(rows, count, np.flatnonzero((y > band[0]) & (y < band[1])))


def test_the_bounds_of_a_band_are_closed(isa):
    y = np.zeros(37, "float32")
    band = np.stack([np.where(np.arange(37) % 2, 0, -1), np.where(np.arange(37) % 3, 1, 0)]).astype("float32")
    rows, count = run(isa, gate.band_gate(isa, 37), y, band, *list_outputs(37))
    check_list(rows, count, np.flatnonzero((band[0] < 0) & (band[1] > 0)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), n=st.integers(1, 300), seed=st.integers(0, 1000), bound=st.floats(-3, 3))
def test_band_lists_are_right_at_any_length_and_density(isa, n, seed, bound):
    y = np.random.default_rng(seed).standard_normal(n).astype("float32")
    band = np.array([[bound] * n, [np.inf] * n], "float32")
    rows, count = run(isa, gate.band_gate(isa, n), y, band, *list_outputs(n))
    check_list(rows, count, np.flatnonzero(y > band[0]))


@pytest.mark.parametrize("h", [1, 19])
def test_split_predictions_gives_the_sums_to_the_input_half(isa, h):
    y = np.random.default_rng(h).standard_normal(4 * h).astype("float32")
    given_half, hidden = run(
        isa, gate.split_predictions(isa, h), y, Output((3 * h,), "float32"), Output((3 * h,), "float32")
    )
    np.testing.assert_array_equal(given_half, y[: 3 * h])
    np.testing.assert_array_equal(hidden, np.concatenate([np.zeros(2 * h, "float32"), y[3 * h :]]))


def gru_data(h, seed=0):
    rng = np.random.default_rng(seed)
    given_half, hidden = (rng.standard_normal((2, 3 * h)) * 2).astype("float32")
    return given_half, hidden, rng.standard_normal(h).astype("float32"), rng.random(3 * h).astype("float32")


def parts(h, given_half, hidden):
    """Return z, r, n of a GRU step."""
    z, r = sigmoid(given_half[:h] + hidden[:h]), sigmoid(given_half[h : 2 * h] + hidden[h : 2 * h])
    return z, r, np.tanh(given_half[2 * h :] + r * hidden[2 * h :])


def update_score(rule, limits, given_half, hidden, state, spread):
    """Return what must be positive for a z row to be open."""
    h = len(state)
    z, _, n = parts(h, given_half, hidden)
    if rule == "damage":
        return z * (1 - z) * np.abs(state - n) * spread[:h] - limits[0, 0]
    return band_score(z, limits[0])


def candidate_score(rule, limits, given_half, hidden, state, spread):
    """Return what must be positive for the r rows and the n rows to be open."""
    h = len(state)
    z, r, n = parts(h, given_half, hidden)
    if rule == "damage":
        slope = (1 - z) * (1 - n * n)
        reset = slope * r * (1 - r) * np.abs(hidden[2 * h :]) * spread[h : 2 * h]
        return np.concatenate([reset - limits[1, 0], slope * spread[2 * h :] - limits[2, 0]])
    return np.concatenate([band_score(r, limits[1]), band_score(n, limits[2])])


@pytest.mark.parametrize("rule", ["damage", "activation"])
@pytest.mark.parametrize("h", [1, 19, 600])
def test_update_gate_opens_the_rows_that_its_rule_names(isa, h, rule):
    kernel = compile_kernel(isa, gate.gru_update_gate(isa, h, rule))
    data = gru_data(h)
    for limits in gate_limits(rule, 3):
        rows, count = call(kernel, *data, limits, *list_outputs(3 * h))
        check_against_score(rows, count, update_score(rule, limits, *data), 0)
    assert count[0] == h, "the last limits open every row"


@pytest.mark.parametrize("rule", ["damage", "activation"])
@pytest.mark.parametrize("h", [1, 19, 600])
def test_candidate_gate_opens_the_rows_that_its_rule_names(isa, h, rule):
    kernel = compile_kernel(isa, gate.gru_candidate_gate(isa, h, rule))
    given_half, hidden, state, spread = gru_data(h)
    for limits in gate_limits(rule, 3):
        rows, count = call(kernel, given_half, hidden, spread, limits, *list_outputs(3 * h))
        score = candidate_score(rule, limits, given_half, hidden, state, spread)
        check_against_score(rows, count, score, h)
    assert count[0] == 2 * h, "the last limits open every row"


@pytest.mark.parametrize("rule", ["damage", "activation"])
def test_saturated_gates_are_closed(isa, rule):
    h = 37
    given_half = np.full(3 * h, 1e30, "float32")
    given_half[::2] = -1e30
    hidden, state, spread = np.zeros(3 * h, "float32"), np.ones(h, "float32"), np.ones(3 * h, "float32")
    limits = np.array([[1e-3, 0]] * 3 if rule == "damage" else [[0.01, 0.99], [0.01, 0.99], [-0.99, 0.99]], "float32")
    _, count = run(
        isa, gate.gru_update_gate(isa, h, rule), given_half, hidden, state, spread, limits, *list_outputs(3 * h)
    )
    assert count[0] == 0


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    h=st.integers(1, 150),
    rule=st.sampled_from(["damage", "activation"]),
    seed=st.integers(0, 1000),
    limit=st.floats(0, 0.25),
)
def test_gru_gates_are_right_at_any_size(isa, h, rule, seed, limit):
    data = gru_data(h, seed)
    given_half, hidden, _, spread = data
    limits = np.array([[limit, 1 - limit], [limit / 2, 1 - 2 * limit], [limit / 3, 1]], "float32")
    outputs = list_outputs(3 * h)
    rows, count = run(isa, gate.gru_update_gate(isa, h, rule), *data, limits, *outputs)
    check_against_score(rows, count, update_score(rule, limits, *data), 0)
    rows, count = run(isa, gate.gru_candidate_gate(isa, h, rule), given_half, hidden, spread, limits, *outputs)
    check_against_score(rows, count, candidate_score(rule, limits, *data), h)


def test_gate_and_rows_joined_in_one_kernel_equal_the_two_apart(isa):
    n, k = 37, 19
    rng = np.random.default_rng(6)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    x, predicted = rng.standard_normal(k).astype("float32"), rng.standard_normal(n).astype("float32")
    band = np.array([[0] * n, [np.inf] * n], "float32")
    packed, packed_bias = row_operands.pack_rows_fp32(isa, weight, bias).values()
    listing, product = gate.band_gate(isa, n), dense.gated_rows_fp32(isa, n, k, 2)
    rows, count = run(isa, listing, predicted, band, *list_outputs(n))
    output = Output((n,), "float32")
    (apart,) = run(isa, product, x, packed, packed_bias, rows, count, predicted, output, threads=2)
    operands = {"predicted": predicted, "band": band, "x": x, "weight": packed, "bias": packed_bias}
    stages = [
        (listing, ["predicted", "band"], ["rows", "count"]),
        (product, ["x", "weight", "bias", "rows", "count", "predicted"], ["y"]),
    ]
    (together,) = run(isa, join(operands, stages, "y"), *operands.values(), output, threads=2)
    np.testing.assert_array_equal(together, apart)
