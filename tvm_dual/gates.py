"""Gate rules: from a bound to the thresholds that the kernels compare with.

``damage`` bounds the expected harm of leaving a row to the little module. To first order that is

    (what the next layers multiply the unit by) x (slope of the nonlinearity) x (error of the row)

With the error's standard deviation known from calibration, the bound turns into a band of
predicted pre-activations per row for a dense layer, and into one number per gate for a recurrent
layer, whose slopes depend on the state (`schedules.gate`, `schedules.lstm_gate`). ``activation`` is
the rule of dual-module inference (ICML 2020, equation 5): a row is sensitive unless the predicted
value lies in the flat region of the nonlinearity, whatever the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from scipy.special import ndtri

from tvm_dual.errors import PlanError
from tvm_dual.output_gates import output_limits
from tvm_dual.sites import Site
from tvm_dual.tile_gates import tile_limits

RULES = ("damage", "activation")
#: Gates of recurrent layers, in the order of their rows; all but the candidates are sigmoids.
GATES = {"gru": ("z", "r", "n"), "lstm": ("i", "o", "f", "g")}
CANDIDATES = ("n", "g")
#: One bound for all gates.
EQUAL: Mapping[str, float] = MappingProxyType({})
#: Effort multiplies what a row's damage counts; 0 closes every row, infinity opens every row.
EFFORTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, float("inf"))
#: Stands for "no bound" in thresholds.
FAR = 1e30
#: The bound that opens every row, at any effort but 0.
OPEN = 0.0


def unit_weights(site: Site, sites: dict[str, Site]) -> np.ndarray:
    """Return what the next layers multiply each unit of `site` by, ``float32 (units,)``.

    The norm of the unit's column in the matrices that read it: the consumers', and a recurrent layer's own. A
    convolution reads a unit once per place of its kernel.
    """
    consumers = [sites[name] for name in site.consumers]
    units = site.hidden or site.weight.shape[0]
    matrices = [c.weight.reshape(-1, c.conv.inputs) if c.conv else c.weight for c in consumers]
    if site.hidden:
        matrices.append(site.recurrence)
    matrices = [m for m in matrices if m.shape[1] == units]
    if not matrices:
        return np.ones(units, "float32")
    return np.sqrt(sum((m.astype("float64") ** 2).sum(axis=0) for m in matrices)).astype("float32")


def gate_factors(kind: str, factors: Mapping[str, float]) -> np.ndarray:
    """Return what each gate's bound is multiplied by, ``(gates,)``; gates that are not named have 1."""
    return np.array([factors.get(gate, 1.0) for gate in GATES.get(kind, ("",))])


def thresholds(
    site: Site,
    rule: str,
    limit: float,
    spread: np.ndarray,
    weights: np.ndarray,
    factors: Mapping[str, float] = EQUAL,
    gate: str = "rows",
) -> np.ndarray:
    """Return the thresholds of all `EFFORTS`.

    Parameters
    ----------
    site : Site
    rule : str
        One of `RULES`.
    limit : float
        The bound at effort 1, `OPEN` or higher. ``damage``: in units of the consumers' pre-activations.
        ``activation``: the margin m in (0, 0.5]; sigmoid rows are open where the predicted value
        lies in (m, 1 - m), tanh rows in the same band stretched to (-1, 1).
    spread : ndarray, float32
        Error per row: ``(n,)`` for a dense layer or convolution.
    weights : ndarray, float32
        From `unit_weights`.
    factors : mapping of str to float
        What the bounds of single gates of a recurrent layer are multiplied by.
    gate : str
        Of a convolution: ``rows`` for gates of tiles, ``singles`` for those of outputs.

    Returns
    -------
    ndarray, float32
        ``(efforts, 2, n)`` bands for a dense layer, ``(efforts, gates, 2)`` for a recurrent one, ``(efforts, 3, n)``
        for a convolution.

    Raises
    ------
    PlanError
        If the rule is not known.
    """
    if rule not in RULES:
        raise PlanError(f"gate rule {rule!r} is not known; accepted: {', '.join(RULES)}")
    efforts = [float("inf") if limit == OPEN and effort else effort for effort in EFFORTS]
    bounds = [FAR if effort == 0 else limit / effort for effort in efforts]
    if site.hidden:
        found = [_limits(site.kind, rule, bound, factors) for bound in bounds]
        opened = every_gate_open(site.kind)
        found = [opened if effort == float("inf") else at for at, effort in zip(found, efforts, strict=True)]
    elif site.conv:
        at_efforts = zip(bounds, efforts, strict=True)
        limits = output_limits if gate == "singles" else tile_limits
        found = [limits(site.activation, rule, *at, spread, weights) for at in at_efforts]
    else:
        found = [_band(site, rule, *at, spread, weights) for at in zip(bounds, efforts, strict=True)]
    return np.stack(found).astype("float32")


