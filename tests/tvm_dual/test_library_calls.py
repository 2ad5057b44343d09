"""Calls of a library: states, streams that do not disturb each other, and arrays that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual.errors import DataError


def test_calls_with_states_and_streams_agree(gated, calibration, run_stream):
    states, found = gated.initial_state(), []
    for frame in calibration[0][:10]:
        y, *states = gated(frame.reshape(gated.metadata.inputs[0].shape), *states)
        found.append(y.reshape(-1))
    np.testing.assert_array_equal(found, run_stream(gated, calibration[0][:10]))


def test_results_are_the_callers_own(gated, calibration):
    step = gated.stream()
    first = step(calibration[0][0])
    kept = first.copy()
    step(calibration[0][1])
    np.testing.assert_array_equal(first, kept)
    step.reset()
    np.testing.assert_array_equal(step(calibration[0][0]), kept)


def test_two_streams_do_not_disturb_each_other(gated, calibration, run_stream):
    one, two = gated.stream(), gated.stream()
    pairs = [(one(a).reshape(-1), two(b).reshape(-1)) for a, b in zip(*calibration, strict=True)][:20]
    np.testing.assert_array_equal([a for a, _ in pairs], run_stream(gated, calibration[0][:20]))
    np.testing.assert_array_equal([b for _, b in pairs], run_stream(gated, calibration[1][:20]))


@pytest.mark.parametrize(
    "arrays",
    [
        (),
        (np.zeros((1, 1, 40), "float32"),),
        (np.zeros((1, 1, 39), "float32"), np.zeros((1, 1, 40), "float32")),
        (np.zeros((1, 1, 40)), np.zeros((1, 1, 40), "float32")),
        ([0.0] * 40, np.zeros((1, 1, 40), "float32")),
        (np.zeros((1, 1, 40), "float32"), None),
    ],
)
def test_wrong_calls(gated, arrays):
    with pytest.raises(DataError, match="accepted"):
        gated(*arrays)


@pytest.mark.parametrize(
    "arrays",
    [(), (np.zeros(41, "float32"),), (np.zeros(40),), ("x",), (np.zeros(40, "float32"), np.zeros(40, "float32"))],
)
def test_wrong_steps(gated, arrays):
    with pytest.raises(DataError, match="accepted"):
        gated.stream()(*arrays)
