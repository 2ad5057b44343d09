"""Fitting an LSTM site: what errors of its rows do, and the little module's units."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual import fitting as subject
from tvm_dual.fitting import fit_site
from tvm_dual.gates import unit_weights
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

H, K, CALLS = 9, 6, 500


@pytest.fixture(scope="module")
def site() -> Site:
    rng = np.random.default_rng(0)
    shapes = ((4 * H, K), (4 * H,), (4 * H, H), (4 * H,))
    weight, bias, recurrence, recurrent_bias = ((rng.standard_normal(s) / 2).astype("float32") for s in shapes)
    return Site("lstm0", "lstm", weight, bias, recurrence, recurrent_bias, None, False, 1, (), True)


@pytest.fixture(scope="module")
def observed() -> Observations:
    rng = np.random.default_rng(1)
    x, h, c = (rng.standard_normal((CALLS, n)).astype("float32") for n in (K, H, H))
    return Observations((x, np.tanh(h), c))


def sums(site, observed):
    x, h, _ = observed.inputs
    return x @ site.weight.T + site.bias + h @ site.recurrence.T + site.recurrent_bias


def state(values, c):
    i, o, f, g = np.split(values.astype("float64"), 4, axis=1)
    i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
    return o * np.tanh(f * c + i * np.tanh(g))


@pytest.mark.parametrize("at_once", [7, 1024])
def test_slopes_are_what_a_small_error_of_a_row_does_to_the_state(site, observed, monkeypatch, at_once):
    monkeypatch.setattr(subject, "SAMPLES_AT_ONCE", at_once)
    values, c = sums(site, observed), observed.inputs[2]
    found, step = subject._lstm_slopes(values, c), 1e-4
    for row in range(4 * H):
        moved = values.astype("float64")
        moved[:, row] += step
        effect = (state(moved, c) - state(values, c))[:, row % H] / step
        assert found[row] == pytest.approx(np.sqrt((effect**2).mean()), rel=1e-2, abs=2e-4)


@pytest.mark.parametrize("both", [True, False])
def test_the_little_module_predicts_the_sums_or_the_state_s_half(site, observed, both):
    options = {"projection": "reduced_rank", "bits": 8, "dimensions": K + H}
    fit = fit_site(site, observed, {"lstm0": site}, both=both, **options)
    x, h, _ = observed.inputs
    read = np.concatenate([x, h], axis=1) if both else h
    targets = sums(site, observed) if both else h @ site.recurrence.T + site.recurrent_bias
    module = fit.little.module
    predicted = (read @ np.concatenate(module.projections, axis=1).T - module.center) @ module.weight.T + module.bias
    residual = targets - predicted
    assert np.abs(residual).max() < 0.15
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=5e-3)
    np.testing.assert_allclose(fit.spread, fit.little.spread * np.tile(unit_weights(site, {}), 4), rtol=1e-5)
    assert fit.spread.shape == (4 * H,)
