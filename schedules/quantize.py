"""Quantization: of activations while the library runs, of weights when it is built.

Activations become unsigned bytes with a scale and zero point found for each vector anew (the
"dynamic" quantization of PyTorch and ONNX Runtime); weights become signed bytes with one scale
per row ("per channel"). Then, for row ``w`` and input ``x``::

    w . x = scale_w * scale_x * (q_w . q_x - zero_x * sum(q_w))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline


def round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def quantize_run(isa: Isa, k: int, nonnegative: bool):
    """Return the macro ``(x: f32[k], q: u8[k padded], affine: f32[2])`` that `quantize_vector` consists of."""
    padded = round_up(k, isa.row_bytes)
    lanes, whole, rest = isa.lanes, k // isa.lanes, k % isa.lanes
    levels = float(isa.activation_levels)

    @inline
    def quantize(x, q, affine):
        high = T.sblock_alloc_buffer((lanes,), "float32")
        low = T.sblock_alloc_buffer((lanes,), "float32")
        bound = T.sblock_alloc_buffer((2,), "float32")
        inverse = T.sblock_alloc_buffer((1,), "float32")
        high[T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
        low[T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
        for i in T.serial(whole):
            high[T.ramp(0, 1, lanes)] = T.max(high[T.ramp(0, 1, lanes)], x[T.ramp(i * lanes, 1, lanes)])
            if not nonnegative:
                low[T.ramp(0, 1, lanes)] = T.min(low[T.ramp(0, 1, lanes)], x[T.ramp(i * lanes, 1, lanes)])
        for i in T.serial(rest):
            high[i] = T.max(high[i], x[whole * lanes + i])
            low[i] = T.min(low[i], x[whole * lanes + i])
        bound[0] = T.float32(0)
        bound[1] = T.float32(0)
        for i in T.unroll(lanes):
            bound[0] = T.min(bound[0], low[i])
            bound[1] = T.max(bound[1], high[i])
        # A vector of zeros: any scale will do, but 0 would make the inverse infinite.
        affine[0] = T.max(bound[1] - bound[0], T.float32(1e-30)) * T.float32(1.0 / levels)
        inverse[0] = T.float32(1) / affine[0]
        affine[1] = T.floor(T.float32(0.5) - bound[0] * inverse[0])
        for i in T.serial(k):
            q[i] = T.Cast(
                "uint8",
                T.Cast("int32", T.min(x[i] * inverse[0] + affine[1] + T.float32(0.5), T.float32(levels))),
            )
        for i in T.serial(padded - k):
            q[k + i] = T.uint8(0)

    return quantize


def quantize_vector(isa: Isa, k: int, nonnegative: bool = False):
    """Return the kernel ``(x: f32[k]) -> (q: u8[k padded], affine: f32[2])``.

    ``affine`` holds the scale and the zero point: ``x = affine[0] * (q - affine[1])``. The range
    always includes zero, so zeros stay exact; a nonnegative input has zero point 0.
    """
    padded, quantize_all = round_up(k, isa.row_bytes), quantize_run(isa, k, nonnegative)

    @T.prim_func(s_tir=True, private=True)
    def quantize(x: T.Buffer((k,), "float32"), q: T.Buffer((padded,), "uint8"), affine: T.Buffer((2,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("quantize"):
            T.reads(x[0:k])
            T.writes(q[0:padded], affine[0:2])
            quantize_all(x, q, affine)

    return quantize


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix as signed bytes.

    Attributes
    ----------
    values : ndarray, int8, (n, k)
    scale : ndarray, float32, (n,)
        ``row i = scale[i] * values[i]``.
    """

    values: np.ndarray
    scale: np.ndarray

    def dequantized(self) -> np.ndarray:
        """Return the matrix that the bytes stand for, ``float32 (n, k)``."""
        return self.values.astype("float32") * self.scale[:, None]


def quantize_rows(weight: np.ndarray, bits: int = 8) -> QuantizedRows:
    """Quantize each row symmetrically to `bits` bits, its largest weight to the last level.

    Parameters
    ----------
    weight : ndarray, float32, (n, k)
    bits : int
        8, 4 or 2; four-bit values lie in [-7, 7], two-bit values are -3, -1, 1 and 3.
    """
    levels = 3 if bits == 2 else 2 ** (bits - 1) - 1
    scale = (np.abs(weight).max(axis=1, initial=0) / levels).astype("float32")
    steps = weight / np.where(scale > 0, scale, 1)[:, None]
    # Of two bits zero is no level: with the four that lie evenly around it a fifth less is lost than with -1, 0, 1.
    rounded = 2 * np.floor(steps / 2) + 1 if bits == 2 else np.rint(steps)
    return QuantizedRows(np.clip(rounded, -levels, levels).astype("int8"), scale)


#: Shares of a row's largest weight that `clip_rows` tries.
SHARES = np.linspace(1, 0.1, 19)


def clip_rows(weight: np.ndarray, bits: int, importance: np.ndarray) -> np.ndarray:
    """Cut off each row's largest weights where that leaves less error in what `quantize_rows` makes of it.

    Few levels are better spent on the many weights than on reaching the largest one.

    Parameters
    ----------
    weight : ndarray, float32, (n, k)
    bits : int
    importance : ndarray, float32, (k,)
        What the squared errors of each column count: the mean square of its input.
    """
    largest = np.abs(weight).max(axis=1, keepdims=True, initial=0)
    best, least = weight, np.full(len(weight), np.inf)
    for share in SHARES:
        clipped = np.clip(weight, -share * largest, share * largest).astype("float32")
        error = (weight - quantize_rows(clipped, bits).dequantized()) ** 2 @ importance
        best, least = np.where((error < least)[:, None], clipped, best), np.minimum(error, least)
    return best


def stored_rows(weight: np.ndarray, bits: int) -> np.ndarray:
    """Return what is left of a matrix at `bits` bits, float32 (n, k); 32 leaves it as it is."""
    return weight if bits == 32 else quantize_rows(weight, bits).dequantized()


def corrected_bias(weight: np.ndarray, stored: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the bias that makes up for what rounding the weights does to the mean input.

    Rounding errors of a row do not average out over inputs whose mean is far from zero, such as
    log-power features. After "bias correction" in Nagel et al., "Data-free quantization through
    weight equalization and bias correction", ICCV 2019.

    Parameters
    ----------
    weight, stored : ndarray, float32, (n, k)
        As they were, and what is left of them.
    bias : ndarray, float32, (n,)
    mean : ndarray, float32, (k,)
        Mean input on the calibration data.
    """
    return (bias + (weight - stored) @ mean).astype("float32")
