"""The GRU cell: nonlinearities and the pointwise update."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.script import tirx as T

from schedules import intrinsics, recurrent
from tests.schedules.conftest import RUNNABLE, Output, join, run

SIZES = [1, 19, 600]


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def elementwise(function, n):
    """Return the kernel ``(x: f32[n]) -> function(x): f32[n]``."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(x: T.Buffer((n,), "float32"), y: T.Buffer((n,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("elementwise"):
            T.reads(x[0:n])
            T.writes(y[0:n])
            for i in T.serial(n):
                y[i] = function(x[i])

    return kernel


@pytest.fixture(scope="module")
def line():
    """Return inputs that cover the range densely, and its far ends."""
    return np.concatenate([np.linspace(-20, 20, 100_001), [0, 1e-6, -1e-6, 1e30, -1e30]]).astype("float32")


def test_exp_is_accurate_to_4e_7_of_its_value(isa, line):
    x = line[np.abs(line) < 80]
    (y,) = run(isa, elementwise(intrinsics.exp, len(x)), x, Output(x.shape, "float32"))
    exact = np.exp(x.astype("float64"))
    assert (np.abs(y - exact) <= 4e-7 * exact).all()


def test_exp_stays_finite_beyond_the_range_of_floats(isa):
    x = np.array([-1e30, -1000, -100, 100, 1000, 1e30], "float32")
    (y,) = run(isa, elementwise(intrinsics.exp, 6), x, Output((6,), "float32"))
    assert np.isfinite(y).all() and (y[:3] < 1e-37).all() and (y[3:] > 1e38).all()


def test_tanh_is_accurate_to_5e_7_and_stays_within_one(isa, line):
    (y,) = run(isa, elementwise(intrinsics.tanh, len(line)), line, Output(line.shape, "float32"))
    assert np.abs(y - np.tanh(line.astype("float64"))).max() <= 5e-7
    assert np.abs(y).max() <= 1
    assert (y[line == 0] == 0).all()


def test_sigmoid_is_accurate_to_4e_7_and_stays_between_zero_and_one(isa, line):
    (y,) = run(isa, elementwise(intrinsics.sigmoid, len(line)), line, Output(line.shape, "float32"))
    with np.errstate(over="ignore"):
        assert np.abs(y - sigmoid(line)).max() <= 4e-7
    assert y.min() >= 0 and y.max() <= 1
    assert (y[line == 0] == 0.5).all()


def gru_data(h, seed=0):
    rng = np.random.default_rng(seed)
    given_half, hidden = (rng.standard_normal((2, 3 * h)) * 2).astype("float32")
    return given_half, hidden, rng.standard_normal(h).astype("float32")


def updated(given_half, hidden, state):
    """Return the state that follows, by NumPy."""
    h = len(state)
    z, r = sigmoid(given_half[:h] + hidden[:h]), sigmoid(given_half[h : 2 * h] + hidden[h : 2 * h])
    n = np.tanh(given_half[2 * h :] + r * hidden[2 * h :])
    return (1 - z) * n + z * state


@pytest.mark.parametrize("h", SIZES)
def test_pointwise_matches_numpy(isa, h):
    data = gru_data(h)
    (y,) = run(isa, recurrent.gru_pointwise(isa, h), *data, Output((h,), "float32"))
    np.testing.assert_allclose(y, updated(*data), rtol=0, atol=3e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), h=st.integers(1, 150), seed=st.integers(0, 1000))
def test_pointwise_matches_numpy_at_any_size(isa, h, seed):
    data = gru_data(h, seed)
    (y,) = run(isa, recurrent.gru_pointwise(isa, h), *data, Output((h,), "float32"))
    np.testing.assert_allclose(y, updated(*data), rtol=0, atol=3e-6)


@pytest.mark.parametrize("h", [1, 19])
def test_reset_state_and_early_pointwise_match_numpy(isa, h):
    given_half, hidden, state = gru_data(h)
    gates, candidate = hidden[: 2 * h].copy(), hidden[2 * h :].copy()
    z, r = sigmoid(given_half[:h] + gates[:h]), sigmoid(given_half[h : 2 * h] + gates[h:])
    output = Output((h,), "float32")
    (y,) = run(isa, recurrent.reset_state(isa, h), given_half, gates, state, output)
    np.testing.assert_allclose(y, r * state, rtol=0, atol=2e-6)
    (y,) = run(isa, recurrent.gru_pointwise_early(isa, h), given_half, gates, candidate, state, output)
    n = np.tanh(given_half[2 * h :] + candidate)
    np.testing.assert_allclose(y, (1 - z) * n + z * state, rtol=0, atol=3e-6)


def test_two_steps_joined_in_one_kernel_equal_the_two_apart(isa):
    h = 37
    given_half, hidden, state = gru_data(h)
    step, output = recurrent.gru_pointwise(isa, h), Output((h,), "float32")
    (middle,) = run(isa, step, given_half, hidden, state, output)
    (apart,) = run(isa, step, given_half, hidden, middle, output)
    operands = {"given": given_half, "hidden": hidden, "state": state}
    stages = [
        (step, ["given", "hidden", "state"], ["middle"]),
        (step, ["given", "hidden", "middle"], ["y"]),
    ]
    (together,) = run(isa, join(operands, stages, "y"), *operands.values(), output)
    np.testing.assert_array_equal(together, apart)
