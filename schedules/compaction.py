"""Compaction: from a condition per element to the list of the elements that meet it.

With AVX-512 a vector of indices shrinks to its kept lanes in one instruction. Without it the list
is written element by element: always written, kept by advancing the end, so that no branch depends
on the data.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.intrinsics import compress, count_true


def compact(isa: Isa, n: int, keep, value=None, dtype: str = "float32", first: int = 0):
    """Return a macro that lists the kept of `n` elements; it runs inside a block.

    The macro takes ``(source, indices, found)``, or ``(source, indices, values, found)`` if there is
    a `value`. It writes ``first + i`` to ``indices: i32[>= n]`` and ``value(source, i)`` to ``values``
    for each ``i`` that is kept, in ascending order; ``found: i32[>= 1]`` receives how many. Behind
    the list, what stands before element n is overwritten with anything.

    Parameters
    ----------
    isa : Isa
        Level to generate for.
    n : int
        Number of elements.
    keep : callable
        ``keep(source, i)`` is the condition at an index, a scalar or a ``T.ramp`` of ``isa.lanes``;
        ``source`` is what the macro was given: a buffer or a tuple of them.
    value : callable, optional
        ``value(source, i)`` is the elements at such an index.
    dtype : str
        Type of the values: float32 or uint8.
    first : int
        Index of the first element.
    """
    lanes = isa.lanes
    # Without AVX-512 everything is remainder. Conditions taken in vectors first were no faster there.
    chunks = n // lanes if isa.vector_bytes == 64 else 0

    def at(chunk):
        return T.ramp(chunk * lanes, 1, lanes)

    def kept_indices(source, chunk):
        return compress(isa, "int32", T.ramp(first + chunk * lanes, 1, lanes), keep(source, at(chunk)))

    def kept_values(source, chunk):
        if dtype != "uint8":
            return compress(isa, dtype, value(source, at(chunk)), keep(source, at(chunk)))
        # AVX-512 F compresses 32-bit lanes alone.
        wide = T.Cast(f"int32x{lanes}", value(source, at(chunk)))
        return T.Cast(f"uint8x{lanes}", compress(isa, "int32", wide, keep(source, at(chunk))))

    @inline
    def compacted(source, indices, values, found):
        end = T.alloc_buffer((1,), "int32", scope="local")
        end[0] = 0
        if chunks > 0:
            # A whole vector is stored at the end of the list. After c chunks that is at c * lanes
            # or before, so the store stays within n.
            for c in T.serial(chunks):
                indices[T.ramp(end[0], 1, lanes)] = kept_indices(source, c)
                if value is not None:
                    values[T.ramp(end[0], 1, lanes)] = kept_values(source, c)
                end[0] = end[0] + count_true(isa, keep(source, at(c)))
        for i in T.serial(chunks * lanes, n):
            indices[end[0]] = first + i
            if value is not None:
                values[end[0]] = value(source, i)
            end[0] = end[0] + T.Cast("int32", keep(source, i))
        found[0] = end[0]

    @inline
    def compacted_indices(source, indices, found):
        compacted(source, indices, indices, found)

    return compacted_indices if value is None else compacted
