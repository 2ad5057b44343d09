"""DivideStep: a long step becomes several functions that its kernel calls one after another.

TVM simplifies each index by all the loops of its function, and LLVM looks at all of a function for many of its parts:
both take more than in proportion to its length. A call takes 20 ns, but what parts share cannot stay in registers or
on the stack: short steps of microseconds stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import IRModule, s_tir, tirx

#: Attribute of a step's kernel: how many statements each of its parts has.
PARTS = "dual.parts"
#: Statements of a step that stays whole, loops most of them: a layer of convolutions has one to five, a gated GRU 70. A
#: step of two GRUs and three dense layers, of 176, takes 37.7 us in six parts, 36.9 as a whole.
_WHOLE = 256
#: Times that a step computes something, one vector or value, from which on it takes about a millisecond, of which calls
#: and vectors in memory are nothing.
_LONG = 1_000_000
#: Statements of a part of a longer one.
_MOST = 32


@tvm.transform.module_pass(opt_level=0, name="DivideStep")
class DivideStep:
    """The pass; run it after `relay_passes.one_memory.OneMemory`, which says where a step can be divided."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with a ``step`` that calls ``step_0``, ``step_1`` and so on, if it is long."""
        result = IRModule(module.functions, attrs=module.attrs)
        for name, function in module.functions.items():
            if PARTS in (function.attrs or {}):
                step, *parts = divided(function)
                result.update_func(name, step)
                for i, part in enumerate(parts):
                    result[f"step_{i}"] = part.with_attr("global_symbol", f"step_{i}")
        return result


def part_lengths(statements: Sequence[tirx.Stmt]) -> list[int]:
    """Divide statements of a kernel where nothing that one of them defines is used behind.

    Short kernels are one part, and a part has more than `_MOST` statements where it cannot be divided.

    Returns
    -------
    list of int
        How many statements each part has.
    """
    if len(statements) <= _WHOLE and sum(map(_work, statements)) < _LONG:
        return [len(statements)]
    used = [variables(statement) for statement in statements]
    last = {variable: i for i, found in enumerate(used) for variable in found}
    lengths, start, until = [], 0, 0
    for i, statement in enumerate(statements):
        until = max(until, last.get(_defined(statement), i))
        if i + 1 == len(statements) or (i + 1 - start >= _MOST and until <= i):
            lengths.append(i + 1 - start)
            start = i + 1
    return lengths


def divided(kernel: tirx.PrimFunc) -> list[tirx.PrimFunc]:
    """Return `kernel`, and functions for its parts that it calls as ``step_0``, ``step_1`` and so on.

    Parameters
    ----------
    kernel : PrimFunc
        ``(memory: u8[size])``: definitions of what lies in the memory, then statements, which its attribute `PARTS`
        divides. What it has on the stack is used in one part alone.

    Returns
    -------
    list of PrimFunc
        Of the same parameter each; `kernel` alone if it is one part.
    """
    lengths = [int(length) for length in kernel.attrs[PARTS]]
    kernel, (memory,), root = kernel.without_attr(PARTS), kernel.params, kernel.body.block
    if len(lengths) == 1:
        return [kernel]
    statements = list(root.body.seq)
    start = len(statements) - sum(lengths)
    definitions, calls, parts = statements[:start], [], []
    for number, length in enumerate(lengths):
        group = statements[start : start + length]
        start += length
        wanted = set().union(*map(variables, group))
        stack = [buffer for buffer in root.alloc_buffers if buffer in wanted]
        body = _block([*_needed(definitions, wanted), *group], stack)
        # What lies in the memory has names of its own in each part.
        parts.append(s_tir.renew_defs(tirx.PrimFunc([memory], body, kernel.ret_type, kernel.attrs)))
        calls.append(tirx.Evaluate(tirx.call_cpacked(f"step_{number}", memory)))
    return [tirx.PrimFunc([memory], _block(calls, []), kernel.ret_type, kernel.attrs), *parts]


def _work(statement: tirx.Stmt) -> int:
    """Return how often a statement computes something, as far as the extents of its loops are known."""
    if isinstance(statement, tirx.For):
        times = int(statement.extent) if isinstance(statement.extent, tirx.IntImm) else 1
        return times * _work(statement.body)
    if isinstance(statement, tirx.SeqStmt):
        return sum(map(_work, statement.seq))
    if isinstance(statement, tirx.IfThenElse):
        return max(_work(part) for part in (statement.then_case, statement.else_case) if part is not None)
    body = getattr(getattr(statement, "block", statement), "body", None)
    return 1 if body is None else _work(body)


def variables(statement: tirx.Stmt) -> set[tirx.Var]:
    """Return the variables and buffers that a statement uses or defines."""
    found: set[tirx.Var] = set()
    tvm_ffi.structural_walk(statement, (tirx.Var, found.add), order="post")
    return found


def _block(statements: list[tirx.Stmt], stack: list) -> tirx.Stmt:
    block = s_tir.SBlock([], [], [], "root", tirx.SeqStmt(statements), alloc_buffers=stack)
    return s_tir.SBlockRealize([], True, block)


def _needed(definitions: Sequence[tirx.Stmt], wanted: set) -> list[tirx.Stmt]:
    """Return those of `definitions` that are wanted, by what follows or by one another."""
    needed: list[tirx.Stmt] = []
    for definition in reversed(definitions):
        if _defined(definition) in wanted:
            needed.insert(0, definition)
            wanted = wanted | variables(definition)
    return needed


def _defined(statement: tirx.Stmt) -> tirx.Var | None:
    """Return the variable or buffer that a statement defines for all that follow."""
    if isinstance(statement, tirx.Bind):
        return statement.var
    return statement.buffer if isinstance(statement, (tirx.DeclBuffer, tirx.AllocBuffer)) else None
