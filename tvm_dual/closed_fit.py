"""Closed tiles: a scale and an offset of each channel, fitted to what the gate leaves closed, or zero.

A little module is fitted to all pixels; what it is used for are those that the gate closes, behind the nonlinearity.
Once a bound is chosen each channel's predicted sums get a scale and an offset that suit these, or become zero,
whichever loses least. They are folded into the little module, and the gate's line is moved so that it decides as it
did.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from schedules.conv2d_gated import gate_panels
from schedules.cpu import Isa
from tvm_dual.conv_littles import predicted
from tvm_dual.fitting import SiteFit
from tvm_dual.gates import EFFORTS, EQUAL, thresholds
from tvm_dual.observations import Observations
from tvm_dual.sites import Site
from tvm_dual.tile_gates import open_channels

#: Observed pixels that are looked at, and closed ones that a channel needs at least.
PIXELS, FEWEST = 8000, 128
#: Scale of a channel whose closed tiles hold zero: nothing beside any other value, and the gate can still see the sums.
ZERO = np.float32(2.0**-24)
NONLINEARITIES = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "sigmoid": expit,
    "tanh": np.tanh,
    "silu": lambda y: y * expit(y),
    "hard_swish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    None: lambda y: y,
}


def gate_table(site: Site, rule: str, limit: float, fit: SiteFit, factors=EQUAL, gate: str = "rows") -> np.ndarray:
    """Return the thresholds of all efforts (`tvm_dual.gates.thresholds`), of a module that was fitted again."""
    table = thresholds(site, rule, limit, fit.spread, fit.weights, factors, gate)
    if fit.refit is None:
        return table
    scale, offset = fit.refit
    moved = table.copy()
    moved[:, 0] = table[:, 0] / scale
    moved[:, 1] = table[:, 1] - moved[:, 0] * offset
    return moved


def refit_closed(
    site: Site, fit: SiteFit, observed: Observations, isa: Isa, rule: str, limit: float, gate: str = "rows"
) -> SiteFit:
    """Return a convolution's little module with each channel fitted again to what is closed at `limit`.

    Channels are fitted to every other observed pixel, and are as they were unless that loses less of the others.
    """
    exact, rough, added = predicted(site, fit, observed, PIXELS)
    table = gate_table(site, rule, limit, fit, gate=gate)[EFFORTS.index(1.0)]
    panels = None if gate == "singles" else gate_panels(isa, site.conv)
    closed = ~open_channels(table, rough + added, panels)[0]
    after = NONLINEARITIES[site.activation]
    shown, n = after(exact + added), exact.shape[1]
    some, others = closed.copy(), closed.copy()
    some[1::2], others[::2] = False, False

    def lost(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Sum of squares of each channel on the pixels that it is not fitted to."""
        return (np.square(after(rough * scale + offset + added) - shown) * others).sum(axis=0)

    ones, zeros = np.ones(n, "float32"), np.zeros(n, "float32")
    tried = [(ones, zeros)]
    # Where another image is added the gate cannot tell a scaled sum from it.
    scaled, rectified = observed.residual is None, site.activation in ("relu", "relu6")
    if scaled and rectified:
        tried.append((np.full(n, ZERO), zeros))
    tried.append(_line(rough, exact, some, scaled))
    if rectified:
        # Where the nonlinearity hides the rest, what it shows counts.
        tried.append(_line(rough, exact, some & ((rough + added > 0) | (exact + added > 0)), scaled))
    losses = np.stack([lost(*each) for each in tried])
    losses[1:, np.minimum(some.sum(axis=0), others.sum(axis=0)) < FEWEST] = np.inf
    best = losses.argmin(axis=0)
    scale, offset = (np.stack(part)[best, np.arange(n)].astype("float32") for part in zip(*tried, strict=True))
    return replace(fit, little=_folded(fit, scale, offset), refit=np.stack([scale, offset]))


def zero_channels(fit: SiteFit) -> int:
    """Return how many channels hold zero in closed tiles."""
    return 0 if fit.refit is None else int((fit.refit[0] == ZERO).sum())


def _line(rough: np.ndarray, exact: np.ndarray, chosen: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset, by least squares over the chosen pixels of each channel; without `scaled`, an offset."""
    count = np.maximum(chosen.sum(axis=0), 1)
    means = [(values * chosen).sum(axis=0) / count for values in (rough, exact)]
    if not scaled:
        return np.ones(len(count), "float32"), (means[1] - means[0]).astype("float32")
    apart, wanted = (rough - means[0]) * chosen, exact - means[1]
    variance = np.square(apart).sum(axis=0)
    scale = (apart * wanted).sum(axis=0) / np.maximum(variance, 1e-20)
    # A scale of zero, or below it, is that of predictions worth nothing.
    scale = np.maximum(scale, ZERO)
    return scale.astype("float32"), (means[1] - scale * means[0]).astype("float32")


def _folded(fit: SiteFit, scale: np.ndarray, offset: np.ndarray):
    """Return the little module that gives the scaled sums."""
    module = fit.little.module
    times = len(module.weight) // len(scale)
    scale, offset = np.tile(scale, times), np.tile(offset, times)
    rows, bias = module.weight * scale[:, None], module.bias * scale + offset
    return replace(fit.little, module=replace(module, weight=rows, bias=bias))
