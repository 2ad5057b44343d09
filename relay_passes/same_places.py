"""Reshapes at a step's borders: what they read and what they write lies in one place, and nothing is copied.

Layers work on plain vectors, while the model takes and gives images. Between layers such reshapes cancel out; those of
what a step is given and gives are left, each a pass over the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import ir, s_tir, sym, tirx


@dataclass(frozen=True, eq=False)
class Places:
    """What is left of a step.

    Attributes
    ----------
    statements : list of Stmt
    same : dict
        Buffers by what lies in their place: an operand's or a result's buffer for one in between.
    """

    statements: list[tirx.Stmt]
    same: dict


def same_places(statements: Sequence[tirx.Stmt], operands: Sequence, results: Sequence, between: Sequence) -> Places:
    """Leave out reshapes of operands that nothing else writes to, and those into results that nothing else uses.

    LLVM takes it that buffers of different names do not overlap, so two names stand for one place only where nobody
    writes to one and reads from the other. The values of closed rows are copied, too, but open rows follow them.

    Parameters
    ----------
    statements : sequence of Stmt
        Of one step, in order.
    operands, results : sequence of Buffer
        Those that may lie in one place with another: no states, which a step reads and replaces.
    between : sequence of Buffer
    """
    left, same = [], {}
    for statement in statements:
        source, copy = reshaped(statement) or (None, None)
        if source in operands and copy in between and not _written(copy, statements, statement):
            same[copy] = source
        elif source in between and source not in same and copy in results and not _used(copy, statements, statement):
            same[source] = copy
        else:
            left.append(statement)
    return Places(left, same)


def reshaped(statement: tirx.Stmt) -> tuple | None:
    """Return source and destination of a statement that copies all of a buffer to another in the same order."""
    loops = []
    while isinstance(statement, tirx.For):
        loops.append((statement.loop_var, statement.min, statement.extent))
        statement = statement.body
    block = getattr(statement, "block", None)
    if block is None or not isinstance(block.body, tirx.BufferStore) or not isinstance(block.body.value, ir.TensorLoad):
        return None
    store, load = block.body, block.body.value
    if [v for v, _, _ in loops] != list(statement.iter_values) or store.buffer.dtype != load.source.dtype:
        return None
    shapes = [[int(e) if isinstance(e, tirx.IntImm) else 0 for e in b.shape] for b in (store.buffer, load.source)]
    whole = [axis.var for axis in block.iter_vars] == list(store.indices)
    whole = whole and [int(extent) for _, _, extent in loops] == shapes[0] and all(int(low) == 0 for _, low, _ in loops)
    if not whole or _size(shapes[0]) != _size(shapes[1]):
        return None
    analyzer = sym.Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)
    places = [_place(indices, shape) for indices, shape in zip((store.indices, load.indices), shapes, strict=True)]
    return (load.source, store.buffer) if analyzer.can_prove_equal(*places) else None


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _place(indices: Sequence, shape: Sequence[int]) -> ir.PrimExpr:
    place = tirx.IntImm("int64", 0)
    for index, extent in zip(indices, shape, strict=True):
        place = place * tirx.IntImm("int64", extent) + tirx.Cast("int64", index)
    return place


def _written(buffer, statements: Sequence[tirx.Stmt], but: tirx.Stmt) -> bool:
    """Whether another statement writes to a buffer, by its stores or by what its blocks declare."""
    found = []

    def store(value: tirx.BufferStore) -> None:
        found.append(value.buffer)

    def block(value: s_tir.SBlock) -> None:
        found.extend(region.source for region in value.writes)

    for statement in statements:
        if not statement.same_as(but):
            for kind, note in ((tirx.BufferStore, store), (s_tir.SBlock, block)):
                tvm_ffi.structural_walk(statement, (kind, note), order="post")
    return any(each.same_as(buffer) for each in found)


def _used(buffer, statements: Sequence[tirx.Stmt], but: tirx.Stmt) -> bool:
    found = []

    def note(variable: tirx.Var) -> None:
        if variable.same_as(buffer):
            found.append(variable)

    for statement in statements:
        if not statement.same_as(but):
            tvm_ffi.structural_walk(statement, (tirx.Var, note), order="post")
    return bool(found)
