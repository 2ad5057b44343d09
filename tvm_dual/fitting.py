"""Fitting the little module of each site to what the site was observed to read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from schedules.conv2d_int8 import Affine
from schedules.cpu import Isa
from tvm_dual.byte_little import bytes_little
from tvm_dual.gates import unit_weights
from tvm_dual.little import FittedLittle, fit_little, fit_responses
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

#: Samples that slopes are averaged over at a time.
SAMPLES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class SiteFit:
    """A site's little module, in the units that its gate works with.

    Attributes
    ----------
    little : FittedLittle
    spread : ndarray, float32
        Dense and convolutions: the error per row. Recurrent: the error per row times what the next layers make of the
        unit; for a GRU's r the error that the reset gate multiplies is left to the kernel.
    weights : ndarray, float32
        From `tvm_dual.gates.unit_weights`.
    tuned : bool
        Whether the little module was fine-tuned.
    kind : str
        ``projection``; of a convolution also ``copy`` or ``coarse`` (`tvm_dual.conv_littles`).
    source : Affine or None
        Of the bytes that a copy reads.
    refit : ndarray, float32, (2, n), or None
        What each channel's predicted sums are multiplied by, and what is added to them then, once the little module is
        fitted again to what the gate leaves closed (`tvm_dual.closed_fit`). Both are part of `little` already.
    """

    little: FittedLittle
    spread: np.ndarray
    weights: np.ndarray
    tuned: bool = False
    kind: str = "projection"
    source: Affine | None = None
    refit: np.ndarray | None = None


def fit_site(
    site: Site,
    observed: Observations,
    sites: dict[str, Site],
    *,
    both: bool,
    dimensions: int,
    projection: str,
    bits: int,
    source: Affine | None = None,
    isa: Isa | None = None,
) -> SiteFit:
    """Fit one site's little module.

    Parameters
    ----------
    site : Site
    observed : Observations
    sites : dict of Site
        All sites, by name.
    both : bool
        For a recurrent layer: whether the input's half is predicted too; otherwise the state's alone.
    dimensions, projection, bits
        As `tvm_dual.little.fit_little` takes them.
    source : Affine, optional
        Of the bytes that a convolution reads: its little module is one of bytes, too.
    isa : Isa, optional
        Level that these are for.
    """
    weights = unit_weights(site, sites)
    options = {"k": dimensions, "projection": projection, "bits": bits}
    little, spread = _FITS[site.kind](site, observed.some(), weights, both, options)
    fit = SiteFit(little, spread.astype("float32"), weights)
    return fit if source is None else fit_bytes(site, fit, observed, source, isa)


def fit_bytes(site: Site, fit: SiteFit, observed: Observations, source: Affine, isa: Isa) -> SiteFit:
    """Return a convolution's float32 little module as one of bytes; trained rows are kept."""
    (x,) = observed.inputs
    targets, importance = conv2d_targets(site, observed, fit.weights)
    run = site.conv.runs[1]
    little = bytes_little(fit.little, x, targets, importance, source, isa, run, refit=not fit.tuned)
    return replace(fit, little=little, spread=little.spread)


def _fit_dense(site: Site, observed, weights, _both, options) -> tuple[FittedLittle, np.ndarray]:
    (x,) = observed.inputs
    targets = x @ site.weight.T + site.bias
    fitted = fit_little([x], targets, importance=weights * _mean_slope(site.activation, targets), **options)
    return fitted, fitted.spread


def _fit_conv2d(site: Site, observed, weights, _both, options) -> tuple[FittedLittle, np.ndarray]:
    (x,) = observed.inputs
    targets, importance = conv2d_targets(site, observed, weights)
    if options["projection"] == "reduced_rank":
        fitted = fit_responses(x, targets, site.weight, options["k"], importance)
    else:
        fitted = fit_little([x], targets, importance=importance, **options)
    return fitted, fitted.spread


