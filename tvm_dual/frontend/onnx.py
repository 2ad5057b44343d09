"""ONNX to Relax, recurrent layers kept whole.

TVM's own importer does the work; it knows no GRU, so a converter for it is added here. The layer
becomes one call of a private function with the attribute ``Composite = "dual.gru"``, whose body is
a plain kernel that defines the layer's meaning and takes sequences of any length.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from tvm import IRModule, relax
from tvm.error import OpNotImplemented
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from schedules.recurrent import gru_reference
from tvm_dual.errors import ModelError
from tvm_dual.frontend.streaming import recurrent_states, streaming_model

#: Attributes of an ONNX GRU that change nothing when they have these values.
_DEFAULTS = {"direction": "forward", "layout": 0, "activations": ["Sigmoid", "Tanh"], "clip": 0.0}


class _Importer(ONNXGraphImporter):
    """TVM's importer, with the recurrent layers it lacks."""

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        known = onnx.GraphProto()
        known.node.extend(node for node in graph.node if node.op_type != "GRU")
        super()._check_for_unsupported_ops(known)

    def _convert_operator(self, op_name, inputs, attrs, opset):
        if op_name == "GRU":
            return _convert_gru(self.bb, inputs, attrs)
        return super()._convert_operator(op_name, inputs, attrs, opset)


