"""What the cost model sees of a candidate: its knobs and its workload.

MetaSchedule's own features are taken from loops, and fail on those that end at a number of open rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from schedules.families import FAMILIES
from tvm_dual.tuning.task import Task, knobs_in, task_index

#: Extents and knobs at most; shorter ones are filled with zeros.
_EXTENTS = max(len(family.axes) for family in FAMILIES.values())
_KNOBS = max(len(fields(family.knobs)) for family in FAMILIES.values())


@derived_object
class KnobFeatures(ms.feature_extractor.PyFeatureExtractor):
    """One row of numbers for each candidate."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Extract for candidates of `tasks`."""
        super().__init__()
        self._tasks = tasks

    def extract_from(self, context: ms.TuneContext, candidates: list[ms.MeasureCandidate]) -> list[tvm.runtime.Tensor]:
        task = self._tasks[task_index(context.mod)]
        return [tvm.runtime.tensor(_row(task, candidate)[None]) for candidate in candidates]


def _row(task: Task, candidate: ms.MeasureCandidate) -> np.ndarray:
    workload = task.workload
    families = [float(name == workload.family) for name in FAMILIES]
    knobs = astuple(knobs_in(candidate.sch.mod, workload))
    # `NEXT` is -1, next to 0; amounts are compared by their magnitude.
    scaled = [float(value) if value <= 0 else 1 + np.log2(value) for value in knobs]
    extents = [np.log2(1 + extent) for extent in workload.shape]
    row = [*families, *_filled(extents, _EXTENTS), workload.threads, task.usage.density, *_filled(scaled, _KNOBS)]
    return np.array(row, "float32")


def _filled(values: list[float], length: int) -> list[float]:
    return values + [0.0] * (length - len(values))
