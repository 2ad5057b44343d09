"""``python -m benchmarks.host_noise``: how much of a 95th percentile is the machine's and not an engine's.

A fixed piece of arithmetic, as long as a call of a small model, is timed again and again on one core. It depends on no
data and on no memory, so whatever its times differ by is taken by somebody else.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

#: Pieces that are timed, and their length in microseconds.
PIECES, MICROSECONDS = 20_000, 50.0
#: A piece that takes so much longer than most counts as disturbed.
DISTURBED = 1.25


@dataclass(frozen=True)
class Noise:
    """What was found: times in microseconds."""

    median: float
    p95: float
    disturbed_share: float
    median_extra: float
    median_distance: float

    def __str__(self) -> str:
        """Return it in one sentence for people."""
        spread = self.p95 / self.median
        return (
            f"arithmetic of {self.median:.0f} us: p95 / median {spread:.2f}; {self.disturbed_share:.1%} of "
            f"the pieces take {self.median_extra:.0f} us longer, every {self.median_distance:.0f} us"
        )


def piece(rounds: int) -> int:
    """Add up numbers, `rounds` of them."""
    total = 0
    for i in range(rounds):
        total += i
    return total


def measure(pieces: int = PIECES, microseconds: float = MICROSECONDS) -> Noise:
    """Time pieces of about `microseconds` each."""
    fastest = min(_seconds(1000) for _ in range(2000))
    rounds = max(1, round(1000 * microseconds / 1e6 / fastest))
    starts, times = np.empty(pieces), np.empty(pieces)
    for i in range(pieces):
        starts[i] = time.perf_counter()
        times[i] = _seconds(rounds)
    times, starts = times * 1e6, starts * 1e6
    median = float(np.median(times))
    slow = times > DISTURBED * median
    return Noise(
        median,
        float(np.percentile(times, 95)),
        float(slow.mean()),
        float(np.median(times[slow]) - median) if slow.any() else 0.0,
        float(np.median(np.diff(starts[slow]))) if slow.sum() > 1 else 0.0,
    )


def _seconds(rounds: int) -> float:
    begin = time.perf_counter()
    piece(rounds)
    return time.perf_counter() - begin


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(measure())
