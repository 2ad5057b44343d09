"""``build``: from a trained model to a library. This file is the table of contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from relay_passes.pipeline import Watch, prepare_pipeline
from tvm_dual.calibration import check_calibration
from tvm_dual.compiler import Compiler
from tvm_dual.container import made_folder
from tvm_dual.errors import PlanError
from tvm_dual.finetuning import check_torch, check_trainable
from tvm_dual.forms import exact_form
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.library import DualLibrary
from tvm_dual.metadata import Tensor
from tvm_dual.model import Model
from tvm_dual.observations import observe
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.planner import apply_plan, make_plan
from tvm_dual.quality import make_quality
from tvm_dual.sites import Site, find_sites, same_layers
from tvm_dual.targets import checked_target
from tvm_dual.tuning.lookup import read_logs
from tvm_dual.versions import check_compiler, check_linker

#: What builds accept, and those of them whose kernels have knobs: those of bf16 are the same as of fp32.
PRECISIONS, TUNED = ("fp32", "int8", "bf16"), ("fp32", "int8")
Progress = Callable[[str, int, int], None]


def build(
    model,
    calibration: Iterable,
    *,
    example_inputs: Sequence | None = None,
    dynamic_shapes=None,
    streaming: bool = False,
    precision: str = "int8",
    evaluate: Callable[[DualLibrary], float] | None = None,
    max_drop: float | None = None,
    target: str = "native",
    threads: int = 1,
    options: AdvancedOptions | None = None,
    progress: Progress | None = None,
    dump: str | Path | None = None,
    logs: str | Path | None = None,
) -> DualLibrary:
    """Compile a model so that it computes only what matters for each input.

    Parameters
    ----------
    model : path, onnx.ModelProto, torch.nn.Module or torch.export.ExportedProgram
        A trained model.
    calibration : iterable
        Inputs like those to come. An item is one stream: an array ``(calls, *input shape)``, in which axes of length
        one may be left out if no extent is open. For a model with several inputs it is a dict of such arrays by
        input, or a tuple of them in the order of the inputs. Extents that an ONNX model of images or signals leaves
        open are those of the data, if all calls agree on them.
    example_inputs : sequence of torch.Tensor, optional
        What a ``torch.nn.Module`` can be called with; needed for one, and for nothing else.
    dynamic_shapes : optional
        Open extents of a ``torch.nn.Module``'s inputs, as ``torch.export.export`` takes them.
    streaming : bool
        Carry recurrent states from call to call: they become inputs and outputs. Open extents, such as batch and
        time, become 1, so that a call is one step; with a fixed time it is that many.
    precision : str
        Of the big modules: ``int8``, ``bf16`` or ``fp32``. Little modules have one of their own, in the options. With
        ``bf16`` convolutions are computed in it where the CPU has AMX, all other layers in fp32. With ``int8``
        convolutions that lose too much quality are computed in bf16 where the CPU has AMX, else in fp32.
    evaluate : callable, optional
        From a library to its quality, a number, higher is better. Without it quality is the agreement
        of the outputs with the dense model's on the calibration data (1 is equality).
    max_drop : float, optional
        How much lower than the dense fp32 model's the quality may be. Needed with `evaluate`; 0.05
        without. ``AdvancedOptions(closed_share=...)`` stands in its place.
    target : str
        ``native`` or a level: ``amx``, ``avx512_vnni``, ``avx512``, ``avx2``.
    threads : int
        Threads that a call uses.
    options : AdvancedOptions, optional
    progress : callable, optional
        Called with ``(phase, done, total)``.
    dump : path, optional
        Folder that receives the module after each phase of the final compilation.
    logs : path, optional
        Folder of tuning records (`tune`); those in ``tuning_logs``, and those that come with the project, without it.

    Returns
    -------
    DualLibrary

    Raises
    ------
    ModelError, DataError, EvaluationError, PlanError, SetupError
        All of them `TvmDualError`; nothing is left behind.
    """
    if options is not None and options.finetune_steps:
        check_torch()
    builder = Builder(
        model,
        calibration,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        streaming=streaming,
        target=target,
        threads=threads,
        progress=progress,
        dump=dump,
        logs=logs,
    )
    return builder.build(precision, evaluate=evaluate, max_drop=max_drop, options=options)


def finetune(
    model, calibration: Iterable, *, steps: int = 400, options: AdvancedOptions | None = None, **arguments
) -> DualLibrary:
    """Build as `build` does, with little modules trained under the gate where that judges better.

    What is trained, on the calibration data, are the little modules of gated LSTM and GRU layers, one by one, and of
    convolutions, together; the model itself stays as it is. Trained modules are used if they judge better than the
    closed form that they started from, or go further within the budget; the report compares the two. Training takes all
    cores, or as many threads as ``OMP_NUM_THREADS`` says: fewer are faster where other work has some of the cores.

    Parameters
    ----------
    model, calibration, options
        As `build` takes them; the calibration streams should be long, a few thousand calls in all or more.
    steps : int
        Steps of gradient descent for each recurrent layer, and for each set of convolutions.
    **arguments
        What else `build` takes.

    Returns
    -------
    DualLibrary

    Raises
    ------
    SetupError
        If torch is not installed.
    PlanError
        If `steps` is less than one, no layer of the model can be trained, or the options leave nothing gated.
    DataError
        If the streams are too short to train on.
    TvmDualError
        As `build` does.
    """
    options = options or AdvancedOptions()
    if not isinstance(steps, int) or steps < 1:
        raise PlanError(f"fine-tuning: steps={steps!r}; accepted: 1 or more")
    if options.mode != "dual":
        raise PlanError(f"fine-tuning: mode {options.mode!r} gates nothing; accepted: mode 'dual'")
    return build(model, calibration, options=replace(options, finetune_steps=steps), **arguments)


class Builder:
    """A model, imported and calibrated, from which several libraries can be built."""

    def __init__(
        self,
        model,
        calibration: Iterable,
        *,
        example_inputs: Sequence | None = None,
        dynamic_shapes=None,
        streaming: bool = False,
        target: str = "native",
        threads: int = 1,
        progress: Progress | None = None,
        dump: str | Path | None = None,
        logs: str | Path | None = None,
        like: Builder | None = None,
    ) -> None:
        """Import and calibrate; parameters and errors as for `build`.

        `like` is a builder of the same layers for calls of another shape, with whom to share little modules: what one
        has fitted or trained, the other does not fit again.
        """
        check_compiler()
        check_linker()
        self._progress = progress or (lambda phase, done, total: None)
        isa = checked_target(target, threads)

        # 1. Import: recurrent layers stay whole, every layer that could be rewritten gets a name.
        calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
        imported = import_model(
            model, example_inputs, dynamic_shapes=dynamic_shapes, streaming=streaming, calibration=calibration
        )
        module = prepare_pipeline()(imported)
        self._sites = {site.name: site for site in find_sites(module)}
        self._compiler = Compiler(
            module,
            list(self._sites.values()),
            isa,
            threads,
            Watch(dump=made_folder(dump)) if dump else None,
            read_logs(logs, isa),
        )

        # 2. Calibrate: run the exact model on the data, note what each layer reads.
        forms = {
            name: self._compiler.form("fp32", *exact_form(site, site.nonnegative))
            for name, site in self._sites.items()
            if site.can_rewrite
        }
        self._dense = self._compiler.compile(forms, observe=True)
        self._data = check_calibration(calibration, self._dense.metadata.inputs)
        sites = {name: self._sites[name] for name in forms}
        self._observations = observe(
            self._dense, self._data, sites, lambda done, total: self._progress("calibration", done, total)
        )
        self._known = {} if like is None else like._known
        if like is not None and not same_layers(self._sites, like._sites):
            raise PlanError(f"like: a builder of {_listed(like._sites)}; accepted: one of {_listed(self._sites)}")

    @property
    def isa(self) -> str:
        """Name of the instruction set level."""
        return self._compiler.isa

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a call of the model takes."""
        return self._dense.metadata.inputs

    def build(
        self,
        precision: str = "int8",
        *,
        evaluate: Callable[[DualLibrary], float] | None = None,
        max_drop: float | None = None,
        options: AdvancedOptions | None = None,
        plan: Plan | None = None,
    ) -> DualLibrary:
        """Plan and compile; parameters and errors as for `build`.

        With `plan`, an earlier one's forms and bounds are used and nothing is searched.
        """
        model = self.model(precision, options)
        model.options.check_use({site.kind for site in model.sites.values()}, max_drop)
        if model.options.closed_share is not None:
            max_drop = math.inf
        if model.options.finetune_steps and model.options.mode == "dual":
            kept = model.options.keep_dense
            sites = {name: site for name, site in model.sites.items() if name not in kept}
            check_trainable(sites, model.observations)
        # 3. Judge: what the dense model's quality is, and what may be lost.
        quality = make_quality(self._dense, self._data, evaluate, max_drop)

        # 4. Plan: fit little modules, choose forms by time and thresholds by quality. 5. Compile that.
        if plan is not None:
            return apply_plan(model, quality, plan, self._progress)
        return make_plan(model, quality, self._progress)

    def with_threads(self, threads: int) -> Builder:
        """Return a builder of the same model, as imported and calibrated here, for another number of threads."""
        checked_target(self._compiler.isa, threads)
        other = copy(self)
        other._compiler = self._compiler.with_threads(threads)
        return other

    def model(self, precision: str = "int8", options: AdvancedOptions | None = None) -> Model:
        """Return what planning works on; for those who choose forms and bounds themselves.

        Raises
        ------
        PlanError
            If the precision is not known, or the options name a site that the model lacks.
        """
        if precision not in PRECISIONS:
            raise PlanError(f"precision {precision!r} is not known; accepted: {', '.join(PRECISIONS)}")
        options = options or AdvancedOptions()
        for name in (*options.site_dimensions, *options.keep_dense):
            if name not in self._sites:
                raise PlanError(f"options: no site {name!r} in the model; accepted: {', '.join(self._sites)}")
        return Model(
            {name: self._sites[name] for name in self._observations},
            self._observations,
            self._data,
            self._compiler,
            precision,
            options,
            tuple(site for name, site in self._sites.items() if name not in self._observations),
            self._known,
        )


def _listed(sites: dict[str, Site]) -> str:
    return ", ".join(f"{name} {site.weight.shape}" for name, site in sites.items()) or "no layers"
