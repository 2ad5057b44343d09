"""Vectors of floats as vectors of unsigned bytes."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa


def quantized(values, inverse, zero, lanes: int):
    """Return `lanes` floats as unsigned bytes: rounded, cut off at both ends; `zero` is the zero point and a half."""
    scaled = values * T.broadcast(inverse, lanes) + T.broadcast(zero, lanes)
    return clipped_bytes(scaled, lanes)


def clipped_bytes(values, lanes: int):
    """Return floats, a half added to them, as unsigned bytes."""
    whole = T.Cast(f"int32x{lanes}", values)
    low = T.max(whole, T.broadcast(T.int32(0), lanes))
    return T.Cast(f"uint8x{lanes}", T.min(low, T.broadcast(T.int32(255), lanes)))


def packed_bytes(isa: Isa, vectors: list, parts: int) -> list:
    """Return vectors of 16 floats each as `clipped_bytes` does, in `parts` vectors of bytes.

    There are as many as fill a register with bytes: four, at AVX2 two.
    """
    lanes, size = isa.lanes, isa.vector_bytes
    whole = [T.Cast("int32x16", values) for values in vectors]
    if lanes < 16:
        whole = [T.Shuffle([values], list(range(at, at + lanes))) for values in whole for at in range(0, 16, lanes)]
    words = [_pack(isa, "packssdw", f"int16x{size // 2}", *whole[i : i + 2]) for i in (0, 2)]
    # Packing takes turns between its operands every 16 bytes: four bytes of each register at a time.
    mixed = T.reinterpret(_pack(isa, "packuswb", f"int8x{size}", *words), dtype=f"int32x{lanes}")
    each, turns = lanes // parts, lanes // 4
    order = [i // turns + i % turns * 4 for i in range(lanes)]
    return [
        T.reinterpret(T.Shuffle([mixed], order[part * each : (part + 1) * each]), dtype=f"uint8x{4 * each}")
        for part in range(parts)
    ]


def _pack(isa: Isa, name: str, dtype: str, first, second):
    full = f"llvm.x86.avx512.{name}.512" if isa.vector_bytes == 64 else f"llvm.x86.avx2.{name}"
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(full), first, second, dtype=dtype)
