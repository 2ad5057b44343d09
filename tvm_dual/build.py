"""``build``: from a trained model to a library. This file is the table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from relay_passes.pipeline import Watch, prepare_pipeline
from schedules.cpu import ISAS, available_cores, cpu_name, native_isa
from tvm_dual.calibration import check_calibration, observe
from tvm_dual.compiler import Compiler
from tvm_dual.errors import PlanError, SetupError
from tvm_dual.frontend.onnx import import_onnx
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions
from tvm_dual.planner import Model, make_plan
from tvm_dual.quality import make_quality
from tvm_dual.sites import Site, find_sites
from tvm_dual.versions import check_compiler, check_linker

PRECISIONS = ("fp32", "int8")
Progress = Callable[[str, int, int], None]


def build(
    model,
    calibration: Iterable,
    *,
    streaming: bool = False,
    precision: str = "int8",
    evaluate: Callable[[DualLibrary], float] | None = None,
    max_drop: float | None = None,
    target: str = "native",
    threads: int = 1,
    options: AdvancedOptions | None = None,
    progress: Progress | None = None,
    dump: str | Path | None = None,
) -> DualLibrary:
    """Compile a model so that it computes only what matters for each input.

    Parameters
    ----------
    model : path or onnx.ModelProto
        A trained model.
    calibration : iterable of ndarray, float32
        Inputs like those to come. One array per stream, ``(calls, *input shape)``; axes of length one
        may be left out.
    streaming : bool
        Compile one step: batch and time become 1, recurrent states inputs and outputs.
    precision : str
        Of the big modules: ``int8`` or ``fp32``. Little modules are always bytes or less.
    evaluate : callable, optional
        From a library to its quality, a number, higher is better. Without it quality is the agreement
        of the outputs with the dense model's on the calibration data (1 is equality).
    max_drop : float, optional
        How much lower than the dense fp32 model's the quality may be. Needed with `evaluate`; 0.05
        without.
    target : str
        ``native`` or a level: ``avx512_vnni``, ``avx512``, ``avx2``.
    threads : int
        Threads that a call uses.
    options : AdvancedOptions, optional
    progress : callable, optional
        Called with ``(phase, done, total)``.
    dump : path, optional
        Folder that receives the module after each phase of the final compilation.

    Returns
    -------
    DualLibrary

    Raises
    ------
    ModelError, DataError, EvaluationError, PlanError, SetupError
        All of them `TvmDualError`; nothing is left behind.
    """
    options, progress = options or AdvancedOptions(), progress or (lambda phase, done, total: None)
    check_compiler()
    check_linker()
    isa = _checked_target(precision, target, threads)

    # 1. Import: recurrent layers stay whole, every layer that could be rewritten gets a name.
    module = prepare_pipeline()(import_onnx(model, streaming=streaming))
    sites = {site.name: site for site in find_sites(module)}
    compiler = Compiler(module, list(sites.values()), isa, threads, Watch(dump=Path(dump)) if dump else None)

    # 2. Calibrate: run the exact model on the data, note what each layer reads.
    exact = {name: compiler.form("fp32", *_exact(site)) for name, site in sites.items() if site.rows_per_call == 1}
    dense = compiler.compile(exact, observe=True)
    data = check_calibration(calibration, dense.metadata.inputs[0].shape, dense.metadata.inputs[0].name)
    seen = observe(dense, data, list(sites.values()), lambda done, total: progress("calibration", done, total))

    # 3. Judge: what the dense model's quality is, and what may be lost.
    quality = make_quality(dense, data.streams, evaluate, max_drop)

    # 4. Plan: fit little modules, choose forms by time and thresholds by quality. 5. Compile it.
    _, library = make_plan(Model(sites, seen, data, compiler, precision, options), quality, dense, progress)
    return library


def _exact(site: Site) -> tuple[str, str]:
    """Zero skipping where it applies: the dense model's values, sooner."""
    return ("columns" if site.nonnegative else "dense", "dense" if site.kind == "gru" else "")


def _checked_target(precision: str, target: str, threads: int) -> str:
    if precision not in PRECISIONS:
        raise PlanError(f"precision {precision!r} is not known; accepted: {', '.join(PRECISIONS)}")
    if not isinstance(threads, int) or not 1 <= threads <= available_cores():
        raise PlanError(f"threads: found {threads!r}; accepted: 1 to {available_cores()}, the cores of this process")
    native = native_isa()
    if native is None:
        raise SetupError(f"this CPU ({cpu_name()}) has no AVX2; building needs to measure, so build on one that has it")
    names = list(ISAS)
    if target == "native":
        return native.name
    if target not in names:
        raise PlanError(f"target {target!r} is not known; accepted: native, {', '.join(names)}")
    if names.index(target) < names.index(native.name):
        raise PlanError(
            f"target {target!r} does not run on this CPU ({cpu_name()}), and building measures on it; "
            f"accepted here: native, {', '.join(names[names.index(native.name):])}"
        )
    return target
