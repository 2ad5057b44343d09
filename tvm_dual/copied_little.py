"""Copies as little modules of convolutions: the layer's own weights at few bits, its input as bytes.

Where the CPU multiplies bytes a copy takes a fourth to a tenth of the layer's time, and its error is that of rounding
alone, far below that of any projection (dual-module inference, Liu et al., ICML 2020, quantizes little modules; that
the copy need not be projected follows from how fast bytes are).
"""

from __future__ import annotations

import numpy as np

from relay_passes.products import LittleModule
from schedules.conv2d_int8 import Affine
from schedules.cpu import Isa
from schedules.quantize import clip_rows, stored_rows
from schedules.words import stored_taps
from tvm_dual.byte_little import stood_for
from tvm_dual.byte_scale import SHARES, byte_scale
from tvm_dual.little import FittedLittle


def copy_levels(values: np.ndarray) -> Affine:
    """Return the scale and zero point of a copy's input, which hold all of `values`, float32.

    Cutting off the largest values leaves less error in the mean, and more where a maximum over the image follows
    (`tvm_dual.byte_convs`).
    """
    return byte_scale(values, SHARES[:1])


def copied_little(
    x: np.ndarray, weight: np.ndarray, targets: np.ndarray, bits: int, source: Affine, isa: Isa, run: int
) -> FittedLittle:
    """Return a copy of a convolution.

    Parameters
    ----------
    x : ndarray, float32, (samples, n_inputs)
        What pixels see.
    weight : ndarray, float32, (n, n_inputs)
    targets : ndarray, float32, (samples, n)
        The sums.
    bits : int
        Of the weights, a scale for each row: 8, or 4.
    source : Affine
        Of the bytes that stand for `x`.
    isa : Isa
        Level that the bytes of weights are for, whatever `bits` they have.
    run : int
        Taps that lie side by side (`schedules.conv2d_shape.Conv2d.runs`).
    """
    rows = weight
    if bits < 8:
        rows = stored_rows(clip_rows(weight, bits, (x**2).mean(axis=0)), bits)
    rows = stored_taps(isa, rows, run)
    module = LittleModule((), np.zeros(1, "float32"), rows, np.zeros(len(rows), "float32"), bits)
    errors = targets - copied_sums(module, x, source)
    bias = errors.mean(axis=0).astype("float32")
    return FittedLittle(LittleModule((), module.center, rows, bias, bits), errors.std(axis=0).astype("float32"))


def copied_sums(module: LittleModule, x: np.ndarray, source: Affine) -> np.ndarray:
    """Return what a copy predicts, as the kernels compute it: float32 (samples, rows).

    Parameters
    ----------
    module : LittleModule
        Of `copied_little`.
    x : ndarray, float32, (samples, n_inputs)
    source : Affine
    """
    return stood_for(x, source) @ module.weight.T + module.bias
