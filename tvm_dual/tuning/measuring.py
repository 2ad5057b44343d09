"""Measuring candidates for MetaSchedule: its builder and its runner, with everything dangerous in other processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from schedules.families import FAMILIES
from tvm_dual.tuning.benches import Benches, Result
from tvm_dual.tuning.task import Task, knobs_in, task_index

#: Turns of each candidate among those of its batch.
ROUNDS = 15


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """Compiles nothing: that is done where candidates run, so that they need not be linked to a file."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Name candidates of `tasks`."""
        super().__init__()
        self._tasks = tasks

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        """Return results whose path to an artifact says which candidate is meant."""
        return [ms.builder.BuilderResult(self._name(candidate.mod), None) for candidate in build_inputs]

    def _name(self, module: tvm.IRModule) -> str:
        task = self._tasks[task_index(module)]
        return json.dumps([task.index, asdict(knobs_in(module, task.workload))])


@derived_object
class CandidateRunner(ms.runner.PyRunner):
    """Measures candidates in turns with the default of their kernel.

    Attributes
    ----------
    failure : BaseException or None
        What ended the last call of `run`, an interrupt included.
    """

    def __init__(
        self, tasks: Sequence[Task], benches: Benches, seed: int, found: Callable[[Task, list[Result]], None]
    ) -> None:
        """Measure candidates of `tasks`; ``found(task, results)`` is called as soon as results are there."""
        super().__init__()
        self._tasks, self._benches, self._seed, self._found = tasks, benches, seed, found
        self.failure: BaseException | None = None

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        """Return futures that are done: candidates are measured one batch at a time, on an otherwise idle machine."""
        try:
            return self._run(runner_inputs)
        except BaseException as error:
            # TVM passes on a message and no type.
            self.failure = error
            raise

    def _run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        named = [json.loads(candidate.artifact_path) for candidate in runner_inputs]
        task = self._tasks[named[0][0]]
        kind = FAMILIES[task.workload.family].knobs
        results = self._benches.measure(task, self._seed, [kind(**knobs) for _, knobs in named], ROUNDS)
        self._found(task, results)
        return [_Done(result) for result in results]


@derived_object
class _Done(ms.runner.PyRunnerFuture):
    """A result that is there."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> ms.runner.RunnerResult:
        """Return the time relative to the default's, which holds where the machine's pace changes."""
        if self._result.timing.error:
            return ms.runner.RunnerResult(None, self._result.timing.error)
        return ms.runner.RunnerResult([self._result.ratio], None)