def every_gate_open(kind: str) -> np.ndarray:
    """Return the limits, float32 (gates, 2), that open every row of a recurrent layer by either rule."""
    return np.tile(np.array([-2.0, 2.0], "float32"), (len(GATES[kind]), 1))


def _limits(kind: str, rule: str, bound: float, factors: Mapping[str, float]) -> np.ndarray:
    bounds = bound * gate_factors(kind, factors)
    if rule == "damage":
        return np.stack([bounds, np.zeros_like(bounds)], axis=1)
    margin = np.minimum(bounds, 0.5)
    # The band of a tanh is that of a sigmoid, stretched.
    is_tanh = np.isin(GATES[kind], CANDIDATES)
    return np.stack([np.where(is_tanh, 2 * margin - 1, margin), np.where(is_tanh, 1 - 2 * margin, 1 - margin)], axis=1)


def _band(site, rule, bound, effort, spread, weights) -> np.ndarray:
    n = site.weight.shape[0]
    if effort == float("inf"):
        return np.stack([np.full(n, -FAR), np.full(n, FAR)])
    if effort == 0:
        return np.stack([np.full(n, FAR), np.full(n, -FAR)])
    if rule == "activation":
        return _activation_band(site.activation, min(bound, 0.5), spread)
    return _damage_band(site.activation, bound, np.maximum(spread * weights, 1e-20), np.maximum(spread, 1e-20))


def _damage_band(activation: str | None, bound: float, worst: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Band of predicted values whose damage, `worst` times the slope, exceeds `bound`."""
    share = bound / worst
    closed = share >= 1
    if activation == "relu":
        # The slope of a ReLU is the probability that the true value is positive.
        low = spread * ndtri(np.clip(share, 1e-30, 1 - 1e-12))
        return np.stack([np.where(closed, FAR, low), np.full(len(low), FAR)])
    if activation in ("sigmoid", "tanh"):
        # sigmoid' = s (1 - s) <= 1/4 and tanh' = 1 - t^2 <= 1, even and falling in |y|.
        closed = share >= (0.25 if activation == "sigmoid" else 1.0)
        inside = np.sqrt(np.maximum(1 - (4 if activation == "sigmoid" else 1) * share, 0))
        half = np.arctanh(np.minimum(inside, 1 - 1e-12)) * (2 if activation == "sigmoid" else 1)
        return np.stack([np.where(closed, FAR, -half), np.where(closed, -FAR, half)])
    return np.stack([np.where(closed, FAR, -FAR), np.where(closed, -FAR, FAR)])


def _activation_band(activation: str | None, margin: float, spread: np.ndarray) -> np.ndarray:
    n = len(spread)
    if activation == "relu":
        # A margin of 1/2 is the plain sign; smaller ones admit values that far below zero.
        return np.stack([np.full(n, spread.mean() * ndtri(max(margin, 1e-12))), np.full(n, FAR)])
    if activation in ("sigmoid", "tanh"):
        half = np.log((1 - margin) / max(margin, 1e-12)) / (1 if activation == "sigmoid" else 2)
        return np.stack([np.full(n, -half), np.full(n, half)])
    # No nonlinearity, no flat region: every row is sensitive.
    return np.stack([np.full(n, -FAR), np.full(n, FAR)])
