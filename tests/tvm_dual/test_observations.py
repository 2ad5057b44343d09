"""How much is kept of what layers are observed to read."""

import numpy as np
import pytest

import tvm_dual.observations
from tvm_dual.builder import Builder
from tvm_dual.observations import Observations

torch = pytest.importorskip("torch")

K, H, CALLS, STREAMS, RUN = 5, 7, 40, 3, 8


def observed(monkeypatch, most: int) -> Observations:
    for name, value in {"MAX_SAMPLES": 1, "MAX_STEPS": most, "RUN": RUN}.items():
        monkeypatch.setattr(tvm_dual.observations, name, value)
    program = torch.export.export(torch.nn.LSTM(K, H).eval(), (torch.zeros(1, 1, K),))
    x = np.arange(STREAMS * CALLS, dtype="float32").reshape(STREAMS, CALLS, 1, 1, 1).repeat(K, axis=-1)
    return Builder(program, list(x), streaming=True)._observations["lstm0"]


def test_all_is_kept_where_there_is_room(monkeypatch):
    found = observed(monkeypatch, STREAMS * CALLS)
    np.testing.assert_array_equal(found.inputs[0][:, 0], np.arange(STREAMS * CALLS))
    assert found.runs == tuple(range(0, STREAMS * CALLS, CALLS))


@pytest.mark.parametrize("most", [8, 50, 90, 119])
def test_of_more_runs_are_kept_evenly_spread(monkeypatch, most):
    found = observed(monkeypatch, most)
    calls = found.inputs[0][:, 0]
    assert most - RUN < len(calls) <= most
    starts = calls[list(found.runs)]
    # A run begins where a stream does, or after calls that were left out; within one nothing is missing.
    gaps = np.flatnonzero((np.diff(calls) != 1) | (calls[1:] % CALLS == 0)) + 1
    np.testing.assert_array_equal(starts, calls[[0, *gaps]])
    first, last = calls[0], STREAMS * CALLS - 1 - calls[-1]
    assert max(first, last) <= STREAMS * CALLS * RUN / most


def test_some_are_evenly_spread():
    x, residual = np.arange(30.0).reshape(10, 3), np.arange(10.0)[:, None]
    found = Observations((x,), (0, 5), residual).some(4)
    np.testing.assert_array_equal(found.inputs[0][:, 0], [0, 9, 18, 27])
    np.testing.assert_array_equal(found.residual[:, 0], [0, 3, 6, 9])
    everything = Observations((x,), (0, 5))
    assert everything.some(10) is everything
