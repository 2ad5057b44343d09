"""Example inputs of one step, from those of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.export import ExportedProgram

from tvm_dual.frontend.torch_ops import whole_operators

#: Operators that select and arrange: what comes out of an input through them is still the input.
_MOVES = {
    "select", "slice", "squeeze", "unsqueeze", "view", "reshape", "transpose", "permute", "split", "chunk", "unbind",
    "getitem", "contiguous", "clone", "t", "index",
}  # fmt: skip


def one_step(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Cut example inputs to one step of one sequence.

    Open extents become 1. Where the program has none but recurrent layers, the extents before the last of a float
    input become 1 and all those of an integer input (token ids); of an initial state, the one of the batch.

    Parameters
    ----------
    program : ExportedProgram
        Exported with `inputs`.
    inputs : sequence of torch.Tensor
    """
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [nodes[name].meta["val"].shape for name in names]
    opened = [[isinstance(extent, torch.SymInt) for extent in shape] for shape in shapes]
    states, recurrent = _states(program)
    if not any(map(any, opened)) and recurrent:
        opened = [_leading(value, name in states) for name, value in zip(names, inputs, strict=True)]
    return tuple(_cut(value, axes) for value, axes in zip(inputs, opened, strict=True))


def _leading(value: torch.Tensor, state: bool) -> list[bool]:
    """Return which axes of an input are time or batch."""
    if state:
        return [axis == value.ndim - 2 for axis in range(value.ndim)]
    return [axis < value.ndim - value.is_floating_point() for axis in range(value.ndim)]


def _cut(value: torch.Tensor, axes: list[bool]) -> torch.Tensor:
    for axis, cut in enumerate(axes):
        value = value.narrow(axis, 0, 1) if cut else value
    return value.contiguous()


def _states(program: ExportedProgram) -> tuple[set[str], bool]:
    """Return the inputs that give initial states, and whether there are recurrent layers at all."""
    aten = torch.ops.aten
    recurrent = {*whole_operators().values(), *whole_operators(), aten.lstm_cell.default, aten.gru_cell.default}
    found, any_layer = set(), False
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in recurrent:
            continue
        any_layer = True
        for start in node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]:
            origin = _origin(start)
            if origin.op == "placeholder":
                found.add(origin.name)
    return found, any_layer


def _origin(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and node.target.__name__.split(".")[0] in _MOVES:
        node = node.args[0]
    return node
