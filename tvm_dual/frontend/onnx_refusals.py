"""What an ONNX model may not hold: each is named before the import."""

from __future__ import annotations

import numpy as np
import onnx

from tvm_dual.errors import ModelError

#: Layers that are converted here, and their default activations in each direction.
ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
#: By direction attribute: which way each of the layer's directions runs.
REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
#: Attributes of a recurrent layer that change nothing when they have these values.
_DEFAULTS = {"layout": 0, "clip": 0.0, "input_forget": 0}
#: Operators that multiply their weights, which infinity among these makes NaN.
_PRODUCTS = {"Conv", "Gemm", "GRU", "LSTM", "MatMul"}
#: Dtypes of inputs: values, and numbers of tokens.
_INPUT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def refuse_unsupported(graph: onnx.GraphProto) -> None:
    """Name the first thing that cannot be imported, or would give a wrong result.

    Raises
    ------
    ModelError
    """
    _refuse_unsupported_recurrent(graph)
    _refuse_other_inputs(graph)
    _refuse_wrong_weights(graph)


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are not weights."""
    initial = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initial]


def _refuse_unsupported_recurrent(graph: onnx.GraphProto) -> None:
    """Name the first recurrent layer whose form would give a wrong result."""
    for node in graph.node:
        label = f"layer '{node.name or node.output[0]}' ({node.op_type})"
        if node.op_type == "RNN":
            raise ModelError(f"{label}: not supported; accepted recurrent layers: GRU, LSTM")
        if node.op_type not in ACTIVATIONS:
            continue
        attributes = {attribute.name: _plain(attribute) for attribute in node.attribute}
        direction = attributes.get("direction", "forward")
        accepted = _DEFAULTS | {"direction": direction}
        if direction not in REVERSE:
            accepted["direction"] = " or ".join(REVERSE)
        directions = len(REVERSE.get(direction, (False,)))
        accepted["activations"] = ACTIVATIONS[node.op_type] * directions
        if [name.lower() for name in attributes.get("activations", [])] == [n.lower() for n in accepted["activations"]]:
            del attributes["activations"]  # their case does not matter
        for name, wanted in accepted.items():
            if attributes.get(name, wanted) != wanted:
                raise ModelError(
                    f"{label}: {name} is {attributes[name]!r}; accepted: {wanted!r}. "
                    "Leave this layer to another compiler, or export the model without it"
                )
        if len(node.input) > 4 and node.input[4]:
            raise ModelError(
                f"{label}: has sequence_lens; accepted: sequences of one length, sequence_lens absent. "
                "Export the model without packed sequences"
            )
        if len(node.input) > 7 and node.input[7]:
            raise ModelError(
                f"{label}: has peephole weights (input P); accepted: none. Train the model without peepholes"
            )


def _plain(attribute: onnx.AttributeProto):
    """Return an attribute's value with strings instead of bytes."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return [v.decode() for v in value] if attribute.type == onnx.AttributeProto.STRINGS else value


def _refuse_other_inputs(graph: onnx.GraphProto) -> None:
    """Name the first input whose dtype libraries do not take."""
    for value in graph_inputs(graph):
        kind = value.type.tensor_type.elem_type
        if kind not in _INPUT_TYPES:
            found = onnx.TensorProto.DataType.Name(kind)
            raise ModelError(f"input '{value.name}': {found}; accepted: float32, int64 and int32 inputs")


def _refuse_wrong_weights(graph: onnx.GraphProto) -> None:
    """Name the first weight that holds NaN, or infinity where that is no mask."""
    multiplied = {name for node in graph.node if node.op_type in _PRODUCTS for name in node.input}
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = onnx.numpy_helper.to_array(tensor)
        if np.isnan(array).any() or (tensor.name in multiplied and np.isinf(array).any()):
            raise ModelError(
                f"weight '{tensor.name}': holds NaN or infinity; accepted: numbers. Train or export the model anew"
            )
