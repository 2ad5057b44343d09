"""``tune``: from a model to records of its kernels. This file is the table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

from tvm_dual.builder import PRECISIONS, Builder
from tvm_dual.errors import PlanError
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.tuning.isolated import IsolatedBench
from tvm_dual.tuning.lookup import LOGS
from tvm_dual.tuning.manifest import FILE, this_machine
from tvm_dual.tuning.tuner import Tuner, Watcher
from tvm_dual.tuning.workloads import model_workloads

#: Candidates of each kernel.
TRIALS = 64


def tune(
    model,
    calibration: Iterable,
    *,
    plan: Plan | None = None,
    precisions: tuple[str, ...] = PRECISIONS,
    trials: int = TRIALS,
    logs: str | Path = LOGS,
    seed: int = 0,
    options: AdvancedOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    watcher: Watcher | None = None,
    **arguments,
) -> Path:
    """Tune the kernels of a model on this machine; `build` finds the records by itself.

    Parameters
    ----------
    model, calibration
        As `build` takes them; kernels are measured at the densities that the data shows.
    plan : Plan, optional
        Tune what this plan uses alone, in place of all forms that planning compares.
    precisions : tuple of str
        Of the big modules.
    trials : int
        Candidates of each kernel, those included that the log holds already; 0 measures nothing.
    logs : path
        Folder with one folder for each target in it, made if it is not there.
    seed : int
        Of operands and of what is tried at random.
    options, progress
        As `build` takes them.
    watcher : Watcher, optional
        Told of each measured batch, and of each candidate that failed.
    **arguments
        What else `build` takes: `streaming`, `target`, `threads` and so on.

    Returns
    -------
    Path
        The folder of the target's records.

    Raises
    ------
    PlanError
        If `trials` is negative, or all candidates of a kernel failed.
    DataError
        If the logs cannot be written.
    TvmDualError
        As `build` does.
    """
    if not isinstance(trials, int) or trials < 0:
        raise PlanError(f"trials: found {trials!r}; accepted: 0, which measures nothing, or more")
    # 1. Import and calibrate, as a build does. 2. List the kernels, each once.
    builder = Builder(model, calibration, progress=progress, **arguments)
    tell, workloads = progress or (lambda phase, done, total: None), {}
    for precision in precisions:
        workloads |= model_workloads(builder.model(precision, options), plan, tell)
    # 3. Measure what the log lacks, and append it.
    manifest = this_machine(builder.isa, datetime.now(timezone.utc).date().isoformat())
    folder = manifest.folder(Path(logs))
    if not (folder / FILE).exists():
        manifest.write(folder)
    with IsolatedBench() as bench:
        Tuner(folder, bench, seed, watcher or Watcher(lambda *_: None, lambda _: None)).tune(workloads, trials)
    return folder
