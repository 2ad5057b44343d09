"""The tuner: finds the best, measures nothing twice, loses nothing."""

from __future__ import annotations

import itertools
import resource
from dataclasses import replace

import numpy as np
import pytest

from schedules.cpu import native_isa
from schedules.families import Workload, default_knobs, search_space
from schedules.knobs import NEXT, RowKnobs
from tvm_dual.errors import DataError, PlanError
from tvm_dual.tuning import records
from tvm_dual.tuning.benches import Result
from tvm_dual.tuning.candidates import Timing
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.report import report
from tvm_dual.tuning.tuner import FINALISTS, Tuner, winner
from tvm_dual.tuning.watcher import Silent

ISA = native_isa().name
ROWS, PAIRS = Workload("rows_int8", (64, 64, 1), ISA, 1), Workload("row_pairs_int8", (48, 16, 16), ISA, 1)
KERNELS = {ROWS: Usage(), PAIRS: Usage(0.1)}
BEST = RowKnobs(side_by_side=2, ahead=NEXT, unroll=1)


def tune(folder, benches, trials=100, kernels=KERNELS, seed=0) -> None:
    Tuner(folder, benches, seed, Silent()).tune(kernels, trials)


def trials_of(folder, workload) -> list:
    return [r.chosen for r in records.read(folder) if r.workload == workload and not r.verdict]


def verdicts(folder) -> dict:
    return {r.workload: r for r in records.read(folder) if r.verdict}


def test_all_points_are_measured_once_and_the_best_wins(tmp_path, fake_benches):
    tune(tmp_path, fake_benches())
    for workload in KERNELS:
        found = trials_of(tmp_path, workload)
        assert len(found) == len(set(found)) == len(search_space(workload))
        assert found[0] == default_knobs(workload)
    assert {w: r.chosen for w, r in verdicts(tmp_path).items()} == {ROWS: verdicts(tmp_path)[ROWS].chosen, PAIRS: BEST}
    assert verdicts(tmp_path)[ROWS].chosen.side_by_side == 2
    assert verdicts(tmp_path)[PAIRS].ratio == pytest.approx(0.5)


def test_trials_bound_what_is_measured(tmp_path, fake_benches):
    benches = fake_benches()
    tune(tmp_path, benches, trials=10)
    assert [len(trials_of(tmp_path, w)) for w in KERNELS] == [10, 10]
    finals = [batch for batch in benches.batches if batch[0] == default_knobs(ROWS) and len(batch) <= FINALISTS + 1]
    wins = [min(map(benches.seconds, trials_of(tmp_path, w))) < benches.seconds(default_knobs(w)) for w in KERNELS]
    assert any(wins)
    assert [len(batch) > 2 for batch in finals] == [
        more for won in wins for more in ([True, False] if won else [True])
    ], "what wins is measured once more, with the default"


def test_a_seed_repeats_the_search_whatever_was_drawn_before(tmp_path, fake_benches):
    batches = []
    for run, seed in enumerate((3, 3, 4)):
        np.random.seed(run)
        benches = fake_benches()
        folder = tmp_path / str(run)
        folder.mkdir()
        tune(folder, benches, trials=10, seed=seed)
        batches.append(benches.batches)
        np.testing.assert_equal(np.random.get_state()[1], np.random.RandomState(run).get_state()[1])
    assert batches[0] == batches[1] != batches[2]


def test_a_second_run_measures_nothing(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(), trials=10)
    again = fake_benches()
    before = (tmp_path / records.FILE).read_bytes()
    tune(tmp_path, again, trials=10)
    assert again.batches == []
    assert (tmp_path / records.FILE).read_bytes() == before


def test_zero_trials_measure_nothing(tmp_path, fake_benches):
    benches = fake_benches()
    tune(tmp_path, benches, trials=0)
    assert benches.batches == []
    assert records.read(tmp_path) == []


@pytest.mark.parametrize("stop_at", [0, 1, 2, 4])
def test_after_an_interrupt_tuning_goes_on_where_it_was(tmp_path, fake_benches, stop_at):
    stopped = fake_benches(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, stopped)
    kept = sum(len(trials_of(tmp_path, workload)) for workload in KERNELS)
    assert kept == sum(map(len, stopped.batches))
    tune(tmp_path, fake_benches())
    for workload in KERNELS:
        found = trials_of(tmp_path, workload)
        assert len(found) == len(set(found)) == len(search_space(workload))
    assert verdicts(tmp_path)[PAIRS].chosen == BEST


def test_more_trials_lead_to_a_new_verdict(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(), trials=1)
    assert verdicts(tmp_path)[PAIRS].chosen == default_knobs(PAIRS)
    tune(tmp_path, fake_benches(), trials=100)
    assert verdicts(tmp_path)[PAIRS].chosen == BEST


