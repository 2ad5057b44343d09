"""Loops over time: one kernel that does what its step, repeated by hand, does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from relay_passes.over_time import SEQUENCE, over_time
from relay_passes.step import StepBuilder
from schedules import gate, recurrent
from schedules.dense import add
from schedules.lstm import lstm_pointwise
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel


@pytest.fixture(scope="module", params=RUNNABLE, ids=lambda level: level.name)
def isa(request):
    return request.param


def gru_step(isa, h):
    """Return a GRU step whose hidden half is a constant, and a gate that counts."""
    with StepBuilder() as step:
        given, state, limits = step.input("given", (3 * h,)), step.input("h", (h,)), step.input("limits", (3, 2))
        hidden, spread = (step.operand(name, np.ones(3 * h, "float32")) for name in ("hidden", "spread"))
        stage = gate.gru_update_gate(isa, h, "damage")
        _, count = step.call("gate", stage, given, hidden, state, spread, limits)
        step.finish(step.call("pointwise", recurrent.gru_pointwise(isa, h), given, hidden, state), count)
    return step.kernel()


def lstm_step(isa, h):
    with StepBuilder() as step:
        given, state, c = step.input("given", (4 * h,)), step.input("h", (h,)), step.input("c", (h,))
        hidden = step.operand("hidden", np.ones(4 * h, "float32"))
        new, cell = step.call("pointwise", lstm_pointwise(isa, h), given, hidden, c)
        # The state h goes into nothing here, so that it has to be used to be an operand at all.
        step.finish(step.call("add", add(h), new, state), cell)
    return step.kernel()


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def check_gru(isa, steps, batch, h):
    step, ones = gru_step(isa, h), np.ones(3 * h, "float32")
    one, loop = compile_kernel(isa, step), compile_kernel(isa, over_time(step, 1, 1, 5))
    given, start, limits = random(steps, batch, 3 * h), random(1, batch, h), np.full((3, 2), 0.05, "float32")
    outputs = Output((steps, 1, batch, h), "float32"), Output((1, batch, h), "float32"), Output((1,), "int32")
    y, last, count = call(loop, given, start, limits, ones, ones, *outputs)
    total, states = 0, start[0].copy()
    for t in range(steps):
        for s in range(batch):
            outputs = Output((h,), "float32"), Output((1,), "int32")
            states[s], opened = call(one, given[t, s], states[s].copy(), limits, ones, ones, *outputs)
            np.testing.assert_array_equal(y[t, 0, s], states[s])
            total += int(opened[0])
    np.testing.assert_array_equal(last[0], states)
    # A mean per step, rounded half up.
    assert int(count[0]) == int(np.floor(total / (steps * batch) + 0.5))


@pytest.mark.parametrize(("steps", "batch", "h"), [(1, 1, 3), (5, 1, 19), (4, 3, 16), (2, 2, 33)])
def test_a_sequence_is_its_steps(isa, steps, batch, h):
    check_gru(isa, steps, batch, h)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from(RUNNABLE), st.integers(1, 6), st.integers(1, 4), st.integers(1, 40))
def test_any_extents(isa, steps, batch, h):
    check_gru(isa, steps, batch, h)


def test_two_states(isa):
    h, steps, batch = 19, 4, 2
    step, ones = lstm_step(isa, h), np.ones(4 * h, "float32")
    one, loop = compile_kernel(isa, step), compile_kernel(isa, over_time(step, 1, 2, 4))
    given, start, cell = random(steps, batch, 4 * h), random(1, batch, h), random(1, batch, h)
    outputs = Output((steps, 1, batch, h), "float32"), *[Output((1, batch, h), "float32")] * 2
    y, last, last_cell = call(loop, given, start, cell, ones, *outputs)
    for s in range(batch):
        state, c = start[0, s], cell[0, s]
        for t in range(steps):
            state, c = call(one, given[t, s], state, c, ones, *[Output((h,), "float32")] * 2)
            np.testing.assert_array_equal(y[t, 0, s], state)
        np.testing.assert_array_equal(last[0, s], state)
        np.testing.assert_array_equal(last_cell[0, s], c)


def test_no_step_leaves_the_states_as_they_were(isa):
    loop, ones = compile_kernel(isa, over_time(gru_step(isa, 5), 1, 1, 5)), np.ones(15, "float32")
    start = random(1, 2, 5)
    outputs = Output((0, 1, 2, 5), "float32"), Output((1, 2, 5), "float32"), Output((1,), "int32")
    _, last, count = call(
        loop, np.zeros((0, 2, 15), "float32"), start, np.zeros((3, 2), "float32"), ones, ones, *outputs
    )
    np.testing.assert_array_equal(last, start)
    assert count[0] == 0


def test_extents_are_parameters_so_that_code_does_not_grow(isa):
    loop = over_time(gru_step(isa, 5), 1, 1, 5)
    assert [isinstance(extent, tirx.Var) for extent in loop.params[0].shape] == [True, True, False]
    assert bool(loop.attrs[SEQUENCE])