def conv2d_targets(site: Site, observed, weights) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the observed pixels, and how much an error of each row matters."""
    targets = observed.inputs[0] @ site.weight.T + site.bias
    shown = targets if observed.residual is None else targets + observed.residual
    return targets, weights * _mean_slope(site.activation, shown)


def _fit_gru(site: Site, observed, weights, both, options) -> tuple[FittedLittle, np.ndarray]:
    (x, h), n = observed.inputs, site.hidden
    given = x @ site.weight.T + site.bias
    hidden = h @ site.recurrence.T + site.recurrent_bias
    slopes, reset = _gru_slopes(given, hidden, h)
    if both:
        targets = np.concatenate(
            [given[:, : 2 * n] + hidden[:, : 2 * n], given[:, 2 * n :], hidden[:, 2 * n :]], axis=1
        )
        importance = np.concatenate([slopes, slopes[2 * n :] * reset]) * np.tile(weights, 4)
        fitted = fit_little([x, h], targets, importance=importance, **options)
        z, r, candidate, state = np.split(fitted.spread, 4)
        error = np.sqrt(candidate**2 + (reset * state) ** 2)
    else:
        importance = np.concatenate([slopes[: 2 * n], slopes[2 * n :] * reset]) * np.tile(weights, 3)
        fitted = fit_little([h], hidden, importance=importance, **options)
        z, r, state = np.split(fitted.spread, 3)
        error = reset * state
    return fitted, np.concatenate([z, r, error]) * np.tile(weights, 3)


def _fit_lstm(site: Site, observed, weights, both, options) -> tuple[FittedLittle, np.ndarray]:
    (x, h, c), weights = observed.inputs, np.tile(weights, 4)
    hidden = h @ site.recurrence.T + site.recurrent_bias
    sums = x @ site.weight.T + site.bias
    sums += hidden
    importance = _lstm_slopes(sums, c) * weights
    read, targets = ([x, h], sums) if both else ([h], hidden)
    del hidden, sums  # as large as all that was observed; the fit needs one of them
    fitted = fit_little(read, targets, importance=importance, **options)
    return fitted, fitted.spread * weights


_FITS = {"dense": _fit_dense, "conv2d": _fit_conv2d, "gru": _fit_gru, "lstm": _fit_lstm}


def _mean_slope(activation: str | None, targets: np.ndarray) -> np.ndarray:
    """Root mean square slope of the nonlinearity per row."""
    if activation in ("relu", "relu6"):
        slope = (targets > 0).astype("float32")
    elif activation == "sigmoid":
        s = 1 / (1 + np.exp(-targets))
        slope = s * (1 - s)
    elif activation == "tanh":
        slope = 1 - np.tanh(targets) ** 2
    elif activation == "silu":
        s = 1 / (1 + np.exp(-targets))
        slope = s * (1 + targets * (1 - s))
    elif activation == "hard_swish":
        slope = np.where(np.abs(targets) < 3, targets / 3 + 0.5, targets > 0)
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


def _lstm_slopes(sums: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Root mean square damage per unit error of the i, o, f and g rows; see `schedules.lstm_gate`."""
    total = np.zeros(sums.shape[1])
    # In parts: each of a dozen arrays of all samples would be as large as the observations themselves.
    for start in range(0, len(sums), SAMPLES_AT_ONCE):
        part, before = sums[start : start + SAMPLES_AT_ONCE], c[start : start + SAMPLES_AT_ONCE]
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in np.split(part, 4, axis=1)[:3])
        g = np.tanh(part[:, 3 * c.shape[1] :])
        shown = np.tanh(f * before + i * g)
        through = o * (1 - shown**2)
        slopes = [
            through * i * (1 - i) * g,
            o * (1 - o) * shown,
            through * f * (1 - f) * before,
            through * i * (1 - g**2),
        ]
        total += np.concatenate([(slope**2).sum(axis=0) for slope in slopes])
    return np.sqrt(total / len(sums)) + 1e-4


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=0))
