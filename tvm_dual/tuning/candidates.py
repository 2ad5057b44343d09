"""Compiling, checking and timing candidates: what a worker process does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tvm

from schedules.compiling import compiled
from schedules.cpu import available_cores, use_threads
from schedules.families import Workload, template
from schedules.knobs import Knobs
from tvm_dual.tuning.copies import over_copies, stacked, unstacked
from tvm_dual.tuning.problem import Problem, Usage
from tvm_dual.tuning.problems import make_problem

#: Seconds of one round of one candidate, at least; a round is many calls.
ROUND_SECONDS = 0.001
#: Turns begin with another candidate each time, so many further on.
_STRIDE = 7


@dataclass(frozen=True)
class Timing:
    """What became of a candidate.

    Attributes
    ----------
    seconds : tuple of float
        Of one kernel call, by round; empty if it failed.
    error : str
        Why it failed, else "".
    """

    seconds: tuple[float, ...] = ()
    error: str = ""

    @property
    def typical(self) -> float:
        """Median of the faster half of the rounds, in seconds: a busy neighbour only ever adds time."""
        return float(np.median(sorted(self.seconds)[: len(self.seconds) // 2 + 1]))

    @property
    def noise(self) -> float:
        """How far the rounds of that half differ, relative to `typical`."""
        half = sorted(self.seconds)[: len(self.seconds) // 2 + 1]
        return (half[-1] - half[0]) / self.typical


class Bench:
    """Compiles candidates of one workload at a time and times them on one device."""

    def __init__(self) -> None:
        """Time on this machine."""
        self._device = tvm.cpu()
        self._key: tuple | None = None
        self._problem: Problem | None = None
        self._modules: dict[Knobs, object] = {}
        self._tensors: dict[object, list] = {}

    def measure(
        self, workload: Workload, usage: Usage, seed: int, candidates: Sequence[Knobs], rounds: int
    ) -> list[Timing]:
        """Check candidates, and time those that are right in `rounds` turns."""
        self._begin(workload, usage, seed)
        self._use_threads(workload.threads)
        failures = self._compile([knobs for knobs in candidates if knobs not in self._modules])
        errors = {knobs: failures.get(knobs) or self._checked(knobs) for knobs in candidates}
        right = [knobs for knobs, error in errors.items() if not error]
        calls = {knobs: max(1, round(ROUND_SECONDS / self._time(knobs, 1) / self._problem.copies)) for knobs in right}
        seconds: dict[Knobs, list[float]] = {knobs: [] for knobs in right}
        for turn in range(rounds):
            # Nobody always follows the same one, nor runs when somebody else's slice of the core is over.
            at = turn * _STRIDE % max(1, len(right))
            for knobs in right[at:] + right[:at]:
                seconds[knobs].append(self._time(knobs, calls[knobs]))
        return [Timing(tuple(seconds.get(knobs, ())), errors[knobs]) for knobs in candidates]

    def _use_threads(self, count: int) -> None:
        use_threads(count)

    def _compile(self, candidates: Sequence[Knobs]) -> dict[Knobs, str]:
        """Compile candidates; return why some cannot be.

        LLVM works on one candidate, without Python's lock, while the next one is parsed.
        """
        workload, problem, waiting, failures = self._key[0], self._problem, {}, {}
        with ThreadPoolExecutor(available_cores()) as pool:
            for knobs in candidates:
                try:
                    kernel = over_copies(template(workload, knobs), problem.copies, problem.vectors)
                    waiting[knobs] = pool.submit(self._generate, tvm.IRModule({"main": kernel}), workload)
                # A candidate may fail in any way; what it says goes into the log. Where it is the default, tuning ends.
                except Exception:
                    failures[knobs] = traceback.format_exc()
            for knobs, future in waiting.items():
                try:
                    self._modules[knobs] = self._loaded(future.result())
                except Exception:  # as above: LLVM, or a server
                    failures[knobs] = traceback.format_exc()
        return failures

    def _generate(self, module: tvm.IRModule, workload: Workload):
        """Return code for a candidate; several threads do this at once."""
        code = compiled(module, workload.level, workload.threads).jit()
        code.get_function("main")  # what LLVM leaves for the first use
        return code

    def _loaded(self, code) -> tvm.runtime.Module:
        """Return what `_generate` gave as a module on the device."""
        return code

    def _checked(self, knobs: Knobs) -> str:
        """Run a candidate; return what is wrong with it, "" if nothing is."""
        try:
            return self._wrong(knobs)
        except Exception:  # as in `_compile`
            return traceback.format_exc()

    def _begin(self, workload: Workload, usage: Usage, seed: int) -> None:
        if self._key != (workload, usage, seed):
            self._problem, self._modules, self._tensors = make_problem(workload, usage, seed), {}, {}
            self._key = workload, usage, seed

    def _arguments(self, knobs: Knobs) -> list:
        """Return the candidate's operands and results on the device."""
        problem = self._problem
        before, after = self._placed("before", lambda: problem.before), self._placed("after", lambda: problem.after)
        key = "packed", *(getattr(knobs, name) for name in problem.packing)
        return [*before, *self._placed(key, lambda: problem.packed(knobs)), *after, *self._results]

    def _placed(self, key: object, make: Callable[[], list[np.ndarray]]) -> list:
        if key not in self._tensors:
            self._tensors[key] = [tvm.runtime.tensor(array, self._device) for array in make()]
        return self._tensors[key]

    @property
    def _results(self) -> list:
        return self._placed("results", self._nothing)

    def _nothing(self) -> list[np.ndarray]:
        """Return results of which nothing is right, so that one that a candidate fails to write is not."""
        results = self._problem.results
        wrong = (~each if each.dtype.kind in "iu" else np.full_like(each, np.nan) for each in results)
        return [stacked(list(each)) for each in wrong]

    def _wrong(self, knobs: Knobs) -> str:
        """Run a candidate; return how it errs, "" if it is right."""
        for tensor, nothing in zip(self._results, self._nothing(), strict=True):
            tensor.copyfrom(nothing)
        self._modules[knobs]["main"](*self._arguments(knobs))
        found = [
            unstacked(tensor.numpy(), self._problem.copies, result.shape[1:])
            for tensor, result in zip(self._results, self._problem.results, strict=True)
        ]
        return self._problem.wrong(found)

    def _time(self, knobs: Knobs, calls: int) -> float:
        """Return the seconds of one kernel call, mean over `calls` of all copies."""
        timer = self._modules[knobs].time_evaluator("main", self._device, number=calls, repeat=1)
        return float(timer(*self._arguments(knobs)).mean) / self._problem.copies
