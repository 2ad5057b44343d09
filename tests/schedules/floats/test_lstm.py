"""The LSTM cell: its pointwise update."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.lstm import lstm_pointwise
from tests.schedules.conftest import RUNNABLE, Output, join, run


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def lstm_data(h, seed=0):
    rng = np.random.default_rng(seed)
    given_half, hidden = (rng.standard_normal((2, 4 * h)) * 2).astype("float32")
    return given_half, hidden, (rng.standard_normal(h) * 2).astype("float32")


def updated(given_half, hidden, cell):
    """Return the states h and c that follow, by NumPy."""
    i, o, f, g = np.split(given_half.astype("float64") + hidden, 4)
    after = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(after), after


def outputs(h):
    return Output((h,), "float32"), Output((h,), "float32")


@pytest.mark.parametrize("h", [1, 19, 600])
def test_pointwise_matches_numpy(isa, h):
    data = lstm_data(h)
    found = run(isa, lstm_pointwise(isa, h), *data, *outputs(h))
    np.testing.assert_allclose(found, updated(*data), rtol=0, atol=4e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), h=st.integers(1, 150), seed=st.integers(0, 1000))
def test_pointwise_matches_numpy_at_any_size(isa, h, seed):
    data = lstm_data(h, seed)
    found = run(isa, lstm_pointwise(isa, h), *data, *outputs(h))
    np.testing.assert_allclose(found, updated(*data), rtol=0, atol=4e-6)


def test_saturated_gates_keep_or_replace_the_cell(isa):
    h = 33
    cell = np.linspace(-3, 3, h).astype("float32")
    far = np.full(h, 1e30, "float32")
    hidden = np.zeros(4 * h, "float32")
    kept = np.concatenate([-far, far, far, far])
    found = run(isa, lstm_pointwise(isa, h), kept, hidden, cell, *outputs(h))
    np.testing.assert_allclose(found, [np.tanh(cell), cell], rtol=0, atol=4e-6)
    replaced = np.concatenate([far, -far, -far, -far])
    found = run(isa, lstm_pointwise(isa, h), replaced, hidden, cell, *outputs(h))
    np.testing.assert_allclose(found, [np.zeros(h), -np.ones(h)], rtol=0, atol=4e-6)


def test_two_steps_joined_in_one_kernel_equal_the_two_apart(isa):
    """Vectors in between may share memory: what a unit's overlapping vector reads must not be its result."""
    h = 37
    given_half, hidden, cell = lstm_data(h)
    step = lstm_pointwise(isa, h)
    _, middle = run(isa, step, given_half, hidden, cell, *outputs(h))
    apart, _ = run(isa, step, given_half, hidden, middle, *outputs(h))
    operands = {"given": given_half, "hidden": hidden, "cell": cell}
    stages = [
        (step, ["given", "hidden", "cell"], ["unused", "middle"]),
        (step, ["given", "hidden", "middle"], ["y", "after"]),
    ]
    (together,) = run(isa, join(operands, stages, "y"), *operands.values(), Output((h,), "float32"))
    np.testing.assert_array_equal(together, apart)
