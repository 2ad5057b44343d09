"""Converters for the recurrent operators of an exported PyTorch program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax

from tvm_dual.errors import ModelError
from tvm_dual.frontend.recurrent import GATES, STATES, Cell, emit_layer, join, make_cell

#: Where ONNX's gates (z, r, n and i, o, f, c) stand in PyTorch's order (r, z, n and i, f, c, o).
_GATE_ORDER = {"gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def layer_label(node: fx.Node, kind: str) -> str:
    """Return what errors call the layer that a node comes from: its module's name, if it has one."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = stack[-1][0] if stack else ""
    return f"layer '{name or node.name}' ({kind.upper()})"


class RecurrentLayers:
    """Converts layers and cells of one program; the weights of each are prepared once."""

    def __init__(self, program: ExportedProgram) -> None:
        """Convert for `program`, whose weights are looked up by the names of its placeholders."""
        kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        tensors = {**program.constants, **program.state_dict}
        self._tensors = {
            spec.arg.name: tensors[spec.target] for spec in program.graph_signature.input_specs if spec.kind in kinds
        }
        self._cells: dict[tuple, Cell] = {}

    def converters(self) -> dict[str, Callable]:
        """Return the converters by name of operator, as TVM's importer takes them."""
        return {
            "lstm.default": lambda node, importer: self._layer("lstm", node, importer),
            "gru.default": lambda node, importer: self._layer("gru", node, importer),
            "lstm_cell.default": lambda node, importer: self._cell("lstm", node, importer),
            "gru_cell.default": lambda node, importer: self._cell("gru", node, importer),
        }

    def _layer(self, kind: str, node: fx.Node, importer) -> tuple[relax.Expr, ...]:
        """Layers, stacked: ``(y: (t, b, d h), h_n: (l d, b, h) [, c_n])``, y as `batch_first` says."""
        names = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
        given = dict(zip((*names, "batch_first"), node.args, strict=False)) | dict(node.kwargs)
        label = layer_label(node, kind)
        if given["train"] and given["dropout"]:
            raise ModelError(
                f"{label}: exported in training mode, with dropout {given['dropout']}; accepted: evaluation mode. "
                "Call model.eval() before the export"
            )
        layers, directions = given["num_layers"], 2 if given["bidirectional"] else 1
        each = 4 if given["has_biases"] else 2
        if len(given["params"]) != layers * directions * each:
            raise ModelError(
                f"{label}: has {len(given['params'])} weights, {layers * directions * each} without projection; "
                "accepted: proj_size 0. Train the model without it"
            )
        bb, reverse = importer.block_builder, (False, True)[:directions]
        value = importer.env[given["input"]]
        if given["batch_first"]:
            value = bb.emit(relax.op.permute_dims(value, [1, 0, 2]))
        states = [importer.env[state] for state in (given["hx"] if kind == "lstm" else [given["hx"]])]
        collected: list[list[relax.Expr]] = [[] for _ in states]
        for layer in range(layers):
            first = layer * directions
            nodes = [given["params"][(first + d) * each : (first + d + 1) * each] for d in range(directions)]
            cells = [self._weights(label, kind, some) for some in nodes]
            starts = [_part(bb, state, first, directions, layers * directions) for state in states]
            outputs, finals = emit_layer(bb, label, cells, reverse, value, starts)
            value = join(bb, [bb.emit(relax.op.squeeze(output, [1])) for output in outputs], -1)
            for kept, final in zip(collected, finals, strict=True):
                kept += final
        if given["batch_first"]:
            value = bb.emit(relax.op.permute_dims(value, [1, 0, 2]))
        return value, *(join(bb, kept, 0) for kept in collected)

    def _cell(self, kind: str, node: fx.Node, importer):
        """One step of one layer, without the axes of time and direction."""
        label = layer_label(node, kind + "Cell")
        bb, hx = importer.block_builder, node.args[1] if kind == "lstm" else [node.args[1]]
        weights = [*node.args[2:], *(node.kwargs[name] for name in ("b_ih", "b_hh") if name in node.kwargs)]
        cell = self._weights(label, kind, [weight for weight in weights if weight is not None])
        value = bb.emit(relax.op.expand_dims(importer.env[node.args[0]], 0))
        states = [bb.emit(relax.op.expand_dims(importer.env[state], 0)) for state in hx]
        _, finals = emit_layer(bb, label, [cell], [False], value, states)
        results = [bb.emit(relax.op.squeeze(final, [0])) for (final,) in finals]
        return tuple(results) if STATES[kind] > 1 else results[0]

    def _weights(self, label: str, kind: str, nodes: Sequence[fx.Node]) -> Cell:
        """Return the cell of the weights ``(w_ih, w_hh [, b_ih, b_hh])``, gates in ONNX's order."""
        names = tuple(node.name for node in nodes)
        if names not in self._cells:
            unknown = [name for name in names if name not in self._tensors]
            if unknown:
                raise ModelError(
                    f"{label}: its weight '{unknown[0]}' is computed by the model; accepted: parameters. "
                    "Remove parametrizations (torch.nn.utils.parametrize.remove_parametrizations)"
                )
            arrays = [_ordered(label, kind, self._tensors[name]) for name in names]
            bias = np.concatenate(arrays[2:]) if len(arrays) > 2 else None
            self._cells[names] = make_cell(label, kind, *arrays[:2], bias)
        return self._cells[names]


def _ordered(label: str, kind: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype != torch.float32:
        raise ModelError(f"{label}: has {tensor.dtype} weights; accepted: torch.float32. Convert with model.float()")
    array = tensor.detach().cpu().numpy()
    gates = array.reshape(GATES[kind], -1, *array.shape[1:])
    return gates[_GATE_ORDER[kind]].reshape(array.shape)


def _part(bb: relax.BlockBuilder, state: relax.Expr, first: int, count: int, every: int) -> relax.Expr:
    """Return the initial states of one layer from those of all."""
    if count == every:
        return state
    return bb.emit(relax.op.strided_slice(state, [0], [first], [first + count], assume_inbound=True))
