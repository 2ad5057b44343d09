"""TVM's own tuning loop, with its own builder, runner and cost model, on kernels like ours: what a trial costs there.

Our kernels themselves cannot be put through it: its features fail on loops that end at a number of open rows, and on
vector expressions. What stands for them is the same product in a form that it can schedule.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from functools import partial

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T

from schedules.cpu import Isa, tvm_target

#: Seconds that a candidate may take to build: with the 30 that are TVM's own most are lost on a busy machine.
PATIENCE = 300


@dataclass(frozen=True)
class StockCost:
    """What a run of the loop took.

    Attributes
    ----------
    trials, valid : int
    seconds, processor_seconds : float
        Of the whole run, per trial; the second of its worker processes alone.
    """

    trials: int
    valid: int
    seconds: float
    processor_seconds: float


def stock_dense(isa: Isa, n: int, k: int, trials: int) -> StockCost:
    """Tune every row of a matrix, in the space that TVM's rules find."""
    return _tuned(every_row(n, k), isa, trials, space="post-order-apply", strategy="evolutionary")


def stock_gated(isa: Isa, n: int, k: int, trials: int) -> StockCost:
    """Tune gated rows: TVM's rules find nothing for them, so the space is a function."""
    space = ms.space_generator.ScheduleFn(partial(sample, isa), sch_rules=[], postprocs=[], mutator_probs={})
    return _tuned(gated_rows(n, k), isa, trials, space=space, strategy="replay-trace")


def every_row(n: int, k: int):
    """Return the kernel ``(x: f32[k], weight: f32[n, k]) -> y: f32[n]``."""

    @T.prim_func(s_tir=True)
    def dense(x: T.Buffer((k,), "float32"), weight: T.Buffer((n, k), "float32"), y: T.Buffer((n,), "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for i, j in T.grid(n, k):
            with T.sblock("dot"):
                vi, vk = T.axis.remap("SR", [i, j])
                with T.init():
                    y[vi] = T.float32(0)
                y[vi] = y[vi] + x[vk] * weight[vi, vk]

    return dense


def gated_rows(n: int, k: int):
    """Return the kernel ``(x: f32[k], weight: f32[n, k], closed: f32[n], gate: u8[n]) -> y: f32[n]``."""

    @T.prim_func(s_tir=True)
    def gated(
        x: T.Buffer((k,), "float32"),
        weight: T.Buffer((n, k), "float32"),
        closed: T.Buffer((n,), "float32"),
        gate: T.Buffer((n,), "uint8"),
        y: T.Buffer((n,), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for i in range(n):
            with T.sblock("row"):
                vi = T.axis.spatial(n, i)
                T.reads(x[0:k], weight[vi, 0:k], closed[vi], gate[vi])
                T.writes(y[vi])
                if gate[vi] != T.uint8(0):
                    total = T.sblock_alloc_buffer((1,), "float32")
                    for j in range(k):
                        with T.sblock("dot"):
                            vk = T.axis.reduce(k, j)
                            with T.init():
                                total[0] = T.float32(0)
                            total[0] = total[0] + x[vk] * weight[vi, vk]
                    y[vi] = total[0]
                else:
                    y[vi] = closed[vi]

    return gated


def sample(isa: Isa, schedule: s_tir.Schedule) -> None:
    """Schedule the dot product of `gated_rows`: in so many vectors side by side."""
    (loop,) = schedule.get_loops(schedule.get_sblock("dot"))
    vectors = schedule.sample_categorical([1, 2, 4, 8], [0.25] * 4)
    _, several, lane = schedule.split(loop, [None, vectors, isa.lanes])
    partial_sums = schedule.rfactor(schedule.fuse(several, lane), 0)
    outer, inner = schedule.get_loops(partial_sums)
    unrolled, wide = schedule.split(inner, [vectors, isa.lanes])
    schedule.unroll(unrolled)
    schedule.vectorize(wide)
    schedule.decompose_reduction(partial_sums, outer)


def _tuned(kernel, isa: Isa, trials: int, **search) -> StockCost:
    before, start = _processor_seconds(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tvm_dual-") as folder:
        database = ms.tune_tir(
            tvm.IRModule({"main": kernel}),
            tvm_target(isa, 1),
            folder,
            max_trials_global=trials,
            num_trials_per_iter=trials,
            builder=ms.builder.LocalBuilder(timeout_sec=PATIENCE),
            runner=ms.runner.LocalRunner(timeout_sec=PATIENCE),
            num_tuning_cores=1,
            seed=0,
            **search,
        )
        found = database.get_all_tuning_records()
    took, used = time.perf_counter() - start, _processor_seconds() - before
    # Candidates that fail are stored as if they took 1e10 seconds.
    valid = sum(float(record.run_secs[0]) < 1e9 for record in found)
    return StockCost(len(found), valid, took / max(1, len(found)), used / max(1, len(found)))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
