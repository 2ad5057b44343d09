"""Vectors of floats as vectors of unsigned bytes."""

from __future__ import annotations

from tvm.script import tirx as T


def quantized(values, inverse, zero, lanes: int):
    """Return `lanes` floats as unsigned bytes: rounded, cut off at both ends; `zero` is the zero point and a half."""
    scaled = values * T.broadcast(inverse, lanes) + T.broadcast(zero, lanes)
    return clipped_bytes(scaled, lanes)


def clipped_bytes(values, lanes: int):
    """Return floats, a half added to them, as unsigned bytes."""
    whole = T.Cast(f"int32x{lanes}", values)
    low = T.max(whole, T.broadcast(T.int32(0), lanes))
    return T.Cast(f"uint8x{lanes}", T.min(low, T.broadcast(T.int32(255), lanes)))


def packed_bytes(vectors: list, parts: int) -> list:
    """Return four vectors of 16 floats each as `clipped_bytes` does, in `parts` vectors of bytes (AVX-512)."""
    words = [_pack("packssdw", "int16x32", *map(_whole, vectors[i : i + 2])) for i in (0, 2)]
    # Packing takes turns between its operands every 16 bytes: four bytes of each vector at a time.
    mixed = T.reinterpret(_pack("packuswb", "int8x64", *words), dtype="int32x16")
    each = 16 // parts
    order = [i // 4 + i % 4 * 4 for i in range(16)]
    return [
        T.reinterpret(T.Shuffle([mixed], order[part * each : (part + 1) * each]), dtype=f"uint8x{4 * each}")
        for part in range(parts)
    ]


def _whole(values):
    return T.Cast("int32x16", values)


def _pack(name: str, dtype: str, first, second):
    intrinsic = T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.{name}.512")
    return T.call_llvm_pure_intrin(intrinsic, first, second, dtype=dtype)
