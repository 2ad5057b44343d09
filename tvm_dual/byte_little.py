"""Little modules on bytes: a convolution's few channels as bytes, between two convolutions of bytes.

A fitted module becomes one of bytes by its scales alone. Each direction is centred and scaled to the levels of a byte;
what it is scaled by is taken out of the weights that spread the directions, so that the levels' own scale is one and
their zero point 128 in every layer (`relay_passes.split_littles.LEVELS`). The spreading weights are fitted once more to
the levels themselves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relay_passes.products import LittleModule
from relay_passes.split_littles import LEVELS
from schedules.conv2d_int8 import Affine
from schedules.cpu import Isa
from schedules.words import stored_taps
from tvm_dual.little import FittedLittle, ridge

#: Levels of a byte on either side of its zero point.
MOST = 127
#: Shares of a direction's range that its levels may hold; what lies beyond is cut off.
SHARES = np.linspace(1.0, 0.4, 13)
#: How far small directions are drawn up to the range of the largest one: all the way, or less, which leaves their
#: weights larger. The one that loses least is taken.
DRAWN = (1.0, 0.75, 0.5)


def as_bytes(values: np.ndarray, levels: Affine) -> np.ndarray:
    """Return the bytes, uint8, that stand for `values`, float32."""
    return np.clip(np.floor(values / np.float32(levels.scale) + (levels.zero + 0.5)), 0, 255).astype("uint8")


def stood_for(values: np.ndarray, levels: Affine) -> np.ndarray:
    """Return what is left of `values`, float32, as bytes."""
    return (as_bytes(values, levels).astype("float32") - levels.zero) * np.float32(levels.scale)


def byte_sums(module: LittleModule, x: np.ndarray, source: Affine) -> np.ndarray:
    """Return what a module on bytes predicts, as the kernels compute it: float32 (samples, rows).

    Parameters
    ----------
    module : LittleModule
        Of `bytes_little`.
    x : ndarray, float32, (samples, n_inputs)
        What pixels see; bytes of `source` stand for it.
    source : Affine
    """
    (projection,) = module.projections
    few = stood_for(stood_for(x, source) @ projection.T - module.center, LEVELS)
    return few @ module.weight.T + module.bias


def bytes_little(
    fitted: FittedLittle,
    x: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    source: Affine,
    isa: Isa,
    run: int,
    *,
    refit: bool = True,
) -> FittedLittle:
    """Return a float32 little module of a convolution as one of bytes, its weights what these bytes stand for.

    Parameters
    ----------
    fitted : FittedLittle
    x : ndarray, float32, (samples, n_inputs)
        What pixels see.
    targets : ndarray, float32, (samples, n)
        The sums.
    importance : ndarray, float32, (n,)
        How much an error of each row matters.
    source : Affine
        Of the bytes that stand for `x`.
    isa : Isa
        Level that the bytes of weights are for.
    run : int
        Taps that lie side by side (`schedules.conv2d_shape.Conv2d.runs`).
    refit : bool
        Whether the rows are fitted anew, or those of `fitted` are kept, as training left them.
    """
    (projection,) = fitted.module.projections
    seen = stood_for(x, source)
    projection = stored_taps(isa, projection, run)
    projected = seen @ projection.T
    low, high = projected.min(axis=0), projected.max(axis=0)
    center = ((low + high) / 2).astype("float32")
    reach = np.maximum(_reach(projected - center), 1e-30)
    tried = []
    for drawn in DRAWN:
        scale = (reach**drawn * reach.max() ** (1 - drawn) / MOST).astype("float32")
        rows = fitted.module.weight * scale
        # The bias follows what the centre has moved by.
        bias = fitted.module.bias + fitted.module.weight @ (center - fitted.module.center)
        module = LittleModule((projection / scale[:, None],), center / scale, rows, bias.astype("float32"), 8)
        if refit:
            few = stood_for(projected / scale - module.center, LEVELS)
            module = replace(module, weight=ridge(few, targets))
        module = replace(module, weight=stored_taps(isa, module.weight, len(scale)))
        errors = targets - byte_sums(module, x, source)
        module = replace(module, bias=(module.bias + errors.mean(axis=0)).astype("float32")) if refit else module
        spread = errors.std(axis=0).astype("float32")
        tried.append((float(((spread * importance) ** 2).sum()), FittedLittle(module, spread)))
    return min(tried, key=lambda each: each[0])[1]


def _reach(values: np.ndarray) -> np.ndarray:
    """Return how far each column's levels should reach so that least is lost to rounding and cutting off."""
    largest = np.abs(values).max(axis=0)
    best, least = largest, np.full(len(largest), np.inf)
    for share in SHARES:
        step = np.maximum(share * largest, 1e-30) / MOST
        error = np.square(np.clip(np.rint(values / step), -MOST, MOST) * step - values).mean(axis=0)
        best, least = np.where(error < least, share * largest, best), np.minimum(error, least)
    return best
