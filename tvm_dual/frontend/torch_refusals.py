"""What the import of a PyTorch module refuses, by name: what it would get wrong or leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from tvm_dual.errors import ModelError
from tvm_dual.frontend.images import FIXED
from tvm_dual.frontend.torch_layers import layer_label
from tvm_dual.frontend.torch_ops import ACCEPTED, PACKED

_INPUT_TYPES = (torch.float32, torch.int64, torch.int32)
#: Modes of padding whose import is right.
_PADDING = ("constant", "reflect")
#: Layers of images.
_CONVOLUTIONS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.max_pool2d.default,
)


def refuse_modules(model: torch.nn.Module) -> None:
    """Name the first recurrent module of a form that is not supported."""
    for name, module in model.named_modules():
        label = f"layer '{name or type(module).__name__}' ({type(module).__name__})"
        if isinstance(module, torch.nn.RNN):
            raise ModelError(f"{label}: not supported; accepted recurrent layers: {ACCEPTED}")
        if isinstance(module, torch.nn.LSTM) and module.proj_size:
            raise ModelError(
                f"{label}: proj_size is {module.proj_size}; accepted: 0. Train the model without a projection"
            )


def refuse_inputs(inputs: Sequence) -> None:
    """Name the first example input that is no tensor of an accepted dtype."""
    for i, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor) or value.dtype not in _INPUT_TYPES:
            found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelError(f"example input {i}: {found}; accepted: tensors of float32, int64 or int32")


def refuse_nodes(program: ExportedProgram) -> None:
    """Name the first operator whose import would give a wrong result, and inputs of other dtypes."""
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or value.dtype not in _INPUT_TYPES:
                found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
                raise ModelError(f"input '{node.name}': {found}; accepted: tensors of float32, int64 or int32")
        if node.target in (aten.lstm.data, aten.gru.data, aten._pack_padded_sequence.default):
            raise ModelError(f"{layer_label(node, 'packed')}: {PACKED}")
        if node.target == aten.pad.default and "mode" in (given := _arguments(node)) and given["mode"] not in _PADDING:
            raise ModelError(
                f"{layer_label(node, 'pad')}: mode {given['mode']!r}; accepted: {', '.join(_PADDING)}. "
                "Train the model with zeros around its images, or pad them before the model"
            )
        if node.target in _CONVOLUTIONS:
            image = node.args[0].meta["val"].shape
            if not all(isinstance(extent, int) for extent in image[2:]):
                raise ModelError(f"{layer_label(node, 'conv')}: reads an image of the shape {tuple(image)}; {FIXED}")
        if node.target in (aten.rnn_tanh.input, aten.rnn_relu.input):
            raise ModelError(f"{layer_label(node, 'rnn')}: not supported; accepted recurrent layers: {ACCEPTED}")


def _arguments(node: torch.fx.Node) -> dict:
    """Return a node's arguments by name, as far as they are given."""
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def refuse_changes(program: ExportedProgram) -> None:
    """Name the first buffer or input that is written to, which the import would leave out."""
    for spec in program.graph_signature.output_specs:
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            raise ModelError(
                f"model: forward changes '{spec.target}'; accepted: modules that leave buffers and inputs as they are. "
                "Return what changes as an output"
            )


def refuse_weights(parameters: Iterable[tuple[str, torch.Tensor]], buffers: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Name the first weight of another dtype, or that holds NaN, or infinity: buffers may, such as masks."""
    for tensors, wrong in ((parameters, lambda t: ~torch.isfinite(t)), (buffers, torch.isnan)):
        for name, tensor in tensors:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if tensor.dtype != torch.float32:
                raise ModelError(f"weight '{name}': {tensor.dtype}; accepted: float32. Convert with model.float()")
            if wrong(tensor).any():
                raise ModelError(
                    f"weight '{name}': holds NaN or infinity; accepted: numbers. Train or load the model anew"
                )