def load_onnx(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Read and check an ONNX model.

    Raises
    ------
    ModelError
        If the file is missing, is not ONNX, or is not valid.
    """
    if not isinstance(source, (str, Path, onnx.ModelProto)):
        raise ModelError(
            f"model: found {type(source).__name__}; accepted: a path to an ONNX file, or an onnx.ModelProto"
        )
    if isinstance(source, onnx.ModelProto):
        model, label = source, "the ModelProto"
    else:
        path, label = Path(source), f"'{source}'"
        if not path.is_file():
            raise ModelError(f"model {label}: no such file; accepted: a path to an ONNX file, or an onnx.ModelProto")
        try:
            model = onnx.load(path)
        except (DecodeError, ValueError, OSError) as error:
            raise ModelError(f"model {label}: cannot be read as ONNX ({error}); accepted: an ONNX file") from error
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"model {label}: not a valid ONNX model: {str(error).splitlines()[0]}") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"model {label}: holds no graph; accepted: an ONNX model with nodes and outputs")
    return model


def import_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    streaming: bool = False,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> IRModule:
    """Import an ONNX model.

    Parameters
    ----------
    source : path or onnx.ModelProto
    streaming : bool
        Fix batch and time at 1 and make every recurrent state an input and an output of ``main``.
    shapes : dict, optional
        Fixed input shapes by name, for inputs whose shape the file leaves open.

    Returns
    -------
    IRModule
        ``main`` with the attributes ``num_input`` (inputs without states), ``input_names``,
        ``output_names`` and ``num_states``; inputs are followed by states, outputs likewise.

    Raises
    ------
    ModelError
        If the model cannot be read, or a layer has a form that is not supported.
    """
    model = load_onnx(source)
    _refuse_unsupported_recurrent(model.graph)
    _refuse_other_inputs(model.graph)
    states = ()
    if streaming:
        model = streaming_model(model)
        states = recurrent_states(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    importer = _Importer(dict(shapes or {}), "float32", sanitize=True)
    try:
        module = importer.from_onnx(model.graph, opset)
    except OpNotImplemented as error:
        raise ModelError(
            f"model: {str(error).strip().splitlines()[-1]}; neither TVM nor tvm_dual imports them"
        ) from error
    initial = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initial]
    outputs = [value.name for value in model.graph.output]
    module["main"] = module["main"].with_attrs(
        {
            "num_input": len(names) - len(states),
            "num_states": len(states),
            "input_names": names,
            "output_names": outputs,
        }
    )
    return module


def _refuse_unsupported_recurrent(graph: onnx.GraphProto) -> None:
    """Name the first recurrent layer whose form would give a wrong result."""
    for node in graph.node:
        label = f"layer '{node.name or node.output[0]}' ({node.op_type})"
        if node.op_type in ("LSTM", "RNN"):
            raise ModelError(f"{label}: not supported yet; accepted recurrent layers: GRU")
        if node.op_type != "GRU":
            continue
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            value = value.decode() if isinstance(value, bytes) else value
            value = (
                [v.decode() for v in value]
                if isinstance(value, list) and value and isinstance(value[0], bytes)
                else value
            )
            if attribute.name in _DEFAULTS and value != _DEFAULTS[attribute.name]:
                raise ModelError(
                    f"{label}: {attribute.name} is {value!r}; accepted: {_DEFAULTS[attribute.name]!r}. "
                    "Leave this layer to another compiler, or export the model without it"
                )
        if len(node.input) > 4 and node.input[4]:
            raise ModelError(f"{label}: has sequence_lens; accepted: sequences of one length, sequence_lens absent")


def _refuse_other_inputs(graph: onnx.GraphProto) -> None:
    """Name the first input that is not float32: libraries take nothing else."""
    initial = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name not in initial and kind != onnx.TensorProto.FLOAT:
            found = onnx.TensorProto.DataType.Name(kind)
            raise ModelError(f"input '{value.name}': {found}; accepted: float32 inputs")


def _constant(value, label: str) -> np.ndarray:
    if not isinstance(value, GenericConst):
        raise ModelError(f"{label}: computed by the graph; accepted: weights that are constants of the model")
    return value.value.numpy()


def _convert_gru(bb: relax.BlockBuilder, inputs, attrs):
    """Emit a GRU as one call: ``(x: (t, b, k), h0: (1, b, h)) -> (y: (t, 1, b, h), h_t: (1, b, h))``."""
    name = attrs["tvm_custom"]["name"]
    x = inputs[0]
    weight = _constant(inputs[1], f"layer '{name}' (GRU) weight")[0]
    recurrence = _constant(inputs[2], f"layer '{name}' (GRU) recurrence weight")[0]
    hidden = recurrence.shape[1]
    bias = inputs[3] if len(inputs) > 3 else None
    bias = np.zeros(6 * hidden, "float32") if bias is None else _constant(bias, f"layer '{name}' (GRU) bias")[0]
    time, batch, features = x.ty.shape
    if len(inputs) > 5 and inputs[5] is not None:
        state = inputs[5]
    else:
        state = bb.emit(relax.op.zeros(relax.ShapeExpr([1, batch, hidden]), "float32"))
    linear_before_reset = int(attrs.get("linear_before_reset", 0))

    parameters = [
        relax.Var("x", relax.TensorType([time, batch, features], "float32")),
        relax.Var("h", relax.TensorType([1, batch, hidden], "float32")),
        relax.Var("weight", relax.TensorType(weight.shape, "float32")),
        relax.Var("recurrence", relax.TensorType(recurrence.shape, "float32")),
        relax.Var("bias", relax.TensorType(bias.shape, "float32")),
    ]
    outputs = [
        relax.TensorType([time, 1, batch, hidden], "float32"),
        relax.TensorType([1, batch, hidden], "float32"),
    ]
    kernel = bb.add_func(gru_reference(int(features), hidden, linear_before_reset), f"{name}_reference")
    layer = relax.BlockBuilder()
    with layer.function(name, parameters, private=True):
        with layer.dataflow():
            result = layer.emit_output(relax.call_tir(kernel, parameters, outputs))
        layer.emit_func_output(result)
    function = layer.get()[name].with_attrs(
        {"Composite": "dual.gru", "linear_before_reset": linear_before_reset, "hidden_size": hidden}
    )
    arguments = [x, state, *(relax.const(array) for array in (weight, recurrence, bias))]
    return bb.emit(relax.Call(bb.add_func(function, name), arguments))
