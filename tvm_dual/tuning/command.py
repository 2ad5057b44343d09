"""The command ``tvm-dual tune``: its arguments, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvm_dual.errors import PlanError


def add_tune(commands) -> None:
    """Add the command to the parser's."""
    tune = commands.add_parser("tune", help="tune the kernels of a model; builds find the records")
    tune.add_argument("model", nargs="?", help="ONNX file; not with --shapes or --report")
    tune.add_argument("--calibration", help=".npz file, one array per stream; for several inputs STREAM/INPUT")
    tune.add_argument("--streaming", action="store_true", help="one step per call, recurrent states in and out")
    tune.add_argument("--precision", choices=("int8", "fp32"), help="of the big modules; both without it")
    tune.add_argument("--target", default="native", help="native, amx, avx512_vnni, avx512 or avx2")
    tune.add_argument("--threads", type=int, default=1)
    tune.add_argument("--trials", type=int, default=64, help="candidates of each kernel, those in the log included")
    tune.add_argument("--logs", default="tuning_logs", help="folder with one folder for each target")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--shapes", action="store_true", help="tune matrices of common shapes in place of a model's")
    tune.add_argument("--rpc", metavar="HOST:PORT", help="measure on the servers of this RPC tracker")
    tune.add_argument("--key", help="key that the servers were started with")
    tune.add_argument("--report", action="store_true", help="measure nothing; print and draw what the log says")
    tune.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from tvm_dual.tuning.report import report

    for folder in _folders(Path(options.logs)) if options.report else [_tuned(options)]:
        print(report(folder))


def _tuned(options: argparse.Namespace) -> Path:
    from tvm_dual.tuning.api import check_tuning, tune_kernels
    from tvm_dual.tuning.display import tuning_display

    measured = {"runner": options.rpc or "local", "key": options.key}
    isa = check_tuning(options.target, options.threads, options.trials, **measured)
    kernels = _kernels(options, isa)
    with tuning_display() as watcher:
        common = {"trials": options.trials, "logs": options.logs, "seed": options.seed}
        return tune_kernels(kernels, isa, watcher=watcher, **common, **measured)


def _kernels(options: argparse.Namespace, isa: str) -> dict:
    from tvm_dual.calibration_file import read_calibration
    from tvm_dual.console import progress_bars
    from tvm_dual.tuning.api import TUNED, model_kernels
    from tvm_dual.tuning.workloads import common_workloads

    if options.shapes and not options.model:
        return common_workloads(isa, options.threads)
    if options.shapes or not options.model or not options.calibration:
        raise PlanError("tune: accepted: a model with --calibration, or --shapes alone, or --report alone")
    calibration = read_calibration(options.calibration)
    with progress_bars() as progress:
        return model_kernels(
            options.model,
            calibration,
            precisions=(options.precision,) if options.precision else TUNED,
            threads=options.threads,
            streaming=options.streaming,
            progress=progress,
        )


def _folders(logs: Path) -> list[Path]:
    from tvm_dual.errors import DataError
    from tvm_dual.tuning.records import FILE

    found = sorted(path.parent for path in logs.glob(f"*/{FILE}"))
    if not found:
        raise DataError(f"logs '{logs}': no records in it; accepted: a folder that tvm-dual tune wrote to")
    return found