def test_another_density_is_another_measurement(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(), kernels={PAIRS: Usage(0.1)})
    near, far = fake_benches(), fake_benches()
    tune(tmp_path, near, kernels={PAIRS: Usage(0.12)})
    tune(tmp_path, far, kernels={PAIRS: Usage(0.5)})
    assert near.batches == []
    assert sum(map(len, far.batches[:-2])) == len(search_space(PAIRS)), "the last two batches are the verdict"


def test_failures_are_kept_apart_and_cost_only_themselves(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(fails=lambda knobs: knobs == BEST), kernels={PAIRS: Usage(0.1)})
    failed = [record for record in records.read(tmp_path) if record.error]
    assert [record.chosen for record in failed] == [BEST]
    assert verdicts(tmp_path)[PAIRS].chosen.side_by_side == 2
    assert "no such luck" in (tmp_path / records.FAILURES).read_text()
    again = fake_benches()
    tune(tmp_path, again, kernels={PAIRS: Usage(0.1)})
    assert again.batches == [], "a candidate that failed is not tried again"


def test_if_all_candidates_fail_that_is_an_error(tmp_path, fake_benches):
    with pytest.raises(PlanError, match=r"row_pairs_int8 48x16x16: all 16 candidates failed.*no such luck"):
        tune(tmp_path, fake_benches(fails=lambda knobs: True), kernels={PAIRS: Usage(0.1)})


def test_a_full_disk_keeps_whole_records_and_its_kind_of_error(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(), trials=1, kernels={ROWS: Usage()})
    before = (tmp_path / records.FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            tune(tmp_path, fake_benches())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / records.FILE).read_bytes() == before


def test_a_verdict_that_does_not_repeat_is_dropped(tmp_path, fake_benches):
    class OnceFast(fake_benches):
        """What is better than the default is so until it is alone with it."""

        def measure(self, task, seed, candidates, rounds, together=False):
            found = super().measure(task, seed, candidates, rounds, together)
            return [replace(r, timing=r.default) for r in found] if len(candidates) == 2 else found

    tune(tmp_path, OnceFast(), kernels={PAIRS: Usage(0.1)})
    assert verdicts(tmp_path)[PAIRS].chosen == default_knobs(PAIRS)
    assert verdicts(tmp_path)[PAIRS].ratio == 1


def test_the_cost_model_finds_the_best_early(tmp_path, fake_benches):
    tune(tmp_path, fake_benches(), kernels={ROWS: Usage()})
    found = trials_of(tmp_path, ROWS)
    first = next(i for i, knobs in enumerate(found) if fake_benches.seconds(knobs) <= 1.0201e-6)
    assert len(search_space(ROWS)) == 56
    assert first < 40


def timing(*seconds: float) -> Timing:
    return Timing(tuple(second * 1e-6 for second in seconds))


@pytest.mark.parametrize(
    ("default", "other", "wins"),
    [
        ((10, 10, 10), (9, 9, 9), True),
        ((10, 10, 10), (9.95, 9.95, 9.95), False),  # within what is worth it
        ((10, 12, 14, 30, 30), (9.5, 9.5, 9.5, 9.5, 9.5), True),
        ((10, 14, 18, 30, 30), (12, 13, 19, 29, 31), False),  # faster as often as not
    ],
)
def test_a_finalist_wins_only_beyond_doubt(default, other, wins):
    reference, knobs = timing(*default), [default_knobs(ROWS), BEST]
    results = [Result(knobs[0], reference, reference), Result(knobs[1], timing(*other), reference)]
    assert winner(results) is results[int(wins)]


def test_a_finalist_that_fails_does_not_win():
    reference = timing(10, 10, 10)
    results = [
        Result(default_knobs(ROWS), reference, reference),
        Result(BEST, replace(reference, seconds=(), error="x"), reference),
    ]
    assert winner(results) is results[0]


def test_the_report_says_and_draws_what_the_log_holds(tmp_path, fake_benches):
    tune(tmp_path, fake_benches())
    text = report(tmp_path)
    pairs = next(line for line in text.splitlines() if line.startswith("row_pairs_int8"))
    assert "2.000" in pairs and "side_by_side 2, ahead -1, unroll 1" in pairs
    assert "72 of 72 candidates valid" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="no tuning records"):
        report(tmp_path / "elsewhere")


def test_two_tuners_share_a_folder(tmp_path, fake_benches):
    """The second one starts while the first one is halfway, and takes its records up."""
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, fake_benches(stop_at=2))
    tune(tmp_path, fake_benches(), seed=1)
    tune(tmp_path, fake_benches(), seed=2)
    counts = [len(trials_of(tmp_path, w)) - len(search_space(w)) for w in KERNELS]
    assert not any(counts)
    assert all(a.time <= b.time for a, b in itertools.pairwise(records.read(tmp_path)))
