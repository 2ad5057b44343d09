"""The kernels that define recurrent layers, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.recurrent_reference import gru_reference, lstm_reference
from tests.schedules.conftest import Output, call, compile_kernel

#: Inputs and units: below a vector, and vectors with a remainder.
SIZES = [(5, 7), (35, 19), (16, 32)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def layer(gates, k, h):
    rng = np.random.default_rng(1)
    shapes = (gates * h, k), (gates * h, h), (2 * gates * h,)
    return tuple((rng.standard_normal(shape) / 2).astype("float32") for shape in shapes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("k, h", SIZES)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_gru_over_sequences_and_batches_of_any_length(isa, linear_before_reset, k, h):
    weight, recurrence, bias = layer(3, k, h)
    kernel = compile_kernel(isa, gru_reference(k, h, linear_before_reset))
    for steps, batch in [(1, 1), (4, 3)]:
        x, h0 = normal(steps, batch, k), normal(1, batch, h, seed=1)
        outputs = Output((steps, 1, batch, h), "float32"), Output((1, batch, h), "float32")
        y, last = call(kernel, x, h0, weight, recurrence, bias, *outputs)
        state = h0[0].astype("float64")
        for t in range(steps):
            given = x[t] @ weight.T + bias[: 3 * h]
            gates = state @ recurrence[: 2 * h].T + bias[3 * h : 5 * h]
            z, r = sigmoid(given[:, :h] + gates[:, :h]), sigmoid(given[:, h : 2 * h] + gates[:, h:])
            if linear_before_reset:
                candidate = r * (state @ recurrence[2 * h :].T + bias[5 * h :])
            else:
                candidate = (r * state) @ recurrence[2 * h :].T + bias[5 * h :]
            n = np.tanh(given[:, 2 * h :] + candidate)
            state = (1 - z) * n + z * state
            np.testing.assert_allclose(y[t, 0], state, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(last[0], y[-1, 0])


@pytest.mark.parametrize("k, h", SIZES)
def test_lstm_over_sequences_and_batches_of_any_length(isa, k, h):
    weight, recurrence, bias = layer(4, k, h)
    kernel = compile_kernel(isa, lstm_reference(k, h))
    for steps, batch in [(1, 1), (4, 3)]:
        x, h0, c0 = normal(steps, batch, k), normal(1, batch, h, seed=1), normal(1, batch, h, seed=2)
        outputs = Output((steps, 1, batch, h), "float32"), *[Output((1, batch, h), "float32")] * 2
        y, last, last_cell = call(kernel, x, h0, c0, weight, recurrence, bias, *outputs)
        state, cell = h0[0].astype("float64"), c0[0].astype("float64")
        for t in range(steps):
            sums = x[t] @ weight.T + state @ recurrence.T + bias[: 4 * h] + bias[4 * h :]
            i, o, f, g = (sums[:, n * h : (n + 1) * h] for n in range(4))
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            state = sigmoid(o) * np.tanh(cell)
            np.testing.assert_allclose(y[t, 0], state, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(last[0], y[-1, 0])
        np.testing.assert_allclose(last_cell[0], cell, rtol=0, atol=1e-5)
