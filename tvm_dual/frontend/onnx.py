"""ONNX to Relax, recurrent layers kept whole.

TVM's own importer does the work; it knows no recurrent layers, so converters for GRU and LSTM are
added here. Each layer and direction becomes one call; see `tvm_dual.frontend.recurrent`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import reduce
from math import inf
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from tvm import IRModule, relax
from tvm.error import OpNotImplemented
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tvm_dual.errors import ModelError
from tvm_dual.frontend.extents import with_fixed_images, with_one_step
from tvm_dual.frontend.images import refuse_empty_images, refuse_images
from tvm_dual.frontend.interface import IMPORTER_ERRORS, first_line, with_interface
from tvm_dual.frontend.onnx_refusals import ACTIVATIONS, REVERSE, graph_inputs, refuse_unsupported
from tvm_dual.frontend.recurrent import emit_layer, join, make_cell

#: Operators that make larger zeros of zeros.
_ARRANGING = {
    f"relax.{name}"
    for name in ("broadcast_to", "concat", "expand_dims", "permute_dims", "reshape", "squeeze", "strided_slice")
}

#: Operators of any number of operands; TVM writes them one behind another to reduce them.
_PAIRWISE = {"Max": relax.op.maximum, "Min": relax.op.minimum, "Sum": relax.op.add}


class _Importer(ONNXGraphImporter):
    """TVM's importer, with the recurrent layers it lacks, and clips as operators that passes know."""

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        known = onnx.GraphProto()
        known.node.extend(node for node in graph.node if node.op_type not in ACTIVATIONS)
        super()._check_for_unsupported_ops(known)

    def _convert_operator(self, op_name, inputs, attrs, opset):
        if op_name in ACTIVATIONS:
            return _convert_recurrent(self.bb, op_name, inputs, attrs)
        if op_name == "Clip" and (bounds := _clip_bounds(inputs, attrs, opset)):
            return relax.op.clip(inputs[0], *bounds)
        if op_name in _PAIRWISE:
            return reduce(lambda one, other: self.bb.normalize(_PAIRWISE[op_name](one, other)), list(inputs))
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
    calibration: Iterable | None = None,
) -> IRModule:
    """Import an ONNX model.

    Parameters
    ----------
    source : path or onnx.ModelProto
    streaming : bool
        Fix batch and time at 1 and make every recurrent state an input and an output of ``main``.
    calibration : iterable, optional
        The data that fixes what a model of images leaves open; see `tvm_dual.frontend.extents.with_fixed_images`.

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
    refuse_empty_images(model.graph)
    model = with_fixed_images(model, calibration)
    refuse_unsupported(model.graph)
    refuse_images(model)
    model = with_one_step(model) if streaming else model
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    try:
        # TVM prints all that goes into an operator that it fails at.
        with redirect_stdout(io.StringIO()):
            module = _Importer({}, "float32", sanitize=True).from_onnx(_named(model.graph), opset)
    except OpNotImplemented as error:
        raise ModelError(
            f"model: {str(error).strip().splitlines()[-1]}; neither TVM nor tvm_dual imports them. "
            "Export the model without them"
        ) from error
    except IMPORTER_ERRORS as error:
        raise ModelError(f"model: TVM cannot import it: {first_line(error)}") from error
    names = [value.name for value in graph_inputs(model.graph)]
    return with_interface(module, names, [value.name for value in model.graph.output], streaming)


def _named(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Return the graph with names for layers, by which errors call them, and for open extents."""
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    for node in result.node:
        node.name = node.name or node.output[0]
    for value in result.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            # TVM would take all that have no name for one and the same.
            if not (dim.dim_value or dim.dim_param):
                dim.dim_param = f"{value.name}_{axis}"
    return result


def _constant(value, label: str) -> np.ndarray:
    if not isinstance(value, GenericConst):
        raise ModelError(f"{label}: computed by the graph; accepted: weights that are constants of the model")
    return value.value.numpy()


def _clip_bounds(inputs, attrs, opset: int) -> tuple[float, float] | None:
    """Return the bounds of a clip of floats; None if they are not known, or are no numbers."""
    if str(inputs[0].ty.dtype.dtype) != "float32":
        return None
    if opset < 11:
        bounds = [attrs.get("min"), attrs.get("max")]
    else:
        bounds = [inputs[i] if i < len(inputs) else None for i in (1, 2)]
        if any(bound is not None and not isinstance(bound, GenericConst) for bound in bounds):
            return None
        bounds = [None if bound is None else bound.value.numpy().item() for bound in bounds]
    low, high = (limit if bound is None else float(bound) for bound, limit in zip(bounds, (-inf, inf), strict=True))
    # Where the lower one is larger, ONNX and TVM differ in which counts.
    return (low, high) if low <= high else None


def _is_zero(bb: relax.BlockBuilder, value: relax.Expr) -> bool:
    """Whether a value consists of zeros, whatever its shape."""
    if isinstance(value, relax.Var):
        value = bb.lookup_binding(value)
    if isinstance(value, GenericConst):
        return not value.value.numpy().any()
    if isinstance(value, relax.Tuple):
        return all(_is_zero(bb, field) for field in value.fields)
    name = getattr(getattr(value, "op", None), "name", "")
    return name == "relax.zeros" or (name in _ARRANGING and _is_zero(bb, value.args[0]))


def _convert_recurrent(bb: relax.BlockBuilder, kind: str, inputs, attrs) -> relax.Tuple:
    """Emit an ONNX layer: ``x: (t, b, k) -> (Y: (t, d, b, h), Y_h: (d, b, h) [, Y_c: (d, b, h)])``."""
    label = f"layer '{attrs['tvm_custom']['name']}' ({kind})"
    inputs = [inputs[i] if i < len(inputs) else None for i in range(7)]
    weights = _constant(inputs[1], f"{label} weight")
    recurrences = _constant(inputs[2], f"{label} recurrence weight")
    biases = [None] * len(weights) if inputs[3] is None else _constant(inputs[3], f"{label} bias")
    late_reset = bool(int(attrs.get("linear_before_reset", 0)))
    direction = attrs.get("direction", b"forward")
    reverse = REVERSE[direction.decode() if isinstance(direction, bytes) else direction]
    if not len(weights) == len(recurrences) == len(biases) == len(reverse):
        raise ModelError(
            f"{label}: weights of {len(weights)}, {len(recurrences)} and {len(biases)} directions; "
            f"accepted: {len(reverse)} of each. Export the model anew"
        )
    cells = [
        make_cell(label, kind.lower(), *arrays, late_reset) for arrays in zip(weights, recurrences, biases, strict=True)
    ]
    hidden = int(attrs.get("hidden_size", cells[0].hidden))
    if hidden != cells[0].hidden:
        raise ModelError(
            f"{label}: hidden_size is {hidden}, its recurrence weight is of {cells[0].hidden} units; accepted: the "
            "same in both. Export the model anew"
        )
    states = [inputs[5]] if kind == "GRU" else [inputs[5], inputs[6]]
    # Exporters make zeros of the shape of the input, by arithmetic on shapes that TVM cannot compile.
    states = [None if state is not None and _is_zero(bb, state) else state for state in states]
    outputs, finals = emit_layer(bb, label, cells, reverse, inputs[0], states)
    return relax.Tuple([join(bb, outputs, 1), *(join(bb, final, 0) for final in finals)])
