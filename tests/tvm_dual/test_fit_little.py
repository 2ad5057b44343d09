"""Little modules: projections, ridge fits, and how far off they say they are."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.quantize import quantize_rows
from tvm_dual.errors import PlanError
from tvm_dual.little import (
    _principal,
    _principal_of_products,
    dimensions_for,
    fit_little,
    fit_responses,
    random_projection,
)


@pytest.fixture(scope="module")
def problem():
    """Inputs whose strongest directions are not those that the targets depend on most."""
    rng = np.random.default_rng(0)
    scales = np.concatenate([np.full(8, 3.0), np.full(8, 1.0), np.full(24, 0.1)])
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    sources = rng.standard_normal((2000, 40)) * scales
    x = (sources @ rotation + 0.5).astype("float32")
    gains = np.concatenate([np.full(4, 0.1), np.full(4, 1.0), np.full(8, 2.0), np.full(24, 0.05)])
    targets = (sources * gains) @ rng.standard_normal((40, 30)) + 1.5
    return x, targets.astype("float32")


def prediction(fitted, x: np.ndarray) -> np.ndarray:
    """Return what the kernels compute, by NumPy; inputs stay exact."""
    module = fitted.module
    projection = np.concatenate(module.projections, axis=1)
    if module.bits == 32:
        return (x @ projection.T - module.center) @ module.weight.T + module.bias
    z = x @ quantize_rows(projection).dequantized().T - module.center
    scale = np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-30) / 127
    weight = quantize_rows(module.weight, module.bits).dequantized()
    return np.rint(z / scale) * scale @ weight.T + module.bias


def test_better_projections_predict_better(problem):
    x, targets = problem
    errors = {
        p: (fit_little([x], targets, 6, projection=p).spread ** 2).sum() for p in ("reduced_rank", "pca", "random")
    }
    assert errors["reduced_rank"] < 0.9 * errors["pca"]
    assert errors["pca"] < targets.var(axis=0).sum()
    assert errors["random"] < targets.var(axis=0).sum()


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("projection", ["reduced_rank", "pca", "random"])
def test_spread_is_the_deviation_of_the_error(problem, bits, projection):
    x, targets = problem
    fitted = fit_little([x], targets, 12, projection=projection, bits=bits)
    residual = targets - prediction(fitted, x)
    np.testing.assert_allclose(residual.std(axis=0), fitted.spread, rtol=2e-3)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=2e-3)
    assert (residual**2).sum() < (targets**2).sum()


def test_more_bits_and_more_directions_help(problem):
    x, targets = problem
    total = {
        (k, bits): (fit_little([x], targets, k, bits=bits).spread ** 2).sum() for k in (6, 16) for bits in (2, 4, 8, 32)
    }
    assert total[16, 8] < total[6, 8]
    assert total[16, 32] < total[16, 8] < total[16, 4] < total[16, 2]


def test_importance_directs_the_projection(problem):
    x, targets = problem
    favoured = np.where(np.arange(30) < 3, 100.0, 0.01).astype("float32")
    plain, directed = (fit_little([x], targets, 3, importance=i).spread for i in (None, favoured))
    assert directed[:3].sum() < plain[:3].sum()


def test_two_inputs_get_a_projection_each(problem):
    x, targets = problem
    module = fit_little([x[:, :25], x[:, 25:]], targets, 10).module
    assert [p.shape for p in module.projections] == [(10, 25), (10, 15)]
    assert module.weight.shape == (30, 10) and module.center.shape == (10,)


def test_no_more_directions_than_inputs(problem):
    x, targets = problem
    assert fit_little([x], targets, 1000).module.weight.shape == (30, 40)


def test_inputs_that_never_change():
    x, targets = np.ones((50, 8), "float32"), np.full((50, 4), 2.0, "float32")
    for projection in ("reduced_rank", "pca", "random"):
        fitted = fit_little([x], targets, 4, projection=projection)
        assert np.isfinite(fitted.module.weight).all() and np.isfinite(fitted.spread).all()
        np.testing.assert_allclose(prediction(fitted, x), targets, atol=0.05)


def test_random_projection_is_the_paper_s():
    matrix = random_projection(100, 3000, seed=1)
    values, counts = np.unique(matrix, return_counts=True)
    np.testing.assert_allclose(values, np.array([-1, 0, 1]) * np.sqrt(3 / 100), rtol=1e-6)
    np.testing.assert_allclose(counts / matrix.size, [1 / 6, 2 / 3, 1 / 6], atol=0.005)
    np.testing.assert_array_equal(matrix, random_projection(100, 3000, seed=1))
    assert (matrix != random_projection(100, 3000, seed=2)).any()
    vector = np.random.default_rng(0).standard_normal(3000)
    assert np.linalg.norm(matrix @ vector) == pytest.approx(np.linalg.norm(vector), rel=0.3)


def test_dimensions_of_the_paper():
    assert dimensions_for(0.5, 6000) == 417
    assert dimensions_for(0.5, 1500) < dimensions_for(0.5, 6000) < dimensions_for(0.3, 6000)


@pytest.mark.parametrize("wrong", [{"projection": "magic"}, {"bits": 5}])
def test_unknown_choices(problem, wrong):
    with pytest.raises(PlanError, match=r"reduced_rank, pca, random at 32, 8, 4, 2 bits"):
        fit_little([problem[0]], problem[1], 4, **wrong)


@pytest.mark.parametrize("k", [1, 4, 7])
def test_more_outputs_than_inputs_have_the_same_directions(k):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 7)) * np.arange(1, 8)).astype("float32")
    weight = rng.standard_normal((30, 7)).astype("float32")
    products = (x - x.mean(axis=0)) @ weight.T
    found, wanted = _principal_of_products(x - x.mean(axis=0), weight, k), _principal(products, k)
    np.testing.assert_allclose(np.abs((found * wanted).sum(axis=0)), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, rtol=1e-6)


def test_many_outputs_of_few_inputs_are_fitted_exactly_by_as_many_directions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype("float32")
    weight = rng.standard_normal((50, 6)).astype("float32")
    targets = x @ weight.T + rng.standard_normal(50).astype("float32")
    fitted = fit_responses(x, targets, weight, 6, np.ones(50, "float32"))
    np.testing.assert_allclose(fitted.spread, 0, atol=1e-2)
    assert fitted.module.projections[0].shape == (6, 6)
