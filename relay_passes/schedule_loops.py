"""ScheduleLoops: what TVM made one kernel of is computed in one pass over memory, by all threads if it is large.

As TVM leaves them, each operator of such a kernel writes all of its values before the next reads them: of a hard swish
between convolutions there are six. Sums over the pixels of an image whose channels lie last read one value of a cache
line, and the next after all other pixels.
"""

from __future__ import annotations

from math import prod

import tvm
import tvm_ffi
from tvm import IRModule, ir, s_tir, tirx

from relay_passes.products import PARALLEL_BYTES
from relay_passes.same_places import reshaped

#: Functions that take long enough to be computed once, however often their result is read.
_LONG = {"exp", "log", "pow", "erf", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos"}
#: Readers of so many times a block's values read each again and again: of what takes more parts than a load of a value,
#: the values are computed before.
_SPREAD, _LOAD = 4, 8
#: Parts of an expression up to which it is computed wherever it is read, instead of once.
_SHORT = 30


@tvm.transform.module_pass(opt_level=0, name="ScheduleLoops")
class ScheduleLoops:
    """The pass; run it behind ``FuseTIR``.

    It leaves as they are kernels of open shapes, and those that are more than loops around one store each: the
    schedules of this project are.
    """

    def __init__(self, threads: int) -> None:
        """Schedule for a number of threads."""
        self._threads = threads

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with its kernels of plain loops scheduled."""
        result = IRModule(module.functions, attrs=module.attrs)
        for name, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc) and _is_plain(function):
                result.update_func(name, scheduled(function, self._threads))
        return result


def scheduled(kernel: tirx.PrimFunc, threads: int) -> tirx.PrimFunc:
    """Return a kernel of plain loops with each operator where its result is read.

    Parameters
    ----------
    kernel : PrimFunc
        Loops around one store each, as `relax.transform.LegalizeOps` makes them, of known extents.
    threads : int
        What large loops are divided between.
    """
    schedule = s_tir.Schedule(kernel)
    root = schedule.get_sblock("root")
    for nest, block in zip(_nests(kernel), schedule.get_child_blocks(root), strict=True):
        if _is_idle_end(schedule, nest, block):
            # Loops over what is reshaped have simpler indices than loops over a vector.
            schedule.reverse_compute_inline(block)
    for block in schedule.get_child_blocks(root):
        if _can_join(schedule, block, schedule.get(root)):
            schedule.compute_inline(block)
    for block in schedule.get_child_blocks(root):
        if _is_spatial(schedule.get(block)):
            _divide(schedule, block, threads)
        elif _sums_rows(schedule.get(block)):
            _sum_by_rows(schedule, block)
    return schedule.mod["main"].with_attrs(dict(kernel.attrs or {}))


def _is_plain(kernel: tirx.PrimFunc) -> bool:
    extents = [extent for parameter in kernel.params for extent in getattr(parameter, "shape", [None])]
    return all(isinstance(extent, tirx.IntImm) for extent in extents) and all(map(_is_nest, _nests(kernel)))


def _nests(kernel: tirx.PrimFunc) -> list[tirx.Stmt]:
    body = kernel.body.block.body if isinstance(kernel.body, s_tir.SBlockRealize) else kernel.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _is_nest(statement: tirx.Stmt) -> bool:
    """Whether a statement is serial loops around one block of one store of one value."""
    while isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.SERIAL:
        statement = statement.body
    block = getattr(statement, "block", None)
    return block is not None and not block.alloc_buffers and isinstance(block.body, tirx.BufferStore)


def _is_idle_end(schedule: s_tir.Schedule, nest: tirx.Stmt, block) -> bool:
    """Whether a block reshapes what one other block computes for it alone, and nothing reads the result."""
    found, producers = reshaped(nest), schedule.get_producers(block)
    if found is None or schedule.get_consumers(block) or len(producers) != 1:
        return False
    return _is_spatial(schedule.get(producers[0])) and len(schedule.get_consumers(producers[0])) == 1


def _can_join(schedule: s_tir.Schedule, block, root: s_tir.SBlock) -> bool:
    """Whether a block may be computed where its result is read, and costs nothing more there."""
    computed, readers = schedule.get(block), [schedule.get(reader) for reader in schedule.get_consumers(block)]
    result, variables = computed.body.buffer, [axis.var for axis in computed.iter_vars]
    inner = any(result.same_as(buffer) for buffer in root.alloc_buffers)
    used = [index for index in computed.body.indices if not isinstance(index, tirx.IntImm)]
    if not inner or not readers or not _is_spatial(computed) or used != variables[len(variables) - len(used) :]:
        return False
    size = prod(int(extent) for extent in result.shape)
    if any(_extent(reader) > _SPREAD * size for reader in readers) and _measure(computed.body.value)[0] > _LOAD:
        return False
    if any(not _is_spatial(reader) and _extent(reader) > size for reader in readers):
        return False
    length, is_long = _measure(computed.body.value)
    reads = sum(_reads(reader, result) for reader in readers)
    return reads == 1 or (length <= _SHORT and not is_long)


def _measure(value: ir.Expr) -> tuple[int, bool]:
    """Return how many parts an expression has, and whether one of them is a function that takes long."""
    parts: list[ir.Expr] = []
    tvm_ffi.structural_walk(value, (ir.Expr, parts.append), order="post")
    return len(parts), not _LONG.isdisjoint(_called(value))


def _called(value: ir.Expr) -> set[str]:
    """Return the names of the functions that an expression calls, without what says whose they are."""
    calls: list[ir.Call] = []
    tvm_ffi.structural_walk(value, (ir.Call, calls.append), order="post")
    return {call.op.name.split(".")[-1] for call in calls if isinstance(call.op, ir.Op)}


def _reads(block: s_tir.SBlock, buffer) -> int:
    found = []
    tvm_ffi.structural_walk(block.body, (ir.TensorLoad, found.append), order="post")
    return sum(load.source.same_as(buffer) for load in found)


def _is_spatial(block: s_tir.SBlock) -> bool:
    return block.init is None and all(axis.iter_type == tirx.IterVar.DataPar for axis in block.iter_vars)


def _extent(block: s_tir.SBlock) -> int:
    return prod(int(axis.dom.extent) for axis in block.iter_vars)


def _divide(schedule: s_tir.Schedule, block, threads: int) -> None:
    """Let threads share a block's loops but the innermost, which LLVM makes vectors of."""
    computed, loops = schedule.get(block), schedule.get_loops(block)
    itemsize = tvm.DataType(str(computed.body.buffer.dtype)).itemsize
    if threads == 1 or not loops or _extent(computed) * itemsize < PARALLEL_BYTES:
        return
    schedule.parallel(schedule.fuse(*loops[:-1]) if len(loops) > 1 else loops[0])


def _sums_rows(block: s_tir.SBlock) -> bool:
    """Whether a block reduces what lies one row behind another: its last output axis is the last of what it reads."""
    spatial = [axis.var for axis in block.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    loads: list = []
    tvm_ffi.structural_walk(block.body, (ir.TensorLoad, loads.append), order="post")
    read = [load for load in loads if not load.source.same_as(block.body.buffer)]
    last = [index for load in read for index in [load.indices[len(load.indices) - 1]]]
    return bool(spatial) and bool(last) and all(index.same_as(spatial[-1]) for index in last)


def _sum_by_rows(schedule: s_tir.Schedule, block) -> None:
    """Add one row after another to all sums."""
    loops, axes = schedule.get_loops(block), schedule.get(block).iter_vars
    if len(loops) != len(axes):
        return
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [loop for loop in loops if loop not in spatial]
    schedule.decompose_reduction(block, loops[0])
    schedule.reorder(*spatial[:-1], *reduced, spatial[-1])
