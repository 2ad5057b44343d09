"""The order of a convolution's channels: those that open together share a panel.

A tile of the gate is one pixel and one panel of channels, and it opens for all of them if the harm of its channels
together is too much. Tiles that stay closed leave their harm in the result. So of all ways to deal channels out to
panels that is best in which the harms of few tiles are high and those of the others low: at the same share of open
tiles less harm is left then, and at the same harm fewer tiles open. What counts is the sum over all tiles of how far
their harms exceed a bound.

That sum is found as k-means finds its own, with panels of equal size: given which tiles are open, the best panels are
an assignment problem, whose costs are how much of each channel's harm the open tiles of each panel would catch; given
the panels, the best tiles to open are those beyond the bound. Each of both can only gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

#: Shares of tiles whose bounds are looked at together: what a plan opens is not known yet.
SHARES = (0.05, 0.15, 0.35)
#: Rounds at most, and first rounds in which bounds follow the shares; after that they stay, so that each round gains.
ROUNDS, LOOSE = 30, 4
#: Gain of a round, as a share, below which there is no other.
LEAST_GAIN = 1e-4
#: Shares of the little module's error that are left at which densities are compared.
LOSSES = (0.5, 0.3, 0.2, 0.1)


@dataclass(frozen=True, eq=False)
class Harms:
    """What leaving the channels of one convolution to its little module does.

    Attributes
    ----------
    values : ndarray, float32, (pixels, channels)
        Expected, in squares, as `schedules.conv2d_gate` adds them up.
    size : int
        Channels of a panel.
    work : float
        How much this convolution counts beside others that share its order.
    """

    values: np.ndarray
    size: int
    work: float = 1.0

    def of(self, channels: np.ndarray) -> Harms:
        """Return those of some channels."""
        return Harms(self.values[:, channels], self.size, self.work)


def channel_order(harms: Sequence[Harms]) -> np.ndarray:
    """Return the order of channels in which those that open together share a panel.

    Parameters
    ----------
    harms : sequence of Harms
        Of each convolution whose channels have this order; all have as many channels. Where their panels differ in
        size, the smaller ones are parts of the larger.

    Returns
    -------
    ndarray, int64, (channels,)
        Which channel comes at each place.
    """
    size = max(part.size for part in harms)
    panels = _dealt(harms, size)
    finer = [part for part in harms if part.size < size]
    if finer:
        panels = [panel[channel_order([part.of(panel) for part in finer])] for panel in panels]
    return np.concatenate(panels)


def _dealt(harms: Sequence[Harms], size: int) -> list[np.ndarray]:
    """Return the channels of each panel of `size`; the last one may have fewer."""
    channels = harms[0].values.shape[1]
    seats = np.arange(channels) // size
    # From the least harmful channels to the most.
    means = [part.values.mean(axis=0, dtype="float64") * part.work for part in harms]
    seated = np.empty(channels, "int64")
    seated[np.argsort(sum(mean / max(mean.sum(), 1e-30) for mean in means), kind="stable")] = seats
    if seats[-1] == 0:
        return [np.arange(channels)]
    parts, reached = [_Tiles(part) for part in harms], 0.0
    for i in range(ROUNDS):
        caught = sum(part.caught(seated, loose=i < LOOSE) for part in parts)
        value = sum(part.value for part in parts)
        if i > LOOSE and value <= reached * (1 + LEAST_GAIN):
            break
        if value == 0:
            break
        reached = value
        rows, columns = linear_sum_assignment(-caught[:, seats])
        seated[rows] = seats[columns]
    return [np.flatnonzero(seated == panel) for panel in range(seats[-1] + 1)]


class _Tiles:
    """The tiles of one convolution, and which of them are open."""

    def __init__(self, harms: Harms) -> None:
        self._values, self._work = harms.values, harms.work
        self._bounds = self._worth = None
        #: How far the tiles exceed the bounds, as a multiple of what they did when these were set.
        self.value = 0.0

    def caught(self, seated: np.ndarray, loose: bool) -> np.ndarray:
        """Return how much harm of each channel the open tiles of each panel would catch, (channels, panels).

        `seated` is the panel of each channel; `loose` bounds are set anew.
        """
        belongs = (seated[:, None] == np.arange(seated.max() + 1)).astype("float32")
        sums = self._values @ belongs
        if loose:
            self._bounds = np.quantile(sums, 1 - np.array(SHARES))
            # Each bound counts as much as the others, but for those that no tile is beyond.
            least = LEAST_GAIN * float(sums.sum(dtype="float64"))
            beyond = [_beyond(sums, bound) for bound in self._bounds]
            self._worth = [self._work / value if value > least else 0.0 for value in beyond]
        weighted = list(zip(self._worth, self._bounds, strict=True))
        self.value = sum(worth * _beyond(sums, bound) for worth, bound in weighted)
        return sum(worth * (self._values.T @ (sums > bound).astype("float32")) for worth, bound in weighted)


def _beyond(sums: np.ndarray, bound: float) -> float:
    return float(np.maximum(sums - bound, 0).sum(dtype="float64"))


def densities(harms: np.ndarray, errors: np.ndarray, panels: list[slice]) -> np.ndarray:
    """Return the shares of tiles to open, the most harmful first, so that no more than `LOSSES` is left.

    Parameters
    ----------
    harms, errors : ndarray, float32, (pixels, channels)
        Squares of what the gate expects of a channel that stays closed, and of what that is off by.
    panels : list of slice
        Channels of each panel.

    Returns
    -------
    ndarray, (losses,)
        What is left is measured as a share of the little module's alone.
    """
    expected, found = (
        np.stack([values[:, panel].sum(axis=1, dtype="float64") for panel in panels]).ravel()
        for values in (harms, errors)
    )
    found = found[np.argsort(-expected, kind="stable")]
    # From the back: no differences of large sums.
    left = np.append(np.cumsum(found[::-1])[::-1], 0.0) / max(found.sum(), 1e-30)
    return np.array([np.argmax(left <= loss) for loss in LOSSES]) / len(found)
