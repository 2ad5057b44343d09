"""Where candidates are measured: one worker process here, or one for each server of a fleet."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from schedules.families import default_knobs
from schedules.knobs import Knobs
from tvm_dual.errors import SetupError
from tvm_dual.tuning.candidates import Timing
from tvm_dual.tuning.isolated import CandidateError, IsolatedBench
from tvm_dual.tuning.task import Task

#: How often a candidate is tried by itself before it counts as failed: the machine it ran on may have died.
ATTEMPTS = 2


@dataclass(frozen=True)
class Result:
    """A candidate's timing, and that of the default in turns with it."""

    knobs: Knobs
    timing: Timing
    default: Timing

    @property
    def ratio(self) -> float:
        """Time relative to the default's."""
        return self.timing.typical / self.default.typical

    @property
    def wins(self) -> float:
        """Share of the turns in which it was faster than the default: neighbours disturb both alike."""
        turns = zip(self.timing.seconds, self.default.seconds, strict=True)
        return float(np.mean([mine < its for mine, its in turns]))


class Benches:
    """Worker processes that share the candidates of a batch, each timing its own in turns with the default."""

    def __init__(
        self, make: Callable[[], IsolatedBench] = IsolatedBench, servers: Callable[[], int] = lambda: 1
    ) -> None:
        """Run one worker, from ``make()``, for each of ``servers()`` machines, which may come and go."""
        self._make, self._servers = make, servers
        self._idle: list[IsolatedBench] = []

    def __enter__(self) -> Benches:
        return self

    def __exit__(self, *failure) -> None:
        for bench in self._idle:
            bench.close()

    @property
    def count(self) -> int:
        """Number of machines.

        Raises
        ------
        SetupError
            If there is none.
        """
        return self._servers()

    def measure(
        self, task: Task, seed: int, candidates: Sequence[Knobs], rounds: int, together: bool = False
    ) -> list[Result]:
        """Time candidates of a task in `rounds` turns with its default; `together` keeps them on one machine.

        A candidate that takes its process down is tried again by itself, and then counts as failed.

        Raises
        ------
        SetupError
            If the default kernel itself fails, or no machine is left.
        """
        default = default_knobs(task.workload)
        work = _Work(task, seed, default, rounds)
        share = len(candidates) if together else -(-len(candidates) // self.count)
        for start in range(0, len(candidates), share):
            work.left.put(list(candidates[start : start + share]))
        while not work.left.empty():
            self._run(work, min(self.count, work.left.qsize()))
        return [work.done[knobs] for knobs in candidates]

    def _run(self, work: _Work, count: int) -> None:
        while len(self._idle) < count:
            self._idle.append(self._make())
        benches, self._idle = self._idle[:count], self._idle[count:]
        threads = [threading.Thread(target=work.serve, args=(bench,), daemon=True) for bench in benches]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._idle += benches
        if work.broken:
            raise work.broken[0]


class _Work:
    """Candidates that are left, and results that are there."""

    def __init__(self, task: Task, seed: int, default: Knobs, rounds: int) -> None:
        self._task, self._seed, self._default, self._rounds = task, seed, default, rounds
        self._attempts: Counter[Knobs] = Counter()
        self.left: queue.SimpleQueue[list[Knobs]] = queue.SimpleQueue()
        self.done: dict[Knobs, Result] = {}
        self.broken: list[BaseException] = []

    def serve(self, bench: IsolatedBench) -> None:
        """Measure on one machine until nothing is left, or the machine fails."""
        while not self.broken:
            try:
                chunk = self.left.get_nowait()
            except queue.Empty:
                return
            try:
                self._measure(bench, chunk)
            except CandidateError as error:
                self._retry(chunk, str(error))
                # The next one may be on another machine.
                return
            except BaseException as error:
                self.broken.append(error)

    def _measure(self, bench: IsolatedBench, chunk: list[Knobs]) -> None:
        every = list(dict.fromkeys([self._default, *chunk]))
        task = self._task
        timings = bench.call("measure", task.workload, task.usage, self._seed, every, self._rounds)
        by_knobs = dict(zip(every, timings, strict=True))
        reference = by_knobs[self._default]
        if reference.error:
            # Nothing can be compared: whoever runs this must see it, not find a log of failures.
            raise SetupError(f"{task.workload}: the default kernel fails here: {reference.error}")
        self.done |= {knobs: Result(knobs, by_knobs[knobs], reference) for knobs in chunk}

    def _retry(self, chunk: list[Knobs], error: str) -> None:
        for knobs in chunk:
            self._attempts[knobs] += len(chunk) == 1
            if self._attempts[knobs] < ATTEMPTS:
                self.left.put([knobs])
            else:
                self.done[knobs] = Result(knobs, Timing(error=error), Timing())
