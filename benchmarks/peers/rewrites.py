"""Rewrites of an ONNX model that let a peer run it faster; `expand` has the one of recurrent layers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


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
