"""Turn a recurrent ONNX model into one that computes a frame, or a few, and hands its state in and out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tvm_dual.errors import ModelError

#: Inputs of a recurrent node that give the states before the first step.
STATE_SLOTS = {"GRU": (5,), "LSTM": (5, 6)}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_SUFFIX = "_next"


@dataclass(frozen=True)
class State:
    """One recurrent state of a streaming model.

    Attributes
    ----------
    input, output : str
        The graph input that takes the state before the frame, and the graph output that gives it after.
    shape : tuple of int
        (1, 1, hidden), float32. The state before the first frame is zero.
    """

    input: str
    output: str
    shape: tuple[int, ...]


def streaming_model(model: onnx.ModelProto, steps: int = 1) -> onnx.ModelProto:
    """Fix batch at one and time at `steps`, and make every recurrent state an input and an output.

    Parameters
    ----------
    model : onnx.ModelProto
        A model with one float32 input of shape (batch, time, features) or (time, batch, features), whose GRU and
        LSTM layers run forward in time from zero.
    steps : int
        Frames per call. More than one need a model whose only open extent is time.

    Returns
    -------
    onnx.ModelProto
        A new model with the same weights. The arithmetic on shapes, which fixed shapes make constant, and the
        transpositions that move nothing are gone. `recurrent_states` lists its states.

    Raises
    ------
    ModelError
        If the model has several inputs, a recurrent layer that cannot be streamed, or another number of open extents
        than `steps` needs.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initial]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ModelError(f"a streaming model has one input, this one has {len(inputs)} ({names})")
    unknown = [dim for dim in inputs[0].type.tensor_type.shape.dim if not dim.HasField("dim_value")]
    if steps > 1 and len(unknown) != 1:
        raise ModelError(
            f"input {inputs[0].name!r} leaves {len(unknown)} extents open; a sequence of {steps} steps needs one, time"
        )
    for dim in unknown:
        dim.dim_value = steps
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _fold_until_stable(result)
    for index, node in enumerate(n for n in graph.node if n.op_type in STATE_SLOTS):
        _expose_states(graph, node, index)
    _drop_idle_transposes(result)
    drop_dead(graph)
    del graph.value_info[:]
    result.CopyFrom(onnx.shape_inference.infer_shapes(result))
    onnx.checker.check_model(result)
    return result


def recurrent_states(model: onnx.ModelProto) -> tuple[State, ...]:
    """List the states of a model that `streaming_model` made, in graph order."""
    outputs = {value.name for value in model.graph.output}
    return tuple(
        State(value.name, value.name + _SUFFIX, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
        for value in model.graph.input
        if value.name + _SUFFIX in outputs
    )


def _fold_until_stable(model: onnx.ModelProto) -> None:
    """Evaluate what depends on constants and fixed shapes alone, as long as that finds anything."""
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes = _shapes(inferred.graph)
        before = len(model.graph.node)
        _fold(model, shapes)
        if len(model.graph.node) == before:
            return


def _fold(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        fixed_shape = node.op_type == "Shape" and node.input[0] in shapes
        known = all(name in constants for name in node.input if name) and node.op_type not in _RANDOM
        if outputs & set(node.output) or not (fixed_shape or known):
            kept.append(node)
            continue
        feeds = {name: constants[name] for name in node.input if name and not fixed_shape}
        if fixed_shape:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
        values = ReferenceEvaluator(node, opsets={o.domain: o.version for o in model.opset_import}).run(None, feeds)
        for name, value in zip(node.output, values, strict=False):
            if name:
                constants[name] = np.asarray(value)
                graph.initializer.append(numpy_helper.from_array(constants[name], name))
    del graph.node[:]
    graph.node.extend(kept)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The values whose shape is fully known."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _expose_states(graph: onnx.GraphProto, node: onnx.NodeProto, index: int) -> None:
    """Make the initial states of one recurrent node graph inputs, and its final states graph outputs."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    label = node.name or f"{node.op_type} number {index}"
    direction = attributes.get("direction", b"forward").decode()
    if direction != "forward":
        raise ModelError(f"{label} runs {direction}; only a forward layer can be streamed frame by frame")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    hidden = constants[node.input[2]].shape[-1] if node.input[2] in constants else attributes["hidden_size"]
    for position, slot in enumerate(STATE_SLOTS[node.op_type]):
        node.input.extend([""] * (slot + 1 - len(node.input)))
        node.output.extend([""] * (position + 2 - len(node.output)))
        start = node.input[slot]
        if start and (start not in constants or np.any(constants[start])):
            raise ModelError(f"{label} starts from the state {start!r}; only layers that start from zero are streamed")
        name = f"state{index}_{'hc'[position]}"
        final = node.output[position + 1]
        if final and final in {value.name for value in graph.output}:
            raise ModelError(f"{label} already gives its state as the output {final!r}; pass the model without it")
        if final:
            _rename(graph, final, name + _SUFFIX)
        node.input[slot], node.output[position + 1] = name, name + _SUFFIX
        shape = [1, 1, int(hidden)]
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        graph.output.append(helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.FLOAT, shape))


def _drop_idle_transposes(model: onnx.ModelProto) -> None:
    """Remove transpositions that only exchange axes of length one."""
    graph = model.graph
    shapes = _shapes(onnx.shape_inference.infer_shapes(model).graph)
    outputs = {value.name for value in graph.output}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in shapes]:
        shape = shapes[node.input[0]]
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
        long = [axis for axis in order if shape[axis] != 1]
        if long == sorted(long) and tuple(shape[a] for a in order) == shape and node.output[0] not in outputs:
            graph.node.remove(node)
            _rename(graph, node.output[0], node.input[0])


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every reader of one value read another."""
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = new


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove the nodes and constants of `graph` that nothing reads, in place."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
