"""The LSTM's gate: which rows of i, o, f and g are open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.lstm_gate import lstm_gate
from tests.schedules.conftest import (
    RUNNABLE,
    band_score,
    call,
    check_against_score,
    compile_kernel,
    gate_limits,
    list_outputs,
    run,
)

RULES = ["damage", "activation"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def lstm_data(h, seed=0):
    """Return both halves, the cell and the spread."""
    rng = np.random.default_rng(seed)
    given_half, hidden = (rng.standard_normal((2, 4 * h)) * 2).astype("float32")
    return given_half, hidden, (rng.standard_normal(h) * 2).astype("float32"), rng.random(4 * h).astype("float32")


def score(rule, limits, given_half, hidden, cell, spread):
    """Return what must be positive for a row to be open."""
    i, o, f, g = np.split(given_half.astype("float64") + hidden, 4)
    i, o, f, g = sigmoid(i), sigmoid(o), sigmoid(f), np.tanh(g)
    if rule == "activation":
        return np.concatenate([band_score(gate, limit) for gate, limit in zip((i, o, f, g), limits, strict=True)])
    shown = np.tanh(f * cell + i * g)
    d = o * (1 - shown**2)
    slopes = [d * i * (1 - i) * np.abs(g), o * (1 - o) * np.abs(shown), d * f * (1 - f) * np.abs(cell)]
    return np.concatenate([*slopes, d * i * (1 - g**2)]) * spread - limits[:, 0].repeat(len(cell))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("h", [1, 19, 600])
def test_the_gate_opens_the_rows_that_its_rule_names(isa, h, rule):
    kernel, data = compile_kernel(isa, lstm_gate(isa, h, rule)), lstm_data(h)
    counts = []
    for limits in gate_limits(rule, 4):
        rows, count = call(kernel, *data, limits, *list_outputs(4 * h))
        check_against_score(rows, count, score(rule, limits, *data), 0)
        counts.append(int(count[0]))
    assert counts[1:] == [0, 4 * h]
    assert h == 1 or 0 < counts[0] < 4 * h


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("part", range(4))
def test_each_gate_s_rows_are_its_own(isa, rule, part):
    """One unit of one gate is in the band, or has an error; the other rows are not, or have none."""
    h, unit = 37, 21
    given_half, hidden = np.full(4 * h, 9, "float32"), np.zeros(4 * h, "float32")
    cell, spread = np.ones(h, "float32"), np.zeros(4 * h, "float32")
    limits = np.array([[1e-4, 0]] * 4 if rule == "damage" else [*[[0.2, 0.8]] * 3, [-0.8, 0.8]], "float32")
    row = part * h + unit
    if rule == "damage":
        given_half[:], spread[row] = 0.5, 1
    else:
        given_half[row] = 0.5
    rows, count = run(isa, lstm_gate(isa, h, rule), given_half, hidden, cell, spread, limits, *list_outputs(4 * h))
    assert count[0] == 1 and (rows[:5] == row).all()


@pytest.mark.parametrize("rule", RULES)
def test_saturated_gates_are_closed(isa, rule):
    h = 37
    given_half = np.full(4 * h, 1e30, "float32")
    given_half[::2] = -1e30
    hidden, cell, spread = np.zeros(4 * h, "float32"), np.ones(h, "float32"), np.ones(4 * h, "float32")
    limits = np.array([[1e-3, 0]] * 4 if rule == "damage" else [*[[0.01, 0.99]] * 3, [-0.99, 0.99]], "float32")
    _, count = run(isa, lstm_gate(isa, h, rule), given_half, hidden, cell, spread, limits, *list_outputs(4 * h))
    assert count[0] == 0


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    h=st.integers(1, 150),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 1000),
    limit=st.floats(0, 0.25),
)
def test_the_gate_is_right_at_any_size(isa, h, rule, seed, limit):
    data = lstm_data(h, seed)
    limits = np.array([[limit * share, 1 - limit] for share in (1, 0.5, 0.3, 0.2)], "float32")
    rows, count = run(isa, lstm_gate(isa, h, rule), *data, limits, *list_outputs(4 * h))
    check_against_score(rows, count, score(rule, limits, *data), 0)
