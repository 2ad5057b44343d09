"""What a plan says of each site: its form, what that reads and computes, and why it has it."""

from __future__ import annotations

from dataclasses import replace

from relay_passes.site_plan import COARSE, COPIES, GATED
from schedules.cpu import ISAS
from tvm_dual.byte_convs import bytes_reason
from tvm_dual.closed_fit import zero_channels
from tvm_dual.cost import all_operations, bytes_read, operations, weight_bytes
from tvm_dual.forms import APPROXIMATE
from tvm_dual.gates import gate_factors
from tvm_dual.little import FittedLittle
from tvm_dual.model import Model
from tvm_dual.plan import SitePlan, Trial
from tvm_dual.sites import Site
from tvm_dual.variants import Variant

#: What little modules of convolutions are called that suffice alone, by the second form.
_SUFFICES = dict.fromkeys(("dense", "columns"), "the little module")
_SUFFICES |= {kind: f"the layer's copy at {bits} bits" for kind, bits in COPIES.items()}
_SUFFICES |= {COARSE: "the little module of blocks of pixels"}


def left_plan(site: Site) -> SitePlan:
    """Return the plan of a site that no kernel of ours applies to."""
    size = weight_bytes(site, "fp32")
    why = "sees more than one vector per call (streaming=True makes it one); left to TVM"
    forms = ("tvm", "tvm" if site.hidden else "")
    count = float(all_operations(site))
    return SitePlan(
        site.name,
        site.kind,
        *forms,
        "fp32",
        weight_bytes=size,
        bytes_read=size,
        reason=why,
        operations=count,
        all_operations=count,
    )


def site_plan(model: Model, site: Site, variant: Variant, found: Trial | None, density: float) -> SitePlan:
    """Return the plan of a site in a variant whose bounds are those of `found`; `density` is its share of open rows."""
    forms, fit = variant.forms[site.name], variant.fits.get(site.name)
    precision = model.site_precision(site.name, forms)
    read = bytes_read(
        site,
        forms,
        precision,
        density,
        model.observations[site.name],
        fit.little if fit else None,
        ISAS[model.compiler.isa],
    )
    plan = SitePlan(
        site.name,
        site.kind,
        *forms,
        precision,
        weight_bytes=weight_bytes(site, precision),
        bytes_read=read,
        reason=_reason(model, site, forms, fit.little if fit else None),
        operations=operations(site, forms, density, model.observations[site.name], fit.little if fit else None),
        all_operations=float(all_operations(site)),
    )
    if site.name in model.orders:
        plan = replace(plan, order=model.orders[site.name].places)
    if site.conv and precision == "int8":
        levels = model.on_bytes[site.name]
        plan = replace(plan, scale=levels.scale, zero=levels.zero)
    if fit is not None:
        copied = fit.kind == "copy"
        plan = replace(
            plan,
            little=fit.kind,
            projection="reduced_rank" if fit.kind == "coarse" else model.options.projection * (not copied),
            dimensions=0 if copied else fit.little.module.weight.shape[1],
            little_bits=fit.little.module.bits,
            tuned=fit.tuned,
            refit=fit.refit is not None,
            zeros=zero_channels(fit),
            density=0.0,
        )
        if copied:
            plan = replace(plan, scale=fit.source.scale, zero=fit.source.zero)
    if GATED & set(forms):
        plan = replace(plan, rule=variant.rule, limit=found.limits.get(site.name, found.limit), density=density)
        if site.hidden:
            factors = gate_factors(site.kind, model.options.gate_factors)
            plan = replace(plan, gate_factors=tuple(map(float, factors)))
    return plan


def _reason(model: Model, site: Site, forms: tuple[str, str], little: FittedLittle | None) -> str:
    zeros = float((model.observations[site.name].inputs[0] == 0).mean())
    precision = model.site_precision(site.name, forms)
    if site.conv and little is not None and (precision == "int8" or (precision == "bf16" and "rows" in forms)):
        kind = "gated, little module" if "rows" in forms else "little module"
        numbers = "bytes" if precision == "int8" else "bf16"
        return f"{kind} on {numbers}, {len(little.module.center)} of {min(site.weight.shape)} directions"
    low = model.precision != "fp32" and (forms[0] == "dense" or not model.is_low(site.name))
    if site.conv and low and not set(forms) & APPROXIMATE:
        why = bytes_reason(model, site, zeros)
        tried = model.options.mode == "dual" and model.is_low(site.name) and model.gates(site.name)
        return f"{why}; exact was fastest, or no gate met the budget" if tried else why
    parts, counts = [], model.options.minimize == "operations"
    if {"columns", "nonzeros"} & set(forms):
        parts.append(f"{zeros:.0%} of the inputs are zero")
    if "rows" in forms:
        parts.append("gated rows " + ("multiply least" if counts else "were fastest in the whole model"))
    if "singles" in forms:
        parts.append(f"open outputs, one by one, {'multiply least' if counts else 'were fastest'} for what they lose")
    if "little" in forms:
        parts.append(f"{_SUFFICES[forms[1]]} suffices" if site.conv else "the little module suffices")
    if "rows" in forms and site.name in model.orders:
        parts.append(model.orders[site.name].reason)
    if not parts:
        chosen = "no gate met the budget" if counts else "exact was fastest, or no gate met the budget"
        why = "kept by option" if site.name in model.options.keep_dense else chosen
        parts.append(why if site.can_gate else "this form of layer has no gated kernel")
        if site.nonnegative and model.options.mode == "dual":
            parts.append(f"{zeros:.0%} of the inputs are zero, and skipping them was slower")
    return "; ".join(parts)
