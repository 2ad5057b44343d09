"""``python -m benchmarks.tuning_cost [PART...]``: what tuning costs, and how good it is.

trials      seconds per candidate, all of it, and the share of valid ones
stock       the same of TVM's own loop, on a few candidates of kernels like these
exhaustive  every point of three kernels' spaces: defaults against the best, and trials until 98 % of it
rerun       the command with complete logs, and builds with and without them
models      NSNet2 by the defaults and by the records that builds find, in turns
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from schedules.cpu import ISAS, Isa, native_isa
from schedules.families import Workload, default_knobs, search_space
from schedules.knobs import Knobs
from tvm_dual.builder import TUNED, Builder
from tvm_dual.measure import median_microseconds
from tvm_dual.options import AdvancedOptions
from tvm_dual.tuning import records
from tvm_dual.tuning.api import TRIALS, tune
from tvm_dual.tuning.benches import Benches
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.task import Task
from tvm_dual.tuning.tuner import FINAL_ROUNDS, Tuner
from tvm_dual.tuning.watcher import Silent

#: Of an exhaustive search; searches whose trials are counted; what counts as found; trials of TVM's own loop.
SWEEPS, SEARCHES, FOUND, STOCK_TRIALS = 2, 3, 0.98, 4
#: Share of closed rows of the gated model.
CLOSED = 0.95


def kernels(isa: Isa) -> dict[Workload, Usage]:
    """Return the kernels that are measured: every row of a matrix, a GRU's gated pairs, many vectors at once."""
    return {
        Workload("rows_int8", (1024, 1024, 1), isa.name, 1): Usage(),
        Workload("row_pairs_int8", (1800, 600, 600), isa.name, 1): Usage(0.05),
        Workload("matmul_int8", (1024, 1024), isa.name, 1): Usage(vectors=32),
    }


@dataclass(frozen=True)
class Cost:
    """What the tuning of one kernel took.

    Attributes
    ----------
    seconds, processor_seconds : float
        By the clock, and of processors, those of the worker process included: on a busy machine the first is longer.
    trials, valid : int
    """

    seconds: float
    processor_seconds: float
    trials: int
    valid: int


def cost(workload: Workload, usage: Usage, benches: Benches, trials: int = TRIALS) -> Cost:
    """Tune one kernel anew, verdict included."""
    start, used = time.perf_counter(), _processor_seconds()
    found = _searched(workload, usage, benches, trials, seed=0)
    took, used = time.perf_counter() - start, _processor_seconds() - used
    return Cost(took, used, len(found), sum(not record.error for record in found))


def _processor_seconds() -> float:
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Exhaustive:
    """What the search of all points of one kernel shows.

    Attributes
    ----------
    points : int
    best : Knobs
    gain : float
        Time of the default / time of the best.
    trials : tuple of int
        Of searches by the tuner, until a point that is `FOUND` of the best.
    """

    points: int
    best: Knobs
    gain: float
    trials: tuple[int, ...]


def exhaustive(workload: Workload, usage: Usage, benches: Benches, rounds: int = FINAL_ROUNDS) -> Exhaustive:
    """Measure every point in turns with all others, and search as the tuner does."""
    points = search_space(workload)
    times = dict.fromkeys(points, 0.0)
    for seed in range(SWEEPS):
        for result in benches.measure(Task(0, workload, usage), seed, points, rounds, together=True):
            times[result.knobs] += result.ratio / SWEEPS
    best = min(times, key=times.get)
    good = {knobs for knobs, ratio in times.items() if ratio <= times[best] / FOUND}
    trials = []
    for seed in range(SEARCHES):
        order = [record.chosen for record in _searched(workload, usage, benches, TRIALS, seed)]
        trials.append(1 + next(i for i, knobs in enumerate(order) if knobs in good))
    return Exhaustive(len(points), best, times[default_knobs(workload)] / times[best], tuple(trials))


@dataclass(frozen=True)
class Rerun:
    """Seconds of a first run of the tuner, of one with complete logs and what that measured, and of two builds."""

    first: float
    again: float
    measured: int
    plain_build: float
    build_with_logs: float


def rerun(model, streams: Sequence[np.ndarray], trials: int = 1) -> Rerun:
    """Tune a streamed model's kernels twice, and build it without logs and with those."""
    # Planned without judging quality, which is the same for all of these.
    options, forms = {"streaming": True}, AdvancedOptions(closed_share=CLOSED)
    with tempfile.TemporaryDirectory(prefix="tvm_dual-") as logs, tempfile.TemporaryDirectory() as none:
        plan = Builder(model, streams, logs=none, **options).build(options=forms).report.plan

        def tuned() -> tuple[float, int]:
            start = time.perf_counter()
            folder = tune(model, streams, plan=plan, precisions=("int8",), trials=trials, logs=logs, **options)
            return time.perf_counter() - start, len(records.read(folder))

        def built(folder: str) -> float:
            start = time.perf_counter()
            Builder(model, streams, logs=folder, **options).build(options=forms, plan=plan)
            return time.perf_counter() - start

        (first, before), (again, after) = tuned(), tuned()
        return Rerun(first, again, after - before, built(none), built(logs))


