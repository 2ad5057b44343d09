"""The tuning of a list of kernels: MetaSchedule's scheduler and cost model over our spaces, with our log."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from tvm.s_tir import meta_schedule as ms

from schedules.families import Workload, default_knobs, search_space
from schedules.knobs import Knobs
from tvm_dual.errors import PlanError
from tvm_dual.tuning import records
from tvm_dual.tuning.benches import Benches, Result
from tvm_dual.tuning.features import KnobFeatures
from tvm_dual.tuning.measuring import CandidateBuilder, CandidateRunner
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.records import Record
from tvm_dual.tuning.strategy import RankedPoints
from tvm_dual.tuning.task import Task
from tvm_dual.tuning.watcher import Watcher

#: Candidates that are measured in turns with each other; each batch also makes the operands, and the default kernel.
BATCH = 16
#: Measurements before the cost model's word counts.
WARM_UP = 8
#: Rounds that a cost model of so few numbers goes on without getting better.
_PATIENCE = 10
#: Finalists beside the default, and turns of each.
FINALISTS, FINAL_ROUNDS = 3, 61
#: What a finalist must gain at least to replace the default, and the share of turns in which it must be the faster one:
#: of 61 coins 70 % fall on one side once in a thousand times.
WORTH, SURE = 0.01, 0.7
#: Densities within this factor of each other count as the same.
SAME_DENSITY = 1.5


class Tuner:
    """Tunes kernels and writes what it finds to one folder."""

    def __init__(self, folder: Path, benches: Benches, seed: int, watcher: Watcher) -> None:
        """Measure on `benches`, and append to the log in `folder`."""
        self._folder, self._benches, self._seed, self._watcher = folder, benches, seed, watcher
        self._log = records.Log(folder)

    def tune(self, workloads: dict[Workload, Usage], trials: int) -> None:
        """Measure up to `trials` candidates of each kernel, those in the log included, and decide.

        Raises
        ------
        PlanError
            If all candidates of a kernel failed.
        DataError
            If the log cannot be written; what was measured before is kept.
        """
        known = {w: self._known(w, usage) for w, usage in workloads.items()}
        tasks = [
            Task(index, workload, workloads[workload])
            for index, workload in enumerate(
                w for w in workloads if _measured(known[w]) < min(trials, len(search_space(w)))
            )
        ]
        if tasks:
            self._search(tasks, known, trials)
        for index, (workload, usage) in enumerate(workloads.items()):
            if trials:
                self._decide(Task(index, workload, usage))

    def _search(self, tasks: list[Task], known: dict[Workload, list[Record]], trials: int) -> None:
        contexts, left = [], 0
        for task in tasks:
            results = {record.chosen: record.ratio for record in known[task.workload] if not record.verdict}
            wanted = min(trials, len(search_space(task.workload))) - len(results)
            left += wanted
            contexts.append(task.context(RankedPoints(task, results, wanted, self._seed), self._seed))
        cost_model = ms.cost_model.XGBModel(
            extractor=KnobFeatures(tasks),
            config=ms.cost_model.xgb_model.XGBConfig(nthread=1, seed=self._seed),
            num_warmup_samples=WARM_UP,
            early_stopping_rounds=_PATIENCE,
        )

        best = {task.index: min((r.ratio for r in known[task.workload]), default=math.inf) for task in tasks}

        def found(task: Task, results: list[Result]) -> None:
            batch = self._note(task, results)
            best[task.index] = min(best[task.index], *(record.ratio for record in batch))
            self._watcher.measured(task.workload, batch, best[task.index])

        self._watcher.begin(len(tasks), left)
        runner = CandidateRunner(tasks, self._benches, self._seed, found)
        try:
            ms.task_scheduler.GradientBased(seed=self._seed).tune(
                tasks=contexts,
                task_weights=[1.0] * len(tasks),
                max_trials_global=left,
                max_trials_per_task=trials,
                num_trials_per_iter=BATCH * self._benches.count,
                builder=CandidateBuilder(tasks),
                runner=runner,
                measure_callbacks=[],
                database=ms.database.MemoryDatabase(),
                cost_model=cost_model,
            )
        except Exception:
            if runner.failure is not None:
                raise runner.failure from None
            raise

    def _known(self, workload: Workload, usage: Usage) -> list[Record]:
        """Return the records of a workload as it is used: at about the same density, with as many vectors."""
        return [
            record
            for record in self._log.of(workload)
            if record.vectors == usage.vectors and 1 / SAME_DENSITY <= record.density / usage.density <= SAME_DENSITY
        ]

    def _note(self, task: Task, results: list[Result], verdict: bool = False) -> list[Record]:
        """Append results to the log, and failures to theirs."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        noted = [_record(task, result, verdict, self._seed, now) for result in results]
        records.append(self._folder, noted)
        return noted

    def _decide(self, task: Task) -> None:
        """Measure the best candidates head to head with the default, unless that was done since the last trial."""
        known = self._known(task.workload, task.usage)
        if known and known[-1].verdict:
            return
        right = sorted((r for r in known if not r.verdict and math.isfinite(r.ratio)), key=lambda r: r.ratio)
        if not right:
            raise PlanError(
                f"{task.workload}: all {len(known)} candidates failed, the last one with: "
                f"{known[-1].error if known else 'none was measured'}. See the failures' log"
            )
        finalists = list(dict.fromkeys([default_knobs(task.workload), *(r.chosen for r in right[:FINALISTS])]))
        best = self._head_to_head(task, finalists)
        if best.knobs != finalists[0]:
            # What does not repeat was luck; and what does is judged by a measurement that it was not chosen by.
            best = self._head_to_head(task, [finalists[0], best.knobs])
        (verdict,) = self._note(task, [best], verdict=True)
        self._watcher.decided(verdict)

    def _head_to_head(self, task: Task, finalists: list[Knobs]) -> Result:
        return winner(self._benches.measure(task, self._seed, finalists, FINAL_ROUNDS, together=True))


def winner(results: list[Result]) -> Result:
    """Return the fastest of finalists, the first of which is the default, if that is beyond doubt, else the default."""
    default, *others = results
    right = [result for result in others if not result.timing.error]
    sure = [result for result in right if result.ratio < 1 - WORTH and result.wins >= SURE]
    return min(sure, key=lambda result: result.ratio, default=default)


def _measured(known: list[Record]) -> int:
    return len({record.chosen for record in known if not record.verdict})


def _rounded(value: float, digits: int = 4) -> float:
    """Return a time to as many digits as the clock is good for; an estimate of noise is good for fewer."""
    return float(f"{value:.{digits}g}")


def _record(task: Task, result: Result, verdict: bool, seed: int, now: str) -> Record:
    timing = result.timing
    return Record(
        workload=task.workload,
        knobs=asdict(result.knobs),
        density=task.usage.density,
        vectors=task.usage.vectors,
        seconds=0.0 if timing.error else _rounded(timing.typical),
        default_seconds=0.0 if timing.error else _rounded(result.default.typical),
        noise=0.0 if timing.error else _rounded(timing.noise, 2),
        error=timing.error,
        verdict=verdict,
        seed=seed,
        time=now,
    )
