"""Vectors of bf16: the upper halves of floats, held as unsigned integers of 16 bits.

TVM 0.27 turns every value of its own type ``bfloat16`` into a float before it generates code, operands of LLVM's
intrinsics included; hence integers, and rounding by integer arithmetic.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

#: Type that bf16 is held in.
BF16 = "uint16"


def widened(values, lanes: int):
    """Return `lanes` values of bf16 as floats."""
    return T.reinterpret(T.Cast(_of("uint32", lanes), values) << _all(T.uint32(16), lanes), dtype=_of("float32", lanes))


def narrowed(values, lanes: int):
    """Return `lanes` floats as bf16, rounded to nearest, ties to even."""
    return T.Cast(_of(BF16, lanes), _rounded(values, lanes) >> _all(T.uint32(16), lanes))


def narrowed_pair(first, second):
    """Return two vectors of 16 floats, one behind the other, as `narrowed` does: one permutation takes upper halves."""
    parts = [T.reinterpret(_rounded(values, 16), dtype=f"{BF16}x32") for values in (first, second)]
    return T.Shuffle(parts, [2 * lane + 1 for lane in range(32)])


def cut(values, lanes: int):
    """Return `lanes` floats that are values of bf16 as these."""
    bits = T.reinterpret(values, dtype=_of("uint32", lanes))
    return T.Cast(_of(BF16, lanes), bits >> _all(T.uint32(16), lanes))


def _rounded(values, lanes: int):
    bits = T.reinterpret(values, dtype=_of("uint32", lanes))
    odd = (bits >> _all(T.uint32(16), lanes)) & _all(T.uint32(1), lanes)
    return bits + (odd + _all(T.uint32(0x7FFF), lanes))


def _of(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def _all(value, lanes: int):
    return T.broadcast(value, lanes) if lanes > 1 else value


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Return float32 values as bf16, uint16 of the same shape, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, "float32").view("uint32").astype("uint64")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(BF16)


def of_bf16(bits: np.ndarray) -> np.ndarray:
    """Return what bf16 stands for, float32 of the same shape."""
    return (bits.astype("uint32") << 16).view("float32")
