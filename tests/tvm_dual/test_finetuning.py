"""Fine-tuning: the simulated cell is the gated kernel's, and training lowers the error of the state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from schedules import gate
from schedules.cpu import ISAS, native_isa
from tests.schedules.conftest import Output, run
from tvm_dual import finetuning as subject
from tvm_dual.calibration import Observations
from tvm_dual.finetuning import can_finetune, finetune
from tvm_dual.fitting import fit_site
from tvm_dual.sites import Site

H, K, CALLS = 24, 12, 400


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(site, x, h):
    given, hidden = site.weight @ x + site.bias, site.recurrence @ h + site.recurrent_bias
    z, r = sigmoid(given[:H] + hidden[:H]), sigmoid(given[H : 2 * H] + hidden[H : 2 * H])
    n = np.tanh(given[2 * H :] + r * hidden[2 * H :])
    return n + z * (h - n)


@pytest.fixture(scope="module")
def site():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((3 * H, K), (3 * H,), (3 * H, H), (3 * H,))]
    weight, bias, recurrence, recurrent_bias = (a / s for a, s in zip(arrays, (2, 3, 5, 3), strict=True))
    return Site("gru0", "gru", weight, bias, recurrence, recurrent_bias, None, False, 1, (), True)


@pytest.fixture(scope="module")
def observed(site):
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.standard_normal((CALLS, K)), axis=0).astype("float32") / 4
    states = np.zeros((CALLS, H), "float32")
    for t in range(1, CALLS):
        # The second run starts anew.
        states[t] = 0 if t == CALLS // 2 else step(site, x[t - 1], states[t - 1])
    return Observations((x, states), (0, CALLS // 2))


@pytest.fixture(params=[True, False], ids=["both", "state"])
def fit(request, site, observed):
    options = {"projection": "reduced_rank", "bits": 8, "dimensions": 6}
    return fit_site(site, observed, {"gru0": site}, both=request.param, **options)


def rollout(site, fit, observed, limit):
    """States of the gated cell over the first run, and the exact ones."""
    cell = subject._GatedCell(torch, site, fit)
    x, h = (torch.from_numpy(values) for values in observed.inputs)
    with torch.no_grad():
        found = cell.run(x[: CALLS // 2 - 1, None], h[:1], limit)[:, 0].numpy()
    return found, observed.inputs[1][1 : CALLS // 2]


def test_every_row_open_is_the_exact_layer(site, fit, observed):
    found, exact = rollout(site, fit, observed, -1.0)
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_the_gate_is_the_kernels(site, fit, observed):
    isa, rng = native_isa() or ISAS["avx2"], np.random.default_rng(2)
    given, hidden = (rng.standard_normal(3 * H).astype("float32") for _ in range(2))
    h = rng.standard_normal(H).astype("float32")
    cell = subject._GatedCell(torch, site, fit)
    limit = 0.3 * float(np.median(fit.spread))
    predicted = cell._both(*(torch.from_numpy(v)[None] for v in (given, hidden)))
    found = cell._open(predicted, predicted, torch.from_numpy(h)[None], limit)[0].numpy()
    limits = np.array([limit, 0, 0, 0], "float32")
    outputs = Output((gate.list_length(3 * H),), "int32"), Output((1,), "int32")
    rows, count = run(isa, gate.gru_update_gate(isa, H, "damage"), given, hidden, h, fit.spread, limits, *outputs)
    np.testing.assert_array_equal(np.flatnonzero(found[:H]), rows[: count[0]])
    rows, count = run(isa, gate.gru_candidate_gate(isa, H, "damage"), given, hidden, fit.spread, limits, *outputs)
    np.testing.assert_array_equal(np.flatnonzero(found[H : 3 * H]) + H, rows[: count[0]])
    assert 0 < found[: 3 * H].sum() < 3 * H


def test_training_lowers_the_error_of_the_state(site, fit, observed):
    threads, done = torch.get_num_threads(), []
    tuned = finetune(site, fit, observed, 1e30, 60, lambda now, total: done.append((now, total)))
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


def test_an_lstm_keeps_its_closed_form(site, observed):
    assert not can_finetune(replace(site, kind="lstm"), observed)


def test_short_runs_cannot_be_trained_on(site, observed):
    short = Observations(observed.inputs, tuple(range(0, CALLS, 10)))
    assert can_finetune(site, observed) and not can_finetune(site, short)
