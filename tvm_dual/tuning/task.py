"""A kernel to tune, as MetaSchedule sees it: a module, and a ``ScheduleFn`` whose sampled values are the knobs.

The trace of a candidate holds its knobs as decisions, and notes them in its block. The loops of these
templates follow from the knobs, which a builder reads from there, and not from schedule primitives: a gate, a
packed layout and a register tile are no rewriting of one loop nest into another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from types import ModuleType

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T

from schedules.cpu import tvm_target
from schedules.families import FAMILIES, Workload
from schedules.knobs import Knobs
from tvm_dual.tuning.problem import Usage

_KNOB, _TASK = "dual.knob.", "dual.task"


@dataclass(frozen=True, eq=False)
class Task:
    """A workload as a model uses it.

    Attributes
    ----------
    index : int
        Among the tasks that are tuned together.
    workload : Workload
    usage : Usage
    """

    index: int
    workload: Workload
    usage: Usage

    @cached_property
    def module(self) -> tvm.IRModule:
        """What stands for the kernel: MetaSchedule's scheduler counts operations, and fails on those of vectors."""

        @T.prim_func(s_tir=True)
        def stand_in(value: T.Buffer((1,), "float32")):
            T.func_attr({"global_symbol": "main"})
            with T.sblock("kernel"):
                value[0] = value[0] + T.float32(1)

        attributes = {_TASK: self.index, "dual.workload": str(self.workload)}
        return tvm.IRModule({"main": stand_in.with_attrs(attributes)})

    def space(self) -> ms.space_generator.ScheduleFn:
        """Return the search space."""
        values = FAMILIES[self.workload.family].space(self.workload)

        def sample(schedule: s_tir.Schedule) -> None:
            kernel = schedule.get_sblock("kernel")
            for name, choices in values.items():
                value = schedule.sample_categorical(list(choices), [1 / len(choices)] * len(choices))
                schedule.annotate(kernel, _KNOB + name, value)

        return ms.space_generator.ScheduleFn(sample, sch_rules=[], postprocs=[], mutator_probs={})

    def context(self, strategy, seed: int) -> ms.TuneContext:
        """Return what MetaSchedule's task scheduler takes."""
        with _without_intrinsics():
            return ms.TuneContext(
                self.module,
                target=tvm_target(self.workload.level, self.workload.threads),
                space_generator=self.space(),
                search_strategy=strategy,
                task_name=str(self.workload),
                rand_state=seed,
                num_threads=1,
            )


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Spare a ``TuneContext`` the import of TVM's tensor intrinsics.

    They are 250 kernels for other hardware, which no template here uses, and parsing them takes up to a minute.
    """
    name = "tvm.s_tir.tensor_intrin"
    known = sys.modules.get(name)
    sys.modules[name] = known or ModuleType(name)
    try:
        yield
    finally:
        if known is None:
            del sys.modules[name]


def task_index(module: tvm.IRModule) -> int:
    """Return the index of the task that a candidate belongs to."""
    return int(module["main"].attrs[_TASK])


def knobs_in(module: tvm.IRModule, workload: Workload) -> Knobs:
    """Return the knobs of a candidate."""
    kind, notes = FAMILIES[workload.family].knobs, module["main"].body.block.annotations
    return kind(**{field.name: int(notes[_KNOB + field.name]) for field in fields(kind)})
