"""What a kernel is measured and checked on: how a model uses it, operands, and what must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedules.knobs import Knobs
from tvm_dual.tuning.copies import stacked

#: What is read of all copies takes at least these bytes together, if it can: more than second level caches hold.
STALE_BYTES = 4 << 20
#: Copies at most, and their bytes together.
MOST_COPIES, MOST_BYTES = 64, 32 << 20
#: Largest difference from the reference, as a share of the largest value.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Usage:
    """How a model uses a kernel.

    Attributes
    ----------
    density : float
        Open rows / all rows, or nonzero inputs / all inputs.
    vectors : int
        Vectors of a call, where a kernel takes several at once.
    """

    density: float = 1.0
    vectors: int = 1


@dataclass(frozen=True, eq=False)
class Problem:
    """Operands of several copies of one kernel call, and its results.

    Attributes
    ----------
    copies, vectors : int
    before, after : list of ndarray
        Operands in front of the weights, and behind them, stacked (`tvm_dual.tuning.copies`).
    pack : callable
        From knobs to the packed weights of one copy.
    results : list of ndarray
        What one kernel call gives, ``(copies, ...)`` each.
    packing : tuple of str
        Names of the knobs that packing depends on.
    """

    copies: int
    vectors: int
    before: list[np.ndarray]
    after: list[np.ndarray]
    pack: Callable[[Knobs], list[np.ndarray]]
    results: list[np.ndarray]
    packing: tuple[str, ...] = ()

    def packed(self, knobs: Knobs) -> list[np.ndarray]:
        """Return the stacked weights."""
        return [stacked([array] * self.copies) for array in self.pack(knobs)]

    def wrong(self, found: list[np.ndarray]) -> str:
        """Return how results differ from the reference, "" if they do not."""
        for i, (values, expected) in enumerate(zip(found, self.results, strict=True)):
            error = float(np.abs(values - expected).max())
            allowed = TOLERANCE * max(1e-6, float(np.abs(expected).max()))
            if not error <= allowed:
                return f"wrong result {i}: off by {error:.3g}, allowed {allowed:.3g}"
        return ""


def copies_of(nbytes: int, density: float = 1.0) -> int:
    """Return the copies of operands of `nbytes` of which a call reads the share `density`."""
    return max(1, min(MOST_COPIES, MOST_BYTES // nbytes, round(STALE_BYTES / (nbytes * density))))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return standard normal values, float32."""
    return rng.standard_normal(shape, "float32")
