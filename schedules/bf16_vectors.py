"""Vectors of bf16: the upper halves of floats, held as unsigned integers of 16 bits.

TVM 0.27 turns every value of its own type ``bfloat16`` into a float before it generates code, what LLVM's intrinsics
take and give included; hence integers, and a function in LLVM's language around the instruction that rounds.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.inlining import inline

#: Type that bf16 is held in.
BF16 = "uint16"
_NAME = "tvm_dual_bf16_pair"
#: A function that is inlined wherever it is called: the instruction, whose first operand becomes the upper half.
_PAIR = f"""
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
define linkonce_odr <32 x i16> @{_NAME}(<16 x float> %first, <16 x float> %second) #0 {{
  %pair = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %second, <16 x float> %first)
  %bits = bitcast <32 x bfloat> %pair to <32 x i16>
  ret <32 x i16> %bits
}}
attributes #0 = {{ alwaysinline nounwind "target-features"="+avx512f,+avx512bf16" }}
"""


def widened(values, lanes: int):
    """Return `lanes` values of bf16 as floats."""
    return T.reinterpret(T.Cast(_of("uint32", lanes), values) << _all(T.uint32(16), lanes), dtype=_of("float32", lanes))


def narrowed(values, lanes: int):
    """Return `lanes` floats as bf16, rounded to nearest, ties to even."""
    return T.Cast(_of(BF16, lanes), _rounded(values, lanes) >> _all(T.uint32(16), lanes))


def narrowing(compute):
    """Return a macro that does what the macro `compute` of as many operands does, which may call `narrowed_pair`."""

    @inline
    def within(*operands):
        with T.attr(0, "pragma_import_llvm", _PAIR):
            compute(*operands)

    return within


def narrowed_pair(first, second):
    """Return two vectors of 16 floats, one behind the other, as `narrowed` does (AVX512-BF16).

    Other than that it rounds to zero what is smaller than the least normal float. Within `narrowing` alone.
    """
    return T.call_pure_extern(f"{BF16}x32", _NAME, first, second)


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