def default_and_tuned(model, streams: Sequence[np.ndarray], rounds: int = 21) -> dict[tuple[str, str], list[float]]:
    """Return microseconds of a call by defaults and by the records that builds find, by mode and precision.

    Forms are the same for both; those of the gated mode are planned for `CLOSED` closed rows.
    """
    found = {}
    with tempfile.TemporaryDirectory() as none:
        tuned = Builder(model, streams, streaming=True)
        plain = Builder(model, streams, streaming=True, logs=none, like=tuned)
        for precision, mode in itertools.product(TUNED, ("dense", "skip", "dual")):
            options = AdvancedOptions(mode=mode, closed_share=CLOSED if mode == "dual" else None)
            library = tuned.build(precision, options=options)
            pair = [plain.build(precision, options=options, plan=library.report.plan), library]
            found[mode, precision] = median_microseconds(pair, tuned.model(precision).longest, rounds)
    return found


def _searched(workload: Workload, usage: Usage, benches: Benches, trials: int, seed: int) -> list[records.Record]:
    """Return the candidates of one search in the order in which they were measured."""
    with tempfile.TemporaryDirectory(prefix="tvm_dual-") as folder:
        Tuner(Path(folder), benches, seed, Silent()).tune({workload: usage}, trials)
        return [record for record in records.read(Path(folder)) if not record.verdict]


def _print_trials(isa: Isa) -> None:
    with Benches() as benches:
        start = time.perf_counter()
        cost(Workload("rows_int8", (64, 64, 1), isa.name, 1), Usage(), benches, trials=1)
        print(f"start of the tuner: {time.perf_counter() - start:.1f} s")
        for workload, usage in kernels(isa).items():
            found = cost(workload, usage, benches)
            each, used = found.seconds / found.valid, found.processor_seconds / found.valid
            print(
                f"{workload}: {each:.2f} s per valid candidate, verdict included ({used:.2f} s of processor time); "
                f"{found.valid} of {found.trials} valid"
            )


def _print_stock(isa: Isa) -> None:
    from benchmarks.tuning_stock import stock_dense, stock_gated

    for name, measure, shape in (("dense", stock_dense, (1024, 1024)), ("gated rows", stock_gated, (1800, 1200))):
        found = measure(isa, *shape, STOCK_TRIALS)
        print(
            f"TVM's own loop, {name} {shape[0]} x {shape[1]}: {found.seconds:.1f} s per candidate, "
            f"{found.processor_seconds:.1f} s of processor time in workers; {found.valid} of {found.trials} valid"
        )


def _print_exhaustive(isa: Isa) -> None:
    with Benches() as benches:
        for workload, usage in kernels(isa).items():
            found = exhaustive(workload, usage, benches)
            print(
                f"{workload}: {found.points} points, default / best {found.gain:.3f}, best {found.best}; "
                f"{FOUND:.0%} of it after {', '.join(map(str, found.trials))} trials"
            )


def _print_rerun(_isa: Isa) -> None:
    found = rerun(*_nsnet2())
    print(
        f"NSNet2, kernels of one plan: tuned in {found.first:.1f} s, again in {found.again:.1f} s "
        f"({found.measured} measured); build {found.plain_build:.1f} s, with logs {found.build_with_logs:.1f} s"
    )


def _print_models(_isa: Isa) -> None:
    for (mode, precision), (plain, tuned) in default_and_tuned(*_nsnet2()).items():
        print(f"NSNet2 {mode} {precision}: {plain:.1f} us by defaults, {tuned:.1f} tuned, {plain / tuned:.3f}")


def _nsnet2() -> tuple[Path, list[np.ndarray]]:
    from benchmarks.audio.mixing import calibration_clips
    from benchmarks.denoising import Speech
    from benchmarks.nsnet2 import model_path

    return model_path(), Speech(calibration_clips()[::3]).features


_PARTS = {
    "trials": _print_trials,
    "stock": _print_stock,
    "exhaustive": _print_exhaustive,
    "rerun": _print_rerun,
    "models": _print_models,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the parts that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning_cost", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(_PARTS))
    chosen = parser.parse_args(arguments).parts or list(_PARTS)
    if unknown := [part for part in chosen if part not in _PARTS]:
        parser.error(f"{', '.join(unknown)}: accepted: {', '.join(_PARTS)}")
    for part in chosen:
        _PARTS[part](ISAS[native_isa().records])


if __name__ == "__main__":
    # Of the kernels that are measured; the pool is sized once.
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    sys.exit(main())
