"""``tune``: from a model to records of its kernels. This file is the table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from schedules.cpu import ISAS
from schedules.families import Workload
from tvm_dual.builder import TUNED, Builder
from tvm_dual.errors import PlanError
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.targets import checked_target
from tvm_dual.tuning.benches import Benches
from tvm_dual.tuning.fleet import Tracker, fleet
from tvm_dual.tuning.lookup import LOGS
from tvm_dual.tuning.manifest import FILE, make_manifest
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.tuner import Tuner
from tvm_dual.tuning.watcher import Silent, Watcher
from tvm_dual.tuning.workloads import model_workloads

#: Candidates of each kernel.
TRIALS = 64
Progress = Callable[[str, int, int], None]


def tune(
    model,
    calibration: Iterable,
    *,
    plan: Plan | None = None,
    precisions: tuple[str, ...] = TUNED,
    target: str = "native",
    threads: int = 1,
    trials: int = TRIALS,
    logs: str | Path = LOGS,
    runner: str = "local",
    key: str | None = None,
    seed: int = 0,
    options: AdvancedOptions | None = None,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
    **arguments,
) -> Path:
    """Tune the kernels of a model; `build` finds the records by itself.

    Parameters
    ----------
    model, calibration
        As `build` takes them; kernels are measured at the densities that the data shows.
    plan : Plan, optional
        Tune what this plan uses alone, in place of all forms that planning compares.
    precisions : tuple of str
        Of the big modules.
    target : str
        As `build` takes it; with a tracker also a level that does not run here.
    threads : int
        Threads that a call uses.
    trials : int
        Candidates of each kernel, those included that the log holds already; 0 measures nothing.
    logs : path
        Folder with one folder for each target in it, made if it is not there.
    runner : str
        ``local``, or ``HOST:PORT`` of TVM's RPC tracker, whose servers measure.
    key : str, optional
        That the servers were started with.
    seed : int
        Of operands and of what is tried at random.
    options, progress
        As `build` takes them.
    watcher : Watcher, optional
        Told of each measured batch, and of each kernel that is decided.
    **arguments
        What else `build` takes: `streaming`, `example_inputs` and so on.

    Returns
    -------
    Path
        The folder of the target's records.

    Raises
    ------
    PlanError
        If `trials` is negative, the target does not run where candidates are measured, or all candidates of a
        kernel failed.
    DataError
        If the logs cannot be written.
    SetupError
        If the tracker does not answer, or has no server of this key.
    TvmDualError
        As `build` does.
    """
    isa = check_tuning(target, threads, trials, runner, key)
    kernels = model_kernels(
        model,
        calibration,
        plan=plan,
        precisions=precisions,
        threads=threads,
        options=options,
        progress=progress,
        **arguments,
    )
    return tune_kernels(kernels, isa, trials=trials, logs=logs, runner=runner, key=key, seed=seed, watcher=watcher)


def check_tuning(target: str, threads: int, trials: int, runner: str, key: str | None) -> str:
    """Check what `tune` is called with before anything takes long, and return the level whose records are written.

    Raises
    ------
    PlanError, SetupError
        As `tune` does.
    """
    if not isinstance(trials, int) or trials < 0:
        raise PlanError(f"trials: found {trials!r}; accepted: 0, which measures nothing, or more")
    if runner == "local" or target == "native":
        isa = checked_target(target, threads)
    elif target in ISAS:
        isa = target
    else:
        raise PlanError(f"target {target!r} is not known; accepted: native, {', '.join(ISAS)}")
    if runner != "local":
        Tracker.parse(runner, key).servers()
    return ISAS[isa].records


def model_kernels(
    model,
    calibration: Iterable,
    *,
    plan: Plan | None = None,
    precisions: tuple[str, ...] = TUNED,
    threads: int = 1,
    options: AdvancedOptions | None = None,
    progress: Progress | None = None,
    **arguments,
) -> dict[Workload, Usage]:
    """Import and calibrate as a build does, and list the kernels, each once; parameters as for `tune`."""
    builder = Builder(model, calibration, threads=threads, progress=progress, **arguments)
    tell, kernels = progress or (lambda phase, done, total: None), {}
    for precision in precisions:
        kernels |= model_workloads(builder.model(precision, options), plan, tell)
    return kernels


def tune_kernels(
    kernels: dict[Workload, Usage],
    isa: str,
    *,
    trials: int = TRIALS,
    logs: str | Path = LOGS,
    runner: str = "local",
    key: str | None = None,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Path:
    """Measure what the log lacks of `kernels`, for the level `isa`; other parameters and errors as for `tune`."""
    tracker = None if runner == "local" else Tracker.parse(runner, key)
    manifest = make_manifest(isa, tracker.session() if tracker else None)
    folder = manifest.folder(Path(logs))
    if not (folder / FILE).exists():
        manifest.write(folder)
    wanted = {replace(workload, isa=isa): usage for workload, usage in kernels.items()}
    with fleet(tracker) if tracker else Benches() as benches:
        Tuner(folder, benches, seed, watcher or Silent()).tune(wanted, trials)
    return folder
