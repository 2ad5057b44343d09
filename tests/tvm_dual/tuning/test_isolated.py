"""A candidate that crashes or never ends costs nothing but itself."""

from __future__ import annotations

import os

import pytest

from schedules.cpu import native_isa
from schedules.families import Workload, default_knobs
from tvm_dual.tuning.benches import Benches
from tvm_dual.tuning.isolated import CandidateError, IsolatedBench
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.task import Task

WORKLOAD = Workload("rows_fp32", (16, 24, 1), native_isa().name, 1)
KNOBS = default_knobs(WORKLOAD)


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os.abort, ()


@pytest.fixture(scope="module")
def bench():
    with IsolatedBench(patience=5) as bench:
        yield bench


def test_after_a_crash_the_next_call_works(bench):
    with pytest.raises(CandidateError, match="crashed: SIGABRT"):
        bench.call("measure", WORKLOAD, Usage(), 0, [Bomb()], 1)
    (timing,) = bench.call("measure", WORKLOAD, Usage(), 0, [KNOBS], 3)
    assert len(timing.seconds) == 3


def test_what_never_ends_is_given_up(bench):
    with pytest.raises(CandidateError, match="not done after 5 s"):
        bench.call("measure", WORKLOAD, Usage(), 0, [KNOBS], 10**9)
    (timing,) = bench.call("measure", WORKLOAD, Usage(), 0, [KNOBS], 1)
    assert not timing.error


def test_an_error_is_passed_on(bench):
    with pytest.raises(CandidateError, match="no_such_method"):
        bench.call("no_such_method")


class Fragile:
    """A bench that one candidate takes down, and that counts its calls."""

    def __init__(self, deadly) -> None:
        self.deadly, self.calls = deadly, []

    def call(self, method, workload, usage, seed, candidates, rounds):
        from tvm_dual.tuning.candidates import Timing

        self.calls.append(candidates)
        if self.deadly in candidates:
            raise CandidateError("crashed")
        return [Timing((1e-6,) * rounds) for _ in candidates]

    def close(self) -> None:
        pass


def test_a_candidate_that_takes_its_batch_down_fails_alone():
    from schedules.knobs import RowKnobs

    deadly, others = RowKnobs(side_by_side=8), [RowKnobs(side_by_side=1), RowKnobs(side_by_side=2)]
    fragile = Fragile(deadly)
    with Benches(lambda: fragile) as benches:
        results = benches.measure(Task(0, WORKLOAD, Usage()), 0, [others[0], deadly, others[1]], 3)
    assert [result.timing.error for result in results] == ["", "crashed", ""]
    assert [result.knobs for result in results] == [others[0], deadly, others[1]]
