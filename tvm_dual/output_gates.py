"""Gate rules of convolutions whose outputs have a gate each: from a bound to what the kernel compares with.

By itself a channel is open above one predicted sum, or not at all, so that the slope of a ReLU need not be a line, as
where the harms of a tile's channels are added up: a line that ends leaves outputs closed, whatever the bound, whose
true sums are positive more often than one in fifteen.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from tvm_dual.tile_gates import tile_limits


def output_limits(
    activation: str | None, rule: str, bound: float, effort: float, spread: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the limits of one effort, ``(3, channels)``; parameters are those of `tvm_dual.tile_gates.tile_limits`."""
    if effort in (0, float("inf")) or rule != "damage" or activation not in ("relu", "relu6"):
        return tile_limits(activation, rule, bound, effort, spread, weights)
    spread = np.maximum(spread, 1e-20)
    share = bound / np.maximum(spread.astype("float64") * weights, 1e-20)
    # The slope of a ReLU is the probability that the true sum is positive.
    least = ndtri(np.clip(share, 1e-30, 1 - 1e-12))
    return np.stack([1 / spread, 0.5 - least, np.where(share >= 1, 0.0, 2.0)])
