"""Loops over time: one kernel that does what its step, repeated by hand, does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from relay_passes.over_time import SEQUENCE, BatchStage, over_time
from relay_passes.step import StepBuilder
from schedules import gate, recurrent
from schedules.epilogue import add
from schedules.lstm import lstm_pointwise
from schedules.matmul import matmul_fp32, matmul_int8, pack_matmul_fp32, pack_matmul_int8, quantize_matrix
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


@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-6), ("int8", 0.03)])
@pytest.mark.parametrize(("steps", "batch", "h"), [(3, 1, 5), (2, 5, 19), (3, 4, 24)])
def test_a_product_for_all_samples_of_a_batch(isa, steps, batch, h, precision, tolerance):
    """Both states are read, the one by the product alone, which an LSTM step without a little module leaves to it."""
    with StepBuilder() as step:
        given, hidden = step.input("given", (4 * h,)), step.input("hidden", (4 * h,))
        _, cell = step.input("h", (h,)), step.input("c", (h,))
        step.finish(*step.call("pointwise", lstm_pointwise(isa, h), given, hidden, cell))
    weight, bias = random(4 * h, h) / h, random(4 * h)
    if precision == "int8":
        stages = [BatchStage(quantize_matrix(isa, h), 0), BatchStage(matmul_int8(isa, 4 * h, h, 1), 2)]
        operands = pack_matmul_int8(isa, weight, bias)
    else:
        stages, operands = [BatchStage(matmul_fp32(isa, 4 * h, h, 1), 2)], pack_matmul_fp32(isa, weight, bias)
    loop = compile_kernel(isa, over_time(step.kernel(), 1, 2, 4, stages))
    inputs, start, memory = random(steps, batch, 4 * h), random(1, batch, h), random(1, batch, h)
    outputs = Output((steps, 1, batch, h), "float32"), *[Output((1, batch, h), "float32")] * 2
    y, last, last_cell = call(loop, inputs, start, memory, *operands, *outputs)
    state, c = start[0], memory[0]
    for t in range(steps):
        i, o, f, g = np.split(inputs[t] + state @ weight.T + bias, 4, axis=1)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        c = f * c + i * np.tanh(g)
        state = o * np.tanh(c)
        np.testing.assert_allclose(y[t, 0], state, atol=tolerance)
    np.testing.assert_allclose(last_cell[0], c, atol=2 * tolerance)
    np.testing.assert_array_equal(last[0], y[-1, 0])


def test_extents_are_parameters_so_that_code_does_not_grow(isa):
    loop = over_time(gru_step(isa, 5), 1, 1, 5)
    assert [isinstance(extent, tirx.Var) for extent in loop.params[0].shape] == [True, True, False]
    assert bool(loop.attrs[SEQUENCE])
