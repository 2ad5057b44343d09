"""The command ``tvm-dual``: argument parsing alone; the work is in the functions it calls."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tvm_dual.errors import PlanError, TvmDualError
from tvm_dual.tuning.command import add_tune
from tvm_dual.versions import VERSION

#: Suites of `benchmarks`, each a module with ``run``.
SUITES = ("nsnet2", "dnsmos", "crepe", "ffdnet", "fashion-vgg", "fashion-resnet", "layers", "word-lm", "word-lm-sweep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status, 2 for a mistake that a message explains."""
    options, interrupts = _parser().parse_args(arguments), []

    def interrupt(number, _frame):
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        options.run(options)
    except (Exception, KeyboardInterrupt) as error:
        # Within a pass TVM makes another error of an interrupt, which a message would then be about.
        if interrupts or isinstance(error, KeyboardInterrupt):
            print("tvm-dual: interrupted; nothing half-written is left", file=sys.stderr)
            return 130
        if isinstance(error, TvmDualError):
            print(f"tvm-dual: {error}", file=sys.stderr)
            return 2
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tvm-dual", description="Neural networks computing only what matters.")
    parser.add_argument("--version", action="version", version=f"tvm_dual {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="command")

    build = commands.add_parser("build", help="compile an ONNX model to a shared library")
    build.add_argument("model", help="ONNX file")
    build.add_argument(
        "--calibration", required=True, help=".npz file, one array per stream; for several inputs STREAM/INPUT"
    )
    build.add_argument("--out", required=True, help="library to write")
    build.add_argument("--streaming", action="store_true", help="one step per call, recurrent states in and out")
    build.add_argument("--precision", default="int8", choices=("int8", "bf16", "fp32"))
    build.add_argument("--target", default="native", help="native, amx, avx512_vnni, avx512 or avx2")
    build.add_argument("--threads", type=int, default=1)
    build.add_argument("--max-drop", type=float, help="allowed loss of agreement with the dense model (0.05)")
    build.add_argument(
        "--finetune", type=int, metavar="STEPS", help="train little modules of recurrent layers, e.g. 400 steps each"
    )
    build.add_argument("--dump", help="folder for the module after each phase")
    build.add_argument("--logs", help="folder of tuning records, in place of tuning_logs and those that come along")
    build.set_defaults(run=_build)

    add_tune(commands)

    demo = commands.add_parser("demo", help="build a speech denoiser, measure it, export and reload it")
    demo.add_argument("--short", action="store_true", help="less of everything")
    demo.add_argument("--threads", type=int, default=1)
    demo.add_argument("--out", default="demo_output", help="folder for what it writes")
    demo.set_defaults(run=lambda o: importlib.import_module("benchmarks.demo").run(o.threads, o.short, Path(o.out)))

    bench = commands.add_parser("bench", help="run a benchmark suite: us beside the strongest peers")
    bench.add_argument("suite", help=", ".join(SUITES) + ", or an ONNX file")
    bench.add_argument("--json", required=True, help="file to write")
    bench.add_argument("--threads", type=int, default=1)
    bench.add_argument("--short", action="store_true", help="less of everything")
    bench.add_argument("--no-amx", action="store_true", help="images: without AMX, but for ONNX Runtime")
    bench.add_argument("--calibration", help="of an ONNX file: .npz file of inputs, as build takes it")
    bench.add_argument("--checkpoint", help="what examples/word_lm/train.py or examples/fashion/train.py wrote")
    bench.add_argument("--corpus", help="word-lm: the Brown corpus, .tgz or folder, if make corpus did not fetch it")
    bench.set_defaults(run=_bench)

    inspect = commands.add_parser("inspect", help="show what is inside a library")
    inspect.add_argument("library", help="file from export_library")
    inspect.add_argument("--json", action="store_true", help="print the metadata as JSON")
    inspect.set_defaults(run=_inspect)
    return parser


def _build(options: argparse.Namespace) -> None:
    from tvm_dual.builder import build, finetune
    from tvm_dual.calibration_file import read_calibration
    from tvm_dual.console import progress_bars
    from tvm_dual.container import refuse_unwritable

    calibration = read_calibration(options.calibration)
    refuse_unwritable(Path(options.out), "--out")
    make = build if options.finetune is None else partial(finetune, steps=options.finetune)
    with progress_bars() as progress:
        library = make(
            options.model,
            calibration,
            streaming=options.streaming,
            precision=options.precision,
            target=options.target,
            threads=options.threads,
            max_drop=options.max_drop,
            progress=progress,
            dump=options.dump,
            logs=options.logs,
        )
    print(library.report)
    print(f"wrote {library.export_library(options.out)}")


def _bench(options: argparse.Namespace) -> None:
    files = {name: getattr(options, name) for name in ("calibration", "checkpoint", "corpus")}
    given, suite = {name: Path(value) for name, value in files.items() if value is not None}, options.suite
    if suite.endswith(".onnx"):
        suite, given["model"] = "any-model", Path(suite)
    elif suite not in SUITES:
        raise PlanError(f"suite '{suite}' is not known; accepted: {', '.join(SUITES)}, or an ONNX file")
    from benchmarks.bench import bench

    bench(suite, Path(options.json), options.threads, options.short, given, amx=not options.no_amx)


def _inspect(options: argparse.Namespace) -> None:
    import json

    from tvm_dual.container import read_container
    from tvm_dual.metadata import describe

    raw, _ = read_container(options.library)
    print(json.dumps(raw, indent=1) if options.json else describe(raw, Path(options.library)))


if __name__ == "__main__":
    sys.exit(main())
