"""What tuning costs, and the loop beside it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import s_tir

from benchmarks import tuning_cost
from benchmarks.tuning_stock import every_row, gated_rows, sample
from schedules.cpu import native_isa, tvm_target
from schedules.families import Workload, default_knobs, search_space
from schedules.knobs import ColumnKnobs
from tests.tvm_dual.conftest import INPUTS, tiny_model
from tvm_dual.tuning.benches import Result
from tvm_dual.tuning.candidates import Timing
from tvm_dual.tuning.problem import Usage

SKIPPING = Workload("columns_fp32", (40, 30), native_isa().name, 1)
BEST = ColumnKnobs(ahead=0, unroll=2)


class Formula:
    """Benches whose times follow from the knobs: half as long at the best as at every other point."""

    count = 1

    def measure(self, task, seed, candidates, rounds, together=False):
        default = Timing((2e-6,) * rounds)
        return [Result(k, Timing((1e-6,) * rounds) if k == BEST else default, default) for k in candidates]


def test_an_exhaustive_search_says_how_good_the_default_is_and_when_the_best_is_found():
    assert default_knobs(SKIPPING) != BEST
    found = tuning_cost.exhaustive(SKIPPING, Usage(0.5), Formula(), rounds=3)
    assert (found.points, found.best, found.gain) == (len(search_space(SKIPPING)), BEST, pytest.approx(2))
    assert len(found.trials) == tuning_cost.SEARCHES and all(1 < n <= found.points for n in found.trials)


def test_the_cost_counts_candidates_and_not_verdicts():
    found = tuning_cost.cost(SKIPPING, Usage(0.5), Formula(), trials=5)
    assert (found.trials, found.valid) == (5, 5) and found.seconds > 0 and found.processor_seconds > 0


def test_the_kernels_are_of_the_level():
    assert {w.isa for w in tuning_cost.kernels(native_isa())} == {native_isa().name}


def test_a_second_run_measures_nothing():
    rng = np.random.default_rng(1)
    streams = (rng.standard_normal((2, 60, 5)) @ rng.standard_normal((5, INPUTS))).astype("float32")
    found = tuning_cost.rerun(tiny_model(), list(streams))
    assert found.measured == 0
    assert found.again < found.first
    assert min(found.plain_build, found.build_with_logs) > 0


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        tuning_cost.main(["everything"])
    assert "accepted: trials, stock, exhaustive, rerun, models" in capsys.readouterr().err


def test_what_stands_for_our_kernels_in_the_other_loop_is_right():
    isa, n, k = native_isa(), 9, 256
    rng = np.random.default_rng(2)
    x, weight, closed = (rng.standard_normal(shape, "float32") for shape in ((k,), (n, k), (n,)))
    gate = (rng.random(n) < 0.5).astype("uint8")
    schedule = s_tir.Schedule(tvm.IRModule({"main": gated_rows(n, k)}))
    sample(isa, schedule)
    for module, operands, expected in (
        (tvm.IRModule({"main": every_row(n, k)}), (x, weight), weight @ x),
        (schedule.mod, (x, weight, closed, gate), np.where(gate, weight @ x, closed)),
    ):
        y = tvm.runtime.tensor(np.zeros(n, "float32"))
        tvm.compile(module, target=tvm_target(isa, 1))["main"](*map(tvm.runtime.tensor, operands), y)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-4)
