"""The kernels of a model, each once, and how the model uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedules.families import Workload
from tvm_dual.byte_convs import all_bytes, planned_bytes
from tvm_dual.compiler import Compiler
from tvm_dual.forms import APPROXIMATE, BYTE_FORMS, Forms, exact_form, gate_of, gated_form, singles_form
from tvm_dual.measure import open_share
from tvm_dual.model import Model
from tvm_dual.plan import Plan
from tvm_dual.search import provisional_limit
from tvm_dual.site_entries import compiler_of
from tvm_dual.tuning.problem import Usage
from tvm_dual.variants import Fits

#: Families whose work depends on open rows, and on nonzero inputs.
_GATED = ("rows_int8", "rows_fp32", "row_pairs_int8", "conv2d_gated", "conv2d_gated_int8", "conv2d_single")
_SKIPPING = ("columns_int8", "columns_fp32", "conv2d_skip")
#: Shapes of `common_workloads`: rows and inputs of matrices.
COMMON_EXTENTS = (256, 512, 1024, 2048)
#: Density of gated and skipping kernels among them.
COMMON_DENSITY = 0.1


def model_workloads(
    model: Model, plan: Plan | None, progress: Callable[[str, int, int], None]
) -> dict[Workload, Usage]:
    """Return the kernels that planning compares, or those of `plan` alone, and their use on the calibration data.

    A kernel that several layers have in common has the mean of their densities.
    """
    if model.precision == "int8":
        model = replace(model, on_bytes=planned_bytes(plan) if plan else all_bytes(model))
    fits, low = Fits(model), compiler_of(model, "int8")
    choices = _plan_forms(model, plan) if plan else _all_forms(model)
    opened = _plan_shares(plan) if plan else _provisional_shares(model, fits, choices)
    found: dict[Workload, list[Usage]] = {}
    for i, forms in enumerate(choices):
        for name, form in forms.items():
            progress("kernels of the model", i, len(choices))
            for workload in _site_workloads(model, low, fits, name, form):
                share = opened.get((name, gate_of(form)), 1.0)
                found.setdefault(workload, []).append(_usage(model, name, workload, share))
    progress("kernels of the model", len(choices), len(choices))
    return {
        workload: replace(uses[0], density=float(np.mean([use.density for use in uses])))
        for workload, uses in found.items()
    }


def common_workloads(isa: str, threads: int) -> dict[Workload, Usage]:
    """Return matrices of common shapes in every form: all rows, gated, zeros skipped, and many vectors at once."""
    some, found = Usage(COMMON_DENSITY), {}
    for n in COMMON_EXTENTS:
        for k in COMMON_EXTENTS:
            for precision in ("int8", "fp32"):
                found[Workload(f"rows_{precision}", (n, k, 1), isa, threads)] = Usage()
                found[Workload(f"rows_{precision}", (n, k, 0), isa, threads)] = some
                found[Workload(f"columns_{precision}", (n, k), isa, threads)] = some
                found[Workload(f"matmul_{precision}", (n, k), isa, threads)] = Usage(vectors=32)
    return found


def _all_forms(model: Model) -> list[Forms]:
    """Return every form that planning compares for a site."""
    sites = model.sites
    dense = {name: exact_form(site, False) for name, site in sites.items()}
    skipping = {name: exact_form(site, True) for name, site in sites.items() if site.nonnegative}
    gated = {name: gated_form(site, dense[name]) for name, site in sites.items() if model.gates(name)}
    # A recurrent layer whose inputs are mostly zero skips them, and gates its state alone.
    half = {name: ("columns", "rows") for name in gated if sites[name].hidden and sites[name].nonnegative}
    # A convolution's little module has a projection that may skip zeros, too.
    half |= {name: ("rows", "columns") for name in gated if sites[name].conv and sites[name].nonnegative}
    single = {name: singles_form(form) for name, form in gated.items() if _tries_singles(model, name)}
    return [dense, skipping, half, gated, single]


def _tries_singles(model: Model, name: str) -> bool:
    """Whether a gate for each output is tried on a site: on convolutions of floats, unless options say otherwise."""
    return bool(model.sites[name].conv) and "singles" in model.options.gates and not model.is_low(name)


def _plan_shares(plan: Plan) -> dict[tuple[str, str], float]:
    """Return the open share of each gated site, by its name and what its gate decides on."""
    return {(site.name, gate_of((site.input, site.hidden))): site.density for site in plan.sites}


def _plan_forms(model: Model, plan: Plan) -> list[Forms]:
    return [{site.name: (site.input, site.hidden) for site in plan.sites if site.name in model.sites}]


def _provisional_shares(model: Model, fits: Fits, choices: list[Forms]) -> dict[tuple[str, str], float]:
    """Return the same at the bound that planning compares forms at."""
    exact, (*_, gated, single), found = choices[0], choices, {}
    for forms, unit in ((gated, "rows"), (single, "singles")):
        if forms:
            variant = fits.variant(exact | forms)
            variant.set_limit(provisional_limit(model, variant))
            found |= {(name, unit): share for name, share in open_share(variant.library, model.data.streams).items()}
    return found


def _site_workloads(model: Model, low: Compiler, fits: Fits, name: str, form: tuple[str, str]) -> list[Workload]:
    """Return the kernels of one site in one form; `low` compiles those on bytes, beside others on bytes."""
    littles, spreads = {}, {}
    if set(form) & APPROXIMATE:
        fit = fits.fit(name, form)
        littles, spreads = {name: fit.little}, {name: fit.spread}
    compiler = low.of_site(name) if name in model.on_bytes and form in BYTE_FORMS else model.compiler
    return compiler.workloads(model.site_forms({name: form}, "damage"), littles, spreads)


def _usage(model: Model, name: str, workload: Workload, opened: float) -> Usage:
    """Return how a site uses a kernel."""
    if workload.family in _SKIPPING:
        return Usage(max(1e-3, float((model.observations[name].inputs[0] != 0).mean())))
    if workload.family in _GATED and not workload.extents.get("every"):
        return Usage(max(1e-3, opened))
    if workload.family.startswith("matmul"):
        return Usage(vectors=model.data.vectors_per_call)
    return Usage()
