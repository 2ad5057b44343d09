"""Convolutions on bytes: with which scales, and which of them, under the quality budget.

Scale and zero point of what a convolution reads are fixed when the library is built: those that leave the least mean
square error on what it was seen to read, or those that hold all of it, whichever the whole model judges better by. All
convolutions are tried on bytes at once; if that loses too much, those go back to floats whose going back gains most,
until the rest meets the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS
from tvm_dual.plan import Plan
from tvm_dual.quality import Quality
from tvm_dual.sites import Site
from tvm_dual.variants import Fits, Model, exact_form

#: Levels of a byte above zero.
LEVELS = 255
#: Values that scales are fitted to, and shares of their range that are tried.
VALUES, SHARES = 200_000, np.linspace(1.0, 0.3, 29)
#: Shares for all convolutions at once. Where a maximum over the image follows, few large values decide, and cutting
#: them off costs more than the error of all others: DNSMOS's score changes by 0.036 or by 0.015.
RANGES = (SHARES, SHARES[:1])


def byte_scale(values: np.ndarray, shares: np.ndarray = SHARES) -> Affine:
    """Return the scale and zero point that quantize `values`, float32, with the least mean square error.

    The range is one of `shares` of what the values take, and holds zero, which is exact.
    """
    step = max(1, values.size // VALUES)
    some = values.reshape(-1)[::step].astype("float32")
    low, high = min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))
    if high - low <= 0:
        return Affine(1.0, 0)
    tried = []
    for share in shares:
        scale = share * (high - low) / LEVELS
        zero = round(-share * low / scale)
        levels = np.clip(np.floor(some / scale + (zero + 0.5)), 0, LEVELS)
        tried.append((float(np.square((levels - zero) * scale - some).mean()), scale, zero))
    _, scale, zero = min(tried)
    return Affine(scale, zero)


def choose_bytes(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> Model:
    """Return `model` with the convolutions that a build of int8 computes on bytes."""
    convs = [name for name, site in model.sites.items() if site.conv and name not in model.options.keep_dense]
    usable = model.precision == "int8" and ISAS[model.compiler.isa].vnni and model.options.mode in ("dual", "dense")
    if not usable or not convs:
        return model
    seen = {name: model.observations[name].inputs[0] for name in convs}

    def judged(chosen: dict[str, Affine]) -> float:
        trial = replace(model, on_bytes=chosen)
        forms = {name: exact_form(site, site.nonnegative) for name, site in model.sites.items()}
        forms |= {name: exact_form(model.sites[name], False) for name in chosen}
        return quality.judge(Fits(trial).variant(forms).library)

    phase, total = "convolutions on bytes", len(RANGES) + len(convs)
    tried = []
    for done, shares in enumerate(RANGES):
        progress(phase, done, total)
        scales = {name: byte_scale(values, shares) for name, values in seen.items()}
        tried.append((judged(scales), scales))
    found, scales = max(tried, key=lambda each: each[0])
    if quality.accepts(found):
        progress(phase, total, total)
        return replace(model, on_bytes=scales)
    gains = {}
    for i, name in enumerate(convs):
        gains[name] = judged({other: scale for other, scale in scales.items() if other != name})
        progress(phase, len(RANGES) + i + 1, total)
    kept = dict(scales)
    for name in sorted(gains, key=gains.get, reverse=True):
        del kept[name]
        if not kept or quality.accepts(judged(kept)):
            break
    return replace(model, on_bytes=kept)


def planned_bytes(plan: Plan) -> dict[str, Affine]:
    """Return the convolutions that a plan computes on bytes."""
    return {
        site.name: Affine(site.scale, site.zero)
        for site in plan.sites
        if site.kind == "conv2d" and site.precision == "int8"
    }


def bytes_reason(model: Model, site: Site, zeros: float) -> str:
    """Return why a convolution of an int8 build without a gate has its form."""
    isa = ISAS[model.compiler.isa]
    if site.name in model.on_bytes:
        return "8-bit " + ("matrix tiles (AMX)" if isa.amx else "dot products (VNNI)")
    if site.name in model.options.keep_dense:
        return "fp32: kept by option"
    if not isa.vnni:
        return f"fp32: {isa.name} has no 8-bit dot products for images; {zeros:.0%} of the inputs are zero"
    if model.options.mode not in ("dual", "dense"):
        return f"fp32: mode {model.options.mode}; {zeros:.0%} of the inputs are zero"
    return f"fp32: at 8 bits quality is below the budget; {zeros:.0%} of the inputs are zero"
