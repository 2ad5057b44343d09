"""Fitting the little module of each site to what the site was observed to read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_dual.calibration import Observations
from tvm_dual.gates import unit_weights
from tvm_dual.little import FittedLittle, fit_little
from tvm_dual.sites import Site


@dataclass(frozen=True, eq=False)
class SiteFit:
    """A site's little module, in the units that its gate works with.

    Attributes
    ----------
    little : FittedLittle
    spread : ndarray, float32
        Dense: the error per row. GRU ``(3h,)``: the error of z, r and n rows times what the next
        layers make of the unit; for r the error that the reset gate multiplies is left to the kernel.
    weights : ndarray, float32
        From `tvm_dual.gates.unit_weights`.
    tuned : bool
        Whether the little module was fine-tuned.
    """

    little: FittedLittle
    spread: np.ndarray
    weights: np.ndarray
    tuned: bool = False


def fit_site(
    site: Site,
    observed: Observations,
    sites: dict[str, Site],
    *,
    both: bool,
    dimensions: int,
    projection: str,
    bits: int,
) -> SiteFit:
    """Fit one site's little module.

    Parameters
    ----------
    site : Site
    observed : Observations
    sites : dict of Site
        All sites, by name.
    both : bool
        For a GRU: whether the input's half is predicted too; otherwise the state's alone.
    dimensions, projection, bits
        As `tvm_dual.little.fit_little` takes them.
    """
    weights = unit_weights(site, sites)
    options = {"projection": projection, "bits": bits}
    if site.kind == "dense":
        (x,) = observed.inputs
        targets = x @ site.weight.T + site.bias
        importance = weights * _mean_slope(site.activation, targets)
        fitted = fit_little([x], targets, dimensions, importance=importance, **options)
        return SiteFit(fitted, fitted.spread, weights)
    x, h = observed.inputs
    given = x @ site.weight.T + site.bias
    hidden = h @ site.recurrence.T + site.recurrent_bias
    slopes, reset = _gru_slopes(given, hidden, h)
    n = site.hidden
    if both:
        targets = np.concatenate(
            [given[:, : 2 * n] + hidden[:, : 2 * n], given[:, 2 * n :], hidden[:, 2 * n :]], axis=1
        )
        importance = np.concatenate([slopes, slopes[2 * n :] * reset]) * np.tile(weights, 4)
        fitted = fit_little([x, h], targets, dimensions, importance=importance, **options)
        z, r, candidate, state = np.split(fitted.spread, 4)
        error = np.sqrt(candidate**2 + (reset * state) ** 2)
    else:
        importance = np.concatenate([slopes[: 2 * n], slopes[2 * n :] * reset]) * np.tile(weights, 3)
        fitted = fit_little([h], hidden, dimensions, importance=importance, **options)
        z, r, state = np.split(fitted.spread, 3)
        error = reset * state
    return SiteFit(fitted, (np.concatenate([z, r, error]) * np.tile(weights, 3)).astype("float32"), weights)


def _mean_slope(activation: str | None, targets: np.ndarray) -> np.ndarray:
    """Root mean square slope of the nonlinearity per row."""
    if activation == "relu":
        slope = (targets > 0).astype("float32")
    elif activation == "sigmoid":
        s = 1 / (1 + np.exp(-targets))
        slope = s * (1 - s)
    elif activation == "tanh":
        slope = 1 - np.tanh(targets) ** 2
    else:
        return np.ones(targets.shape[1], "float32")
    return np.sqrt((slope**2).mean(axis=0)) + 1e-3


def _gru_slopes(given: np.ndarray, hidden: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square damage per unit error of the z, r and n rows, and of the reset gate itself."""
    n = h.shape[1]
    z = 1 / (1 + np.exp(-(given[:, :n] + hidden[:, :n])))
    r = 1 / (1 + np.exp(-(given[:, n : 2 * n] + hidden[:, n : 2 * n])))
    candidate = np.tanh(given[:, 2 * n :] + r * hidden[:, 2 * n :])
    through = (1 - z) * (1 - candidate**2)
    slopes = [z * (1 - z) * np.abs(h - candidate), through * r * (1 - r) * np.abs(hidden[:, 2 * n :]), through]
    return np.concatenate([_rms(slope) for slope in slopes]) + 1e-4, _rms(r)


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=0))
