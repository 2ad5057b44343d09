"""Benches that measure nothing, so that what a tuner does with results is tested in a moment."""

from __future__ import annotations

import math

import pytest

from schedules import cpu
from schedules.families import default_knobs
from tvm_dual.tuning.benches import Result
from tvm_dual.tuning.candidates import Timing

RUNNABLE = [level for level in cpu.ISAS.values() if not cpu.missing_flags(level)]


@pytest.fixture(scope="session", params=RUNNABLE, ids=lambda level: level.name)
def isa(request) -> cpu.Isa:
    """Return each instruction set level that this machine runs."""
    return request.param


class FakeBenches:
    """Times from a formula; notes what it was asked for, and may stop at a batch or fail some candidates."""

    count = 1

    def __init__(self, stop_at: int | None = None, fails=lambda knobs: False) -> None:
        self.batches, self._stop_at, self._fails = [], stop_at, fails

    def __enter__(self):
        return self

    def __exit__(self, *failure) -> None:
        pass

    @staticmethod
    def seconds(knobs) -> float:
        """Fastest at two rows side by side, which the defaults are not."""
        return 1e-6 * (1 + abs(math.log2(knobs.side_by_side) - 1) + 0.1 * (knobs.ahead == 0) + 0.2 * (knobs.unroll > 1))

    def measure(self, task, seed, candidates, rounds, together=False):
        if len(self.batches) == self._stop_at:
            raise KeyboardInterrupt
        self.batches.append(list(candidates))
        default = Timing((self.seconds(default_knobs(task.workload)),) * rounds)
        return [
            Result(k, Timing(error="no such luck") if self._fails(k) else Timing((self.seconds(k),) * rounds), default)
            for k in candidates
        ]


@pytest.fixture
def fake_benches():
    """Return the class of benches that measure nothing."""
    return FakeBenches
