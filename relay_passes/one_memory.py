"""OneMemory: everything a fused step reads and writes lies in one region of memory, its only argument.

A step of a hundred microseconds has dozens of weights and vectors in between. Each as an argument
of its own is checked at every call, and each vector in between is asked for and given back; together
that took a sixth of the step. Here ``main`` takes one ``uint8`` tensor, and the kernel knows at which
offset what lies. The caller makes that region once, in huge pages, writes the weights into it, and
from then on inputs alone; states are updated where they are. Large inputs and outputs may lie elsewhere: images would
be copied in and out at every call. The region's start says how far from their place in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import IRModule, relax, s_tir, tirx
from tvm.ir import GenericConst
from tvm.script import tirx as T

from relay_passes.divide_step import PARTS, part_lengths, variables
from relay_passes.same_places import same_places

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")
#: Bytes of a cache line, which everything starts at.
_LINE = 64
#: Below this size TVM keeps a vector on the stack, which costs nothing.
_STACK_BYTES = 1024
#: From this size on an input is read, and an output written, where the caller has it. To find out where that is takes a
#: microsecond, and to copy 32 kB as long.
_AFAR_BYTES = 32 << 10


@tvm.transform.module_pass(opt_level=0, name="OneMemory")
class OneMemory:
    """The pass; run it last. It changes nothing unless ``main`` is a single kernel call.

    Attributes of the new ``main``: ``dual.offsets``, where its former parameters, its weights and its
    results start, in bytes, and behind them the region's size; ``dual.afar``, which of these the caller may leave
    elsewhere; ``dual.weights``, the weights' values; ``dual.parameters`` and ``dual.results``, types. A result that
    is a state shares its place.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with ``main`` of one parameter, if it can be."""
        main = module["main"]
        bindings = [binding for block in main.body.blocks for binding in block.bindings]
        if len(bindings) != 1 or not isinstance(bindings[0].value, relax.Call) or bindings[0].value.op != _CALL_TIR:
            return module
        call = bindings[0].value
        target, operands = call.args[0], list(call.args[1].fields)
        types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        every = [*types, *(operand.ty for operand in operands)]
        if not all(isinstance(type_, relax.TensorType) and _is_fixed(type_) for type_ in every):
            return module
        weights = [operand for operand in operands if isinstance(operand, GenericConst)]
        # FuseStep passes the parameters, then the weights.
        assert operands == [*main.params, *weights]
        inputs, n_states = int(main.attrs["num_input"]), int(main.attrs["num_states"])
        first = len(main.attrs["output_names"]) - n_states
        states = {first + i: inputs + i for i in range(n_states)}
        afar = _afar(main, kernel := module[target], states)
        kernel, offsets = in_one_memory(kernel, len(operands), states, afar)
        memory = relax.Var("memory", relax.TensorType([offsets[-1]], "uint8"))
        builder = relax.BlockBuilder()
        name = builder.add_func(kernel.with_attr("global_symbol", "step"), "step")
        attributes = {
            "global_symbol": "main",
            "dual.offsets": offsets,
            "dual.afar": afar,
            "dual.weights": [weight.value for weight in weights],
            "dual.parameters": [parameter.ty for parameter in main.params],
            "dual.results": types,
        }
        with builder.function("main", [memory], attrs=dict(main.attrs) | attributes):
            with builder.dataflow():
                out = builder.emit_output(relax.op.call_tir_inplace(name, [memory], [0], memory.ty))
            builder.emit_func_output(out)
        return builder.get()


def _is_fixed(type_: relax.TensorType) -> bool:
    return all(isinstance(extent, tirx.IntImm) for extent in type_.shape)


def _afar(main: relax.Function, kernel: tirx.PrimFunc, states: dict[int, int]) -> list[int]:
    """Return which parameters of a kernel, inputs and outputs of ``main``, may stay where the caller has them."""
    n_outputs = len(main.attrs["output_names"]) - len(states)
    # Behind the outputs come states, and then counts.
    first = len(kernel.params) - (len(main.ret_ty.fields) if isinstance(main.ret_ty, relax.TupleType) else 1)
    positions = [*range(int(main.attrs["num_input"])), *range(first, first + n_outputs)]
    return [i for i in positions if _bytes(kernel.params[i]) >= _AFAR_BYTES]


def in_one_memory(
    kernel: tirx.PrimFunc, n_operands: int, states: dict[int, int], afar: Sequence[int] = ()
) -> tuple[tirx.PrimFunc, list[int]]:
    """Return `kernel` as a function of one region, and where in it the parameters start.

    Parameters
    ----------
    kernel : PrimFunc
        Its parameters are buffers of known shapes: `n_operands` operands, then results.
    n_operands : int
    states : dict of int
        Results by position that are copied to an operand, by position, at the end.
    afar : sequence of int
        Parameters by position that may lie outside of the region. Each has an ``int64`` at the region's start, in this
        order: by how many values it lies behind its place in the region.

    Returns
    -------
    PrimFunc
        The kernel ``(memory: u8[size])``.
    list of int
        Offset in bytes of each parameter, and the size. A state's result has its operand's offset.
    """
    root = kernel.body.block
    statements = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    operands, results = kernel.params[:n_operands], kernel.params[n_operands:]
    kept = {*(operands[operand] for operand in states.values()), *(results[result] for result in states)}
    free = [[buffer for buffer in buffers if buffer not in kept] for buffers in (operands, results)]
    places = same_places(statements, *free, root.alloc_buffers)
    copies = [_copy(results[result], operands[operand]) for result, operand in states.items()]
    statements = [*places.statements, *copies]
    lengths = part_lengths(statements)
    between = [buffer for buffer in root.alloc_buffers if buffer not in places.same]
    small = _on_stack(between, statements, lengths)
    merged = _merged([buffer for buffer in between if buffer not in small], statements)
    statements = [replaced(statement, merged) for statement in statements]
    placed = [*kernel.params, *dict.fromkeys(merged.values())]
    starts = [-(-8 * len(afar) // _LINE) * _LINE]
    for buffer in placed:
        starts.append(starts[-1] + -(-_bytes(buffer) // _LINE) * _LINE)
    memory = tirx.decl_buffer((starts[-1],), "uint8", "memory")
    at = dict(zip(placed, starts, strict=False))
    at |= {buffer: at[other] for buffer, other in places.same.items()}
    distances = tirx.decl_buffer((max(1, len(afar)),), "int64", "distances")
    behind = {kernel.params[position]: tirx.Var(f"behind{i}", "int64") for i, position in enumerate(afar)}
    first = [tirx.DeclBuffer(distances, data=_address(memory, 0, distances))] if behind else []
    first += [tirx.Bind(b, tirx.BufferLoad(distances, [i])) for i, b in enumerate(behind.values())]
    behind |= {buffer: behind[other] for buffer, other in places.same.items() if other in behind}
    moved = {b: tirx.decl_buffer(b.shape, str(b.dtype), b.name, elem_offset=by) for b, by in behind.items()}
    statements = [replaced(statement, moved) for statement in statements]
    views = [tirx.DeclBuffer(moved.get(b, b), data=_address(memory, start, b)) for b, start in at.items()]
    body = s_tir.SBlock([], [], [], "root", tirx.SeqStmt([*first, *views, *statements]), alloc_buffers=small)
    body = s_tir.SBlockRealize([], True, body)
    offsets = starts[: len(kernel.params)]
    for result, operand in states.items():
        offsets[n_operands + result] = offsets[operand]
    whole = tirx.PrimFunc([memory], body, kernel.ret_type, kernel.attrs)
    return whole.with_attr(PARTS, lengths), [*offsets, starts[-1]]


def _on_stack(buffers: Sequence, statements: Sequence[tirx.Stmt], lengths: Sequence[int]) -> list:
    """Return the small ones of `buffers` that one part of the kernel alone uses: its stack ends with it."""
    parts_of: dict = {}
    position = 0
    for part, length in enumerate(lengths):
        for statement in statements[position : position + length]:
            for buffer in variables(statement):
                parts_of.setdefault(buffer, set()).add(part)
        position += length
    return [b for b in buffers if _bytes(b) < _STACK_BYTES and len(parts_of.get(b, ())) <= 1]


def _bytes(buffer) -> int:
    size = tvm.DataType(str(buffer.dtype)).itemsize
    for extent in buffer.shape:
        size *= int(extent)
    return size


def _address(memory, start: int, buffer):
    return T.reinterpret(T.handle(str(buffer.dtype)).ty, T.address_of(memory[start]))


def _merged(buffers: Sequence, statements: Sequence[tirx.Stmt]) -> dict:
    """Return for each buffer the one that stands for it: vectors that never live at once share one.

    The less memory a step touches, the more of the weights stays in cache. Two names for the same
    memory would not do: LLVM takes it that buffers of different names do not overlap.
    """
    first, last = {}, {}
    for i, statement in enumerate(statements):
        for buffer in filter(variables(statement).__contains__, buffers):
            first.setdefault(buffer, i)
            last[buffer] = i
    shared, ends, members = {}, {}, {}
    for buffer in sorted(first, key=first.get):
        # A shared vector has one dtype; of several dimensions it would need other indices.
        kind = str(buffer.dtype) if len(buffer.shape) == 1 else None
        free = [s for s in ends if kind and members[s][0] == kind and ends[s] < first[buffer]]
        slot = free[0] if free else len(ends)
        members.setdefault(slot, (kind, []))[1].append(buffer)
        ends[slot] = last[buffer]
    for _, group in members.values():
        if len(group) == 1:
            shared[group[0]] = group[0]
            continue
        length = max(int(buffer.shape[0]) for buffer in group)
        whole = tirx.decl_buffer((length,), str(group[0].dtype), "shared")
        shared |= dict.fromkeys(group, whole)
    return shared


def replaced(statement: tirx.Stmt, by: dict) -> tirx.Stmt:
    """Return a statement with some of its variables replaced."""
    return tvm_ffi.structural_map(statement, (tirx.Var, lambda variable: by.get(variable, variable)), order="post")


def _copy(source, destination) -> tirx.Stmt:
    indices = [tirx.Var(f"i{axis}", "int32") for axis in range(len(source.shape))]
    body = tirx.BufferStore(destination, tirx.BufferLoad(source, indices), indices)
    for index, extent in zip(reversed(indices), reversed(source.shape), strict=True):
        body = tirx.For(index, 0, int(extent), tirx.ForKind.SERIAL, body)
    return body
