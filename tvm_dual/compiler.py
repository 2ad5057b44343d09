"""From a marked module and the forms of its sites to a library file."""

from __future__ import annotations

import math
import tempfile
import weakref
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.expose_inputs import ExposeInputs
from relay_passes.pass_bytes import PassBytes
from relay_passes.permute_channels import PermuteChannels
from relay_passes.pipeline import Watch, dual_pipeline, rewrite_pipeline
from relay_passes.single_site import SingleSite
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.compiled_apart import compiled_apart
from schedules.compiling import compiled, compiled_once
from schedules.conv2d_gated import default_gated_tile, gate_size
from schedules.cpu import ISAS
from schedules.families import Workload
from schedules.history import Recorder, apply_history
from tvm_dual.container import write_container
from tvm_dual.gates import every_gate_open
from tvm_dual.library import DualLibrary, load
from tvm_dual.little import FittedLittle
from tvm_dual.metadata import Metadata, Tensor, current_versions
from tvm_dual.plan import Plan
from tvm_dual.sites import Site, find_sites
from tvm_dual.tile_gates import tile_limits
from tvm_dual.tuning.lookup import Choices, Logs
from tvm_dual.versions import check_compiler, check_linker


class Compiler:
    """Compiles variants of one model."""

    def __init__(
        self,
        module: IRModule,
        sites: list[Site],
        isa: str,
        threads: int,
        watch: Watch | None = None,
        logs: Logs | None = None,
    ) -> None:
        """Compile variants of `module`, whose sites are marked, for one level and number of threads.

        Kernels that `logs` know get their knobs from there, all others the defaults.
        """
        check_compiler()
        check_linker()
        self._logs = logs or Logs()
        self._module, self._sites = module, {site.name: site for site in sites}
        self._isa, self._threads, self._watch = ISAS[isa], threads, watch

    @property
    def isa(self) -> str:
        """Name of the instruction set level."""
        return self._isa.name

    @property
    def threads(self) -> int:
        """Number of threads that kernels divide their work between."""
        return self._threads

    def with_threads(self, threads: int) -> Compiler:
        """Return a compiler of the same model for another number of threads."""
        other = copy(self)
        other._threads = threads
        return other

    @property
    def module(self) -> IRModule:
        """The model, its sites marked."""
        return self._module

    def with_orders(self, orders: dict[str, np.ndarray]) -> Compiler:
        """Return a compiler of the same model with channels in other orders (`relay_passes.permute_channels`)."""
        other = copy(self)
        other._module = PermuteChannels(orders)(self._module)
        other._sites = {site.name: site for site in find_sites(other._module)}
        return other

    def with_bytes(self, forms: dict[str, SiteForm]) -> Compiler:
        """Return a compiler of the same model for `of_site`: layers read and write bytes where they do in `forms`."""
        other = copy(self)
        other._module = PassBytes()(_attach(forms, None, None, None)(self._module))
        return other

    def of_site(self, name: str) -> Compiler:
        """Return a compiler of one layer without states alone, whose inputs are what the layer reads."""
        other = copy(self)
        other._module, other._watch = SingleSite(name)(self._module), None
        return other

    def form(self, precision: str, input_form: str, hidden: str = "", rule: str = "") -> SiteForm:
        """Return a site's form for this compiler's level and threads."""
        return SiteForm(precision, input_form, hidden, rule, self._threads, self._isa.name)

    def compile(
        self,
        forms: dict[str, SiteForm],
        littles: dict[str, FittedLittle] | None = None,
        spreads: dict[str, np.ndarray] | None = None,
        means: dict[str, tuple[np.ndarray, ...]] | None = None,
        thresholds: dict[str, np.ndarray] | None = None,
        *,
        observe: bool = False,
        apart: bool = False,
        plan: Plan | None = None,
    ) -> DualLibrary:
        """Compile one variant.

        Parameters
        ----------
        forms : dict of SiteForm
            By site; a site without one is left to TVM.
        littles : dict of FittedLittle
            By site, for those that need one.
        spreads : dict of ndarray, float32
            By site: what a recurrent layer's gate multiplies a row's slope by.
        means : dict of tuple of ndarray, float32
            By site: mean of each vector it reads.
        thresholds : dict of ndarray, float32
            By site, ``(efforts, ...)``, for gated sites.
        observe : bool
            Whether the library also gives what each site reads.
        apart : bool
            Whether kernels stay apart, and are compiled once for all such libraries: they are sooner there, and slower.
        plan : Plan, optional
            With it the library is linked to a file, which the plan travels in; without it the code
            stays in memory, which is sooner done.
        """
        attach = _attach(forms, littles, spreads, means)
        module = ExposeInputs()(self._module) if observe else self._module
        choices = Choices(self._logs)
        with apply_history(choices):
            module = dual_pipeline(attach, self._isa, self._threads, self._watch, whole=not apart)(module)
        if plan is not None:
            plan = replace(plan, kernels=tuple(choices.made.values()))
        main = module["main"]
        weights = [weight.numpy() for weight in main.attrs.get("dual.weights", [])]
        for name in ("dual.weights", "dual.parameters", "dual.results"):
            module["main"] = module["main"].without_attr(name)
        # Elsewhere weights are constants of the module, which would be kept with it.
        compile_ = compiled_once if "dual.offsets" in main.attrs else compiled_apart if apart else compiled
        executable = compile_(module, self._isa, self._threads)
        metadata = self._metadata(main, weights, plan, forms)
        arrays = {f"thresholds/{name}": self._open(name) for name in metadata.thresholds}
        arrays |= {f"thresholds/{name}": t for name, t in (thresholds or {}).items() if name in metadata.thresholds}
        arrays |= {f"weights/{i}": weight for i, weight in enumerate(weights)}
        starts = main.attrs.get("initial_states", [])
        arrays |= {f"initial/{t.name}": a.numpy() for t, a in zip(metadata.states, starts, strict=True)}
        if plan is None:
            return DualLibrary(metadata, arrays, executable)
        return self._linked(executable, metadata, arrays)

    def workloads(
        self,
        forms: dict[str, SiteForm],
        littles: dict[str, FittedLittle] | None = None,
        spreads: dict[str, np.ndarray] | None = None,
    ) -> list[Workload]:
        """Return the kernels with knobs that `compile` would generate for these sites, each once."""
        recorder = Recorder()
        with apply_history(recorder):
            rewrite_pipeline(_attach(forms, littles, spreads, None))(self._module)
        return list(recorder.workloads)

    def _linked(self, executable, metadata: Metadata, arrays: dict[str, np.ndarray]) -> DualLibrary:
        # A folder of its own: TVM deletes the parent folder of artifacts it manages.
        folder = tempfile.TemporaryDirectory(prefix="tvm_dual-")
        code, path = Path(folder.name) / "code.so", Path(folder.name) / "library.so"
        executable.export_library(str(code))
        write_container(path, code.read_bytes(), arrays, metadata.to_dict())
        code.unlink()
        library = load(path)
        weakref.finalize(library, folder.cleanup)
        return library

    def _open(self, name: str) -> np.ndarray:
        """Thresholds that open every row."""
        site = self._sites[name]
        if site.hidden:
            return every_gate_open(site.kind)[None]
        n = site.weight.shape[0]
        if site.conv:
            return tile_limits(None, "damage", 0.0, np.inf, np.ones(n), np.ones(n)).astype("float32")[None]
        return np.stack([np.full(n, -1e30), np.full(n, 1e30)]).astype("float32")[None]

    def _metadata(
        self, main: relax.Function, weights: list[np.ndarray], plan: Plan | None, forms: dict[str, SiteForm]
    ) -> Metadata:
        attributes = main.attrs
        names, outputs = list(map(str, attributes["input_names"])), list(map(str, attributes["output_names"]))
        inputs, states = int(attributes["num_input"]), int(attributes["num_states"])
        types = attributes.get("dual.parameters", [parameter.ty for parameter in main.params])
        described = [_tensor(name, type_) for name, type_ in zip(names, types, strict=False)]
        limits = {str(name): int(limit) for name, limit in attributes.get("index_limits", {}).items()}
        results = main.ret_ty.fields if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
        results = attributes.get("dual.results", results)
        counts = [str(name) for name in attributes.get("dual.counts", [])]
        return Metadata(
            inputs=tuple(replace(tensor, below=limits.get(tensor.name)) for tensor in described[:inputs]),
            states=tuple(described[inputs : inputs + states]),
            outputs=tuple(_tensor(n, t) for n, t in zip(outputs[: len(outputs) - states], results, strict=False)),
            thresholds=tuple(str(name) for name in attributes.get("dual.thresholds", [])),
            counts=tuple(counts),
            gated_rows=tuple(self._rows(name, counts[:i].count(name), forms[name]) for i, name in enumerate(counts)),
            observed=tuple(str(name) for name in attributes.get("dual.observed", [])),
            extras=tuple(_tensor(str(i), t) for i, t in enumerate(results[len(outputs) :])),
            offsets=tuple(int(offset) for offset in attributes.get("dual.offsets", [])),
            afar=tuple(int(position) for position in attributes.get("dual.afar", [])),
            weights=tuple(Tensor(str(i), w.shape, str(w.dtype)) for i, w in enumerate(weights)),
            isa=self._isa.name,
            threads=self._threads,
            versions=current_versions(),
            plan=plan,
        )

    def _rows(self, name: str, position: int, form: SiteForm) -> int:
        """Rows, tiles or outputs that one of a site's gates decides on: a GRU has two, z's and the rest."""
        site = self._sites[name]
        if site.kind == "gru":
            return site.hidden * (1, 2)[position]
        if form.input == "singles":
            return site.conv.output_size
        if site.conv:
            return math.prod(gate_size(self._isa, site.conv, default_gated_tile(self._isa, site.conv)))
        return site.weight.shape[0]


def _attach(forms, littles, spreads, means) -> AttachPlan:
    modules = {name: fitted.module for name, fitted in (littles or {}).items()}
    return AttachPlan(forms, modules, spreads or {}, means or {})


def _tensor(name: str, type_: relax.TensorType) -> Tensor:
    shape = tuple(int(extent) if isinstance(extent, tvm.tirx.IntImm) else -1 for extent in type_.shape)
    symbols = tuple(str(extent.name) if isinstance(extent, tvm.tirx.Var) else "" for extent in type_.shape)
    return Tensor(name, shape, str(type_.dtype.dtype), symbols if any(symbols) else ())
