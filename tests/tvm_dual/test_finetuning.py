"""Fine-tuning: the simulated cell is the gated kernel's, and training lowers the error of the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schedules import gate
from schedules.cpu import ISAS, native_isa
from schedules.lstm_gate import lstm_gate
from tests.schedules.conftest import Output, run
from tvm_dual import finetuning as subject
from tvm_dual.finetuning import can_finetune, finetune
from tvm_dual.fitting import fit_site
from tvm_dual.gated_cells import CELLS
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

H, K, CALLS = 24, 12, 400


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(site, x, h, c):
    """Return the states after a step; c of a GRU is not looked at."""
    given, hidden = site.weight @ x + site.bias, site.recurrence @ h + site.recurrent_bias
    if site.kind == "gru":
        z, r = sigmoid(given[:H] + hidden[:H]), sigmoid(given[H : 2 * H] + hidden[H : 2 * H])
        n = np.tanh(given[2 * H :] + r * hidden[2 * H :])
        return n + z * (h - n), c
    i, o, f, g = np.split(given + hidden, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@pytest.fixture(scope="module", params=["gru", "lstm"])
def site(request):
    rng, n = np.random.default_rng(0), {"gru": 3, "lstm": 4}[request.param] * H
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((n, K), (n,), (n, H), (n,))]
    weight, bias, recurrence, recurrent_bias = (a / s for a, s in zip(arrays, (2, 3, 5, 3), strict=True))
    return Site("site", request.param, weight, bias, recurrence, recurrent_bias, None, False, 1, (), True)


@pytest.fixture(scope="module")
def observed(site):
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.standard_normal((CALLS, K)), axis=0).astype("float32") / 4
    states = np.zeros((2, CALLS, H), "float32")
    for t in range(1, CALLS):
        # The second run starts anew.
        states[:, t] = 0 if t == CALLS // 2 else step(site, x[t - 1], *states[:, t - 1])
    return Observations((x, *states[: 1 if site.kind == "gru" else 2]), (0, CALLS // 2))


@pytest.fixture(params=[(True, 2), (False, 8)], ids=["both", "state"])
def fit(request, site, observed):
    both, bits = request.param
    options = {"projection": "reduced_rank", "bits": bits, "dimensions": 6}
    return fit_site(site, observed, {"site": site}, both=both, **options)


def rollout(site, fit, observed, limit):
    """States of the gated cell over the first run, and the exact ones."""
    cell, limits = CELLS[site.kind](torch, site, fit), np.full(len(site.weight) // H, limit)
    x, *states = (torch.from_numpy(values) for values in observed.inputs)
    with torch.no_grad():
        found = cell.run(x[: CALLS // 2 - 1, None], [state[:1] for state in states], limits)[:, 0].numpy()
    return found, observed.inputs[1][1 : CALLS // 2]


def test_every_row_open_is_the_exact_layer(site, fit, observed):
    found, exact = rollout(site, fit, observed, -1.0)
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_the_gate_is_the_kernels(site, fit):
    isa, rng, n = native_isa() or ISAS["avx2"], np.random.default_rng(2), len(site.weight)
    given, hidden = (rng.standard_normal(n).astype("float32") for _ in range(2))
    h, c = (rng.standard_normal(H).astype("float32") for _ in range(2))
    cell = CELLS[site.kind](torch, site, fit)
    limit = 0.3 * float(np.median(fit.spread))
    predicted = cell._join(*(torch.from_numpy(v)[None] for v in (given, hidden)))
    states = [torch.from_numpy(v)[None] for v in ((h,) if site.kind == "gru" else (h, c))]
    bounds = limit * np.linspace(0.5, 2, n // H)
    found = cell._open(predicted, predicted, states, bounds)[0].numpy()
    limits = np.stack([bounds, np.zeros_like(bounds)], axis=1).astype("float32")
    outputs = Output((gate.list_length(n),), "int32"), Output((1,), "int32")
    if site.kind == "lstm":
        rows, count = run(isa, lstm_gate(isa, H, "damage"), given, hidden, c, fit.spread, limits, *outputs)
        np.testing.assert_array_equal(np.flatnonzero(found), rows[: count[0]])
    else:
        rows, count = run(isa, gate.gru_update_gate(isa, H, "damage"), given, hidden, h, fit.spread, limits, *outputs)
        np.testing.assert_array_equal(np.flatnonzero(found[:H]), rows[: count[0]])
        rows, count = run(isa, gate.gru_candidate_gate(isa, H, "damage"), given, hidden, fit.spread, limits, *outputs)
        np.testing.assert_array_equal(np.flatnonzero(found[H : 3 * H]) + H, rows[: count[0]])
    assert 0 < found[:n].sum() < n


@pytest.mark.parametrize(("asked", "used"), [("1", 1), ("2,4", 2), ("99", 3), ("", 3), ("0", 3), ("many", 3)])
def test_training_takes_the_threads_that_it_is_given(asked, used, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(subject, "available_cores", lambda: 3)
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), subject.training_threads(torch):
        assert torch.get_num_threads() == used
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_training_lowers_the_error_of_the_state(site, fit, observed):
    threads, done = torch.get_num_threads(), []
    limits = np.full(len(site.weight) // H, 1e30)
    tuned = finetune(site, fit, observed, limits, 60, lambda now, total: done.append((now, total)))
    before, after = (
        np.sqrt(np.mean((np.subtract(*rollout(site, f, observed, 1e30)) * f.weights) ** 2)) for f in (fit, tuned)
    )
    assert after < 0.9 * before
    assert done[-1] == (60, 60) and torch.get_num_threads() == threads
    assert tuned.tuned and not fit.tuned
    np.testing.assert_array_equal(tuned.spread, fit.spread)


def test_sequences_do_not_cross_runs(observed):
    starts = subject._starts(observed)
    assert len(starts) and all((s < CALLS // 2) == (s + subject.LENGTH < CALLS // 2) for s in starts)


def test_short_runs_cannot_be_trained_on(site, observed):
    short = Observations(observed.inputs, tuple(range(0, CALLS, 10)))
    assert can_finetune(site, observed) and not can_finetune(site, short)
