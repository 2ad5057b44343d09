"""Rewrites of a streaming ONNX model that let a peer run it faster."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.peers.streaming import drop_dead
from tvm_dual.errors import ModelError


def expand_gru(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write each GRU of a streaming model as two matrix products and its gate arithmetic.

    Parameters
    ----------
    model : onnx.ModelProto
        What `streaming_model` returned.

    Returns
    -------
    onnx.ModelProto
        The same function without GRU nodes. Quantizers that know matrix products but no GRU can then quantize it.
        A GRU with `linear_before_reset=0`, clipping or unusual activations stays as it is.

    Raises
    ------
    ModelError
        If the model is written for an operator set before 13.
    """
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version < 13:
        raise ModelError(f"the model uses operator set {version}; expanding a GRU needs 13 or later, convert it first")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for index, node in enumerate(graph.node):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = attributes.get("linear_before_reset") == 1 and not {"clip", "activations"} & attributes.keys()
        known = node.op_type == "GRU" and all(name in weights for name in node.input[1:4])
        nodes.extend(_gru_nodes(graph, node, weights, f"gru{index}") if plain and known else [node])
    del graph.node[:]
    graph.node.extend(nodes)
    drop_dead(graph)
    del graph.value_info[:]
    result.CopyFrom(onnx.shape_inference.infer_shapes(result))
    onnx.checker.check_model(result)
    return result


def int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of every matrix product as int8 with one scale per output channel.

    Parameters
    ----------
    model : onnx.ModelProto
        A model whose MatMul nodes have constant float32 weights of shape (inputs, outputs).

    Returns
    -------
    onnx.ModelProto
        The model with int8 weights and a DequantizeLinear behind each; rounding is to the nearest, symmetric.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = {node.input[1] for node in graph.node if node.op_type == "MatMul"} & tensors.keys()
    nodes = []
    for name in sorted(names):
        weights = numpy_helper.to_array(tensors[name])
        scale = np.maximum(np.abs(weights).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        codes = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
        zero = np.zeros(scale.shape, np.int8)
        parts = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        graph.initializer.remove(tensors[name])
        graph.initializer.extend(
            numpy_helper.from_array(a, n) for a, n in zip((codes, scale, zero), parts, strict=False)
        )
        nodes.append(helper.make_node("DequantizeLinear", parts, [name], axis=1))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result)
    return result


def _gru_nodes(
    graph: onnx.GraphProto, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], prefix: str
) -> list[onnx.NodeProto]:
    """The nodes that replace one GRU; their matrices and biases are added to the graph."""
    w, r, b = (numpy_helper.to_array(weights[name])[0] for name in node.input[1:4])
    hidden = r.shape[1]
    for name, array in (("w", w.T), ("r", r.T), ("bw", b[: 3 * hidden]), ("br", b[3 * hidden :])):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{prefix}_{name}"))
    sizes = {"split": [2 * hidden, hidden], "halves": [hidden, hidden], "shape": [1, 1, 1, hidden]}
    for name, size in sizes.items():
        graph.initializer.append(numpy_helper.from_array(np.array(size, np.int64), f"{prefix}_{name}"))
    x, h, y, y_h = node.input[0], node.input[5], node.output[0], node.output[1]
    make = helper.make_node

    def name(part: str) -> str:
        return f"{prefix}_{part}"

    nodes = [
        make("MatMul", [x, name("w")], [name("xw")], name=name("xw")),
        make("Add", [name("xw"), name("bw")], [name("xb")]),
        make("MatMul", [h, name("r")], [name("hr")], name=name("hr")),
        make("Add", [name("hr"), name("br")], [name("hb")]),
        make("Split", [name("xb"), name("split")], [name("xg"), name("xn")], axis=-1),
        make("Split", [name("hb"), name("split")], [name("hg"), name("hn")], axis=-1),
        make("Add", [name("xg"), name("hg")], [name("gates")]),
        make("Sigmoid", [name("gates")], [name("zr")]),
        make("Split", [name("zr"), name("halves")], [name("z"), name("reset")], axis=-1),
        make("Mul", [name("reset"), name("hn")], [name("rn")]),
        make("Add", [name("xn"), name("rn")], [name("pre")]),
        make("Tanh", [name("pre")], [name("n")]),
        # h' = n + z (h - n) needs one operation fewer than (1 - z) n + z h.
        make("Sub", [h, name("n")], [name("gap")]),
        make("Mul", [name("z"), name("gap")], [name("move")]),
        make("Add", [name("n"), name("move")], [y_h]),
    ]
    if y:
        nodes.append(make("Reshape", [y_h, name("shape")], [y]))
    return nodes
