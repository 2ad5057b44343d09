"""Which candidates are measured next: those that the cost model puts first, and a few at random.

A space of knobs has tens of points, not millions. So all of them are ranked, and none is measured twice, where
MetaSchedule's evolution would draw and mutate samples of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from schedules.families import default_knobs, search_space
from schedules.knobs import Knobs
from tvm_dual.tuning.task import Task, knobs_in

#: Share of the candidates that is drawn at random.
CURIOSITY = 0.25


@derived_object
class RankedPoints(ms.search_strategy.PySearchStrategy):
    """Ranks all points of a task's space that have not been measured."""

    def __init__(self, task: Task, known: Mapping[Knobs, float], trials: int, seed: int) -> None:
        """Search `task` in `trials` measurements; `known` are the results of earlier ones, relative to the default's.

        A candidate that failed has an infinite result.
        """
        super().__init__()
        self._task, self._known, self._trials, self._seed = task, dict(known), trials, seed
        self._random = np.random.default_rng(seed)
        self._left: dict[Knobs, ms.MeasureCandidate] = {}

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        self._context = context

    def pre_tuning(self, max_trials, num_trials_per_iter, design_spaces, database=None, cost_model=None) -> None:
        """Lay out all points, and tell the cost model what is known of them."""
        self._batch, self._model = num_trials_per_iter, cost_model
        worth = set(search_space(self._task.workload))
        all_points = {knobs_in(c.sch.mod, self._task.workload): c for c in self._points(design_spaces[0])}
        points = {knobs: candidate for knobs, candidate in all_points.items() if knobs in worth}
        known = {knobs: ratio for knobs, ratio in self._known.items() if knobs in points}
        results = [
            ms.runner.RunnerResult([ratio] if np.isfinite(ratio) else None, None if np.isfinite(ratio) else "failed")
            for ratio in known.values()
        ]
        if known:
            cost_model.update(self._context, [points[knobs] for knobs in known], results)
        self._left = {knobs: candidate for knobs, candidate in points.items() if knobs not in known}

    def _points(self, design: s_tir.Schedule) -> list[ms.MeasureCandidate]:
        arguments = ms.arg_info.ArgInfo.from_prim_func(self._task.module["main"])
        samples = [inst for inst in design.trace.insts if inst in design.trace.decisions]
        choices = [range(len(inst.attrs[0])) for inst in samples]
        candidates = []
        for point in itertools.product(*choices):
            trace, schedule = design.trace, s_tir.Schedule(self._task.module)
            for sample, decision in zip(samples, point, strict=True):
                trace = trace.with_decision(sample, decision, remove_postproc=True)
            trace.apply_to_schedule(schedule, remove_postproc=True)
            candidates.append(ms.MeasureCandidate(schedule, arguments))
        return candidates

    def post_tuning(self) -> None:
        """Forget the points."""
        self._left = {}

    def generate_measure_candidates(self) -> list[ms.MeasureCandidate] | None:
        """Return the next candidates, None if trials or points are used up."""
        count = min(self._batch, self._trials, len(self._left))
        if count <= 0:
            return None
        self._trials -= count
        knobs = list(self._left)
        with _repeatable(self._random):
            scores = np.asarray(self._model.predict(self._context, [self._left[k] for k in knobs]))
        # The default comes first: whoever stops at once has it measured.
        scores[[k == default_knobs(self._task.workload) for k in knobs]] = np.inf
        curious = self._random.random(count) < CURIOSITY
        chosen: list[int] = []
        for at_random in curious:
            rest = [i for i in np.argsort(-scores) if i not in chosen]
            chosen.append(int(self._random.choice(rest)) if at_random and chosen else int(rest[0]))
        return [self._left.pop(knobs[i]) for i in chosen]

    def notify_runner_results(self, measure_candidates, results) -> None:
        """Tell the cost model what came out."""
        self._model.update(self._context, measure_candidates, results)

    def clone(self):
        """Return a strategy that starts as this one did."""
        return RankedPoints(self._task, self._known, self._trials, self._seed)


@contextmanager
def _repeatable(random: np.random.Generator) -> Iterator[None]:
    """Let NumPy's global generator follow `random`: a cost model that knows too little yet draws its scores from it."""
    before = np.random.get_state()
    np.random.seed(random.integers(2**32))
    try:
        yield
    finally:
        np.random.set_state(before)
