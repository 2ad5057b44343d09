"""Gate rules: bands are monotone in bound and effort, closed and open at the ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_dual.errors import PlanError
from tvm_dual.gates import EFFORTS, FAR, thresholds, unit_weights
from tvm_dual.sites import Site

ACTIVATIONS = ("relu", "sigmoid", "tanh", None)
LIMITS = st.floats(1e-4, 10)
ROWS = 6


def site(kind="dense", activation=None, name="dense0", rows=ROWS, inputs=4, consumers=()) -> Site:
    recurrent, gates = kind != "dense", {"dense": 1, "gru": 3, "lstm": 4}[kind]
    weight = np.random.default_rng(3).standard_normal((gates * rows, inputs)).astype("float32")
    recurrence = np.ones((gates * rows, rows), "float32") if recurrent else None
    bias = np.zeros(len(weight), "float32")
    recurrent_bias = bias if recurrent else None
    return Site(name, kind, weight, bias, recurrence, recurrent_bias, activation, False, 1, consumers, True)


def errors(seed: int) -> tuple[np.ndarray, np.ndarray]:
    spread, weights = np.random.default_rng(seed).uniform(0.01, 2, (2, ROWS)).astype("float32")
    return spread, weights


def contains(wide: np.ndarray, narrow: np.ndarray) -> bool:
    """Whether every value inside the narrow bands lies inside the wide ones."""
    empty = narrow[0] >= narrow[1]
    return bool((empty | ((wide[0] <= narrow[0]) & (wide[1] >= narrow[1]))).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rule", ["damage", "activation"])
@given(limit=LIMITS, seed=st.integers(0, 99))
def test_bands_widen_with_effort(activation, rule, limit, seed):
    tables = thresholds(site(activation=activation), rule, limit, *errors(seed))
    assert tables.shape == (len(EFFORTS), 2, ROWS) and tables.dtype == np.float32
    assert all(contains(wide, narrow) for narrow, wide in zip(tables, tables[1:], strict=False))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rule", ["damage", "activation"])
@given(limit=LIMITS, factor=st.floats(1, 50), seed=st.integers(0, 99))
def test_bands_narrow_with_the_bound(activation, rule, limit, factor, seed):
    one = EFFORTS.index(1.0)
    small = thresholds(site(activation=activation), rule, limit, *errors(seed))[one]
    large = thresholds(site(activation=activation), rule, limit * factor, *errors(seed))[one]
    assert contains(small, large)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rule", ["damage", "activation"])
def test_extremes_of_effort(activation, rule):
    tables = thresholds(site(activation=activation), rule, 0.1, *errors(0))
    closed, opened = tables[EFFORTS.index(0.0)], tables[EFFORTS.index(float("inf"))]
    assert (closed[0] > closed[1]).all()
    np.testing.assert_allclose(opened, np.array([[-FAR] * ROWS, [FAR] * ROWS]), rtol=1e-6)


@given(limit=st.floats(1e-3, 0.2), seed=st.integers(0, 99))
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_the_edge_of_a_damage_band_does_just_that_damage(activation, limit, seed):
    spread, weights = errors(seed)
    band = thresholds(site(activation=activation), "damage", limit, spread, weights)[EFFORTS.index(1.0)].astype(
        "float64"
    )
    is_open = band[0] < band[1]
    y = band[1][is_open]
    sigmoid = 1 / (1 + np.exp(-y))
    slope = sigmoid * (1 - sigmoid) if activation == "sigmoid" else 1 - np.tanh(y) ** 2
    worst = (spread * weights)[is_open]
    np.testing.assert_allclose(slope * worst, limit, rtol=1e-3)
    np.testing.assert_array_equal(band[0][is_open], -y)
    # What is closed could not do that damage anywhere.
    assert ((spread * weights)[~is_open] * (0.25 if activation == "sigmoid" else 1) <= limit * (1 + 1e-5)).all()


@pytest.mark.parametrize("margin", [0.05, 0.2, 0.4])
def test_activation_rule_is_the_flat_region_of_the_nonlinearity(margin):
    """Open where the output is not yet within the margin of saturation; a ReLU where it is not off."""
    one, spread = EFFORTS.index(1.0), np.full(ROWS, 0.7, "float32")
    band = thresholds(site(activation="sigmoid"), "activation", margin, spread, spread)[one]
    np.testing.assert_allclose(1 / (1 + np.exp(-band)), [[margin] * ROWS, [1 - margin] * ROWS], rtol=1e-5)
    band = thresholds(site(activation="tanh"), "activation", margin, spread, spread)[one]
    np.testing.assert_allclose(np.tanh(band), [[2 * margin - 1] * ROWS, [1 - 2 * margin] * ROWS], rtol=1e-5)
    low, high = thresholds(site(activation="relu"), "activation", margin, spread, spread)[one]
    assert (low < 0).all() and (high > 1e29).all()


def test_activation_rule_at_the_paper_s_relu_threshold():
    spread = np.full(ROWS, 0.7, "float32")
    low, _ = thresholds(site(activation="relu"), "activation", 0.5, spread, spread)[EFFORTS.index(1.0)]
    np.testing.assert_allclose(low, 0, atol=1e-7)


@pytest.mark.parametrize("kind, gates", [("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("rule", ["damage", "activation"])
def test_limits_of_a_recurrent_layer(rule, kind, gates):
    tables = thresholds(site(kind, name="r"), rule, 0.1, np.ones(gates * ROWS, "float32"), np.ones(ROWS, "float32"))
    assert tables.shape == (len(EFFORTS), gates, 2)
    finite = tables[1:-1]
    assert (tables[-1] == [-2, 2]).all()
    if rule == "damage":
        np.testing.assert_allclose(finite[:, :, 0], np.tile([[0.1 / e] for e in EFFORTS[1:-1]], gates), rtol=1e-6)
        assert (tables[0, :, 0] > 1e29).all()
    else:
        assert (np.diff(finite[:, :, 0], axis=0) < 0).all() and (np.diff(finite[:, :, 1], axis=0) > 0).all()
        assert (tables[0, :, 0] >= tables[0, :, 1]).all()
        at_one = tables[EFFORTS.index(1.0)]
        np.testing.assert_allclose(at_one, [*[[0.1, 0.9]] * (gates - 1), [-0.8, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("rule", ["damage", "activation"])
@pytest.mark.parametrize("kind, gate, row", [("gru", "r", 1), ("lstm", "f", 2), ("lstm", "g", 3)])
def test_a_factor_is_its_gate_s_own(rule, kind, gate, row):
    layer = site(kind, name="r")
    spread, weights = np.ones(len(layer.weight), "float32"), np.ones(ROWS, "float32")
    plain, doubled = (thresholds(layer, rule, limit, spread, weights) for limit in (0.1, 0.2))
    found = thresholds(layer, rule, 0.1, spread, weights, {gate: 2.0, "other": 3.0})
    others = np.arange(plain.shape[1]) != row
    np.testing.assert_array_equal(found[:, others], plain[:, others])
    np.testing.assert_array_equal(found[1:-1, row], doubled[1:-1, row])
    assert (found[0, row, 0] > 1e29) if rule == "damage" else (found[0, row, 0] >= found[0, row, 1])
    np.testing.assert_array_equal(found[-1], plain[-1])


def test_unknown_rule():
    with pytest.raises(PlanError, match=r"'luck'.*damage, activation"):
        thresholds(site(), "luck", 0.1, *errors(0))


def test_unit_weights_are_the_norms_of_the_consumers_columns():
    first, second = site(), site(name="dense1", rows=3, inputs=ROWS)
    first = site(consumers=("dense1",))
    sites = {"dense0": first, "dense1": second}
    np.testing.assert_allclose(unit_weights(first, sites), np.linalg.norm(second.weight, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(unit_weights(second, sites), np.ones(3))
    for kind, gates in (("gru", 3), ("lstm", 4)):
        layer = site(kind, name="r")
        np.testing.assert_allclose(unit_weights(layer, {"r": layer}), np.sqrt(gates * ROWS), rtol=1e-6)
