"""Scale and zero point of the bytes that stand for what a convolution reads."""

from __future__ import annotations

import numpy as np

from schedules.conv2d_int8 import Affine
from tvm_dual.byte_little import stood_for

#: Levels of a byte above zero.
LEVELS = 255
#: Values that scales are fitted to, and shares of their range that are tried.
VALUES, SHARES = 200_000, np.linspace(1.0, 0.3, 29)


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
        levels = Affine(scale, round(-share * low / scale))
        tried.append((float(np.square(stood_for(some, levels) - some).mean()), levels))
    return min(tried, key=lambda each: each[0])[1]
