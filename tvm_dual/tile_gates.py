"""Gate rules of convolutions: from a bound to the numbers that `schedules.conv2d_gate` compares with.

A tile is open if leaving its channels to the little module does too much harm together, so the harms of channels are
added up in squares, as errors that do not depend on each other are.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

#: Of the line that stands for the probability that a normal variable is below a value, per standard deviation.
_STEEPNESS = 1 / 3
#: Largest slope of nonlinearities that are steep at one place only.
_SLOPES = {"sigmoid": 0.25, "tanh": 1.0, "silu": 1.1, "hard_swish": 1.5, None: 1.0}
#: Makes a line a step.
_STEEP = 1e6


def open_channels(limits: np.ndarray, sums: np.ndarray, panels: list[slice] | None) -> tuple[np.ndarray, float]:
    """Return what `schedules.conv2d_gate` opens, or `schedules.conv2d_single`.

    Parameters
    ----------
    limits : ndarray, (3, channels)
    sums : ndarray, float32, (pixels, channels)
        What the little module predicts, with what is added before the nonlinearity.
    panels : list of slice or None
        Channels of each panel; None where each output has a gate of its own.

    Returns
    -------
    ndarray, bool, (pixels, channels)
        Whether a channel is in an open tile.
    float
        Open tiles / all tiles, or outputs.
    """
    harms = (limits[2] * np.clip(limits[0] * sums + limits[1], 0, 1)) ** 2
    if panels is None:
        opened = harms > 1
        return opened, float(opened.mean())
    opened, found = np.zeros(sums.shape, bool), []
    for panel in panels:
        found.append(harms[:, panel].sum(axis=1) > 1)
        opened[:, panel] |= found[-1][:, None]
    return opened, float(np.mean(found))


def tile_limits(
    activation: str | None, rule: str, bound: float, effort: float, spread: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the limits of one effort, ``(3, channels)``.

    Parameters
    ----------
    activation : str or None
        What follows the convolution.
    rule : str
        ``damage`` or ``activation``.
    bound : float
        At this effort: in units of the consumers' sums, or a margin as for dense layers.
    effort : float
        0 closes every tile, infinity opens every tile.
    spread, weights : ndarray, float32, (channels,)
        Error of the little module, and what the next layers multiply a channel by.
    """
    n, rectified = len(spread), activation in ("relu", "relu6")
    spread = np.maximum(spread, 1e-20)
    if effort in (0, float("inf")):
        return np.stack([np.zeros(n), np.ones(n), np.full(n, 0.0 if effort == 0 else 2.0)])
    if rule == "activation":
        # Open where any channel's value may lie above zero; other nonlinearities have no flat side to lie on.
        low = spread.mean() * ndtri(np.clip(bound, 1e-12, 0.5))
        line = (_STEEP, -low * _STEEP) if rectified else (0.0, 1.0)
        return np.stack([np.full(n, line[0]), np.full(n, line[1]), np.full(n, 2.0)])
    steep = _STEEPNESS / spread if rectified else np.zeros(n)
    flat = 0.5 if rectified else _SLOPES[activation]
    return np.stack([steep, np.full(n, flat), spread * weights / bound])
