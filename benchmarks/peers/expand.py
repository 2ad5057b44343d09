"""Recurrent layers of a streaming ONNX model written as matrix products."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.peers.streaming import STATE_SLOTS, drop_dead
from tvm_dual.errors import ModelError


def expand_recurrent(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write each GRU and LSTM of a streaming model as matrix products and its gate arithmetic.

    Parameters
    ----------
    model : onnx.ModelProto
        What `streaming_model` returned.

    Returns
    -------
    onnx.ModelProto
        The same function without recurrent nodes; steps of time follow one another, the input's product is one for
        all of them. Quantizers that know matrix products but no recurrent layers can then quantize it. A GRU with
        `linear_before_reset=0`, peepholes, clipping or unusual activations stay as they are.

    Raises
    ------
    ModelError
        If the model is written for an operator set before 13.
    """
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version < 13:
        raise ModelError(
            f"the model uses operator set {version}; expanding recurrent layers needs 13 or later, convert it first"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for index, node in enumerate(graph.node):
        if node.op_type in STATE_SLOTS and _is_plain(node) and all(name in weights for name in node.input[1:4] if name):
            nodes.extend(_Layer(graph, node, weights, f"{node.op_type.lower()}{index}").expanded(_steps(model, node)))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_dead(graph)
    del graph.value_info[:]
    result.CopyFrom(onnx.shape_inference.infer_shapes(result))
    onnx.checker.check_model(result)
    return result


def _is_plain(node: onnx.NodeProto) -> bool:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    reset = node.op_type != "GRU" or attributes.get("linear_before_reset") == 1
    return reset and not {"clip", "activations", "input_forget"} & attributes.keys() and not "".join(node.input[7:])


def _steps(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Return the length of the sequence that a node reads."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in (*graph.input, *graph.value_info)}
    return values[node.input[0]].type.tensor_type.shape.dim[0].dim_value


@dataclass
class _Layer:
    """One layer on its way to being expanded; its matrices and biases are added to the graph."""

    graph: onnx.GraphProto
    node: onnx.NodeProto
    weights: dict[str, onnx.TensorProto]
    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def expanded(self, steps: int) -> list[onnx.NodeProto]:
        """Return the nodes that replace the layer."""
        kind, node = self.node.op_type, self.node
        w, r = (numpy_helper.to_array(self.weights[name])[0] for name in node.input[1:3])
        hidden = r.shape[1]
        b = numpy_helper.to_array(self.weights[node.input[3]])[0] if node.input[3] else np.zeros(2 * len(w), "float32")
        given, recurrent = b[: len(w)], b[len(w) :]
        if kind == "LSTM":
            given, recurrent = given + recurrent, None
        self._constant("w", w.T)
        self._constant("r", r.T)
        self._constant("bw", given)
        if recurrent is not None:
            self._constant("br", recurrent)
        sizes = {"halves": [hidden, hidden], "ones": [1] * steps, "shape": [steps, 1, 1, hidden]}
        sizes["split"] = [2 * hidden, hidden] if kind == "GRU" else [3 * hidden, hidden]
        sizes["thirds"] = [hidden] * 3
        for name, size in sizes.items():
            self._constant(name, np.array(size, np.int64))
        all_inputs = self._add(self._emit("MatMul", "xw", node.input[0], self._name("w")), "xb", self._name("bw"))
        inputs = [all_inputs] if steps == 1 else self._split("x", all_inputs, "ones", *map(str, range(steps)), axis=0)
        count = len(STATE_SLOTS[kind])
        states, taken = list(node.input[5 : 5 + count]), []
        for t, given_now in enumerate(inputs):
            # The last step's states are the layer's.
            names = list(node.output[1 : 1 + count]) if t == steps - 1 else None
            tag = f"{t}_" if steps > 1 else ""
            states = (self._gru if kind == "GRU" else self._lstm)(tag, given_now, *states, results=names)
            taken.append(states[0])
        if node.output[0]:
            whole = taken[0] if steps == 1 else self._emit("Concat", "ys", *taken, axis=0)
            self.nodes.append(helper.make_node("Reshape", [whole, self._name("shape")], [node.output[0]]))
        return self.nodes

    def _gru(self, tag: str, x: str, h: str, results: list[str] | None) -> list[str]:
        emit, split = self._emit, self._split
        product = self._add(emit("MatMul", f"{tag}hr", h, self._name("r")), f"{tag}hb", self._name("br"))
        (xg, xn), (hg, hn) = split(f"{tag}x_", x, "split", "g", "n"), split(f"{tag}h_", product, "split", "g", "n")
        z, reset = split(f"{tag}g_", emit("Sigmoid", f"{tag}zr", self._add(xg, f"{tag}gates", hg)), "halves", "z", "r")
        pre = self._add(xn, f"{tag}pre", emit("Mul", f"{tag}rn", reset, hn))
        new = emit("Tanh", f"{tag}n", pre)
        # h' = n + z (h - n) needs one operation fewer than (1 - z) n + z h.
        move = emit("Mul", f"{tag}move", z, emit("Sub", f"{tag}gap", h, new))
        return [self._emit("Add", f"{tag}after", new, move, result=results and results[0])]

    def _lstm(self, tag: str, x: str, h: str, c: str, results: list[str] | None) -> list[str]:
        emit = self._emit
        gates = self._add(x, f"{tag}gates", emit("MatMul", f"{tag}hr", h, self._name("r")))
        ruled, candidate = self._split(f"{tag}p_", gates, "split", "iof", "c")
        i, o, f = self._split(f"{tag}g_", emit("Sigmoid", f"{tag}iof", ruled), "thirds", "i", "o", "f")
        kept = emit("Mul", f"{tag}kept", f, c)
        taken = emit("Mul", f"{tag}taken", i, emit("Tanh", f"{tag}c", candidate))
        cell = emit("Add", f"{tag}cell", kept, taken, result=results and results[1])
        return [emit("Mul", f"{tag}after", o, emit("Tanh", f"{tag}out", cell), result=results and results[0]), cell]

    def _name(self, part: str) -> str:
        return f"{self.prefix}_{part}"

    def _constant(self, name: str, array: np.ndarray) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), self._name(name)))

    def _add(self, a: str, name: str, b: str) -> str:
        return self._emit("Add", name, a, b)

    def _emit(self, kind: str, name: str, *inputs: str, result: str | None = None, **attributes) -> str:
        """Add a node; returns its output, `result` or named as the node."""
        output = result or self._name(name)
        self.nodes.append(helper.make_node(kind, inputs, [output], self._name(name), **attributes))
        return output

    def _split(self, name: str, value: str, sizes: str, *parts: str, axis: int = -1) -> list[str]:
        outputs = [self._name(f"{name}{part}") for part in parts]
        self.nodes.append(helper.make_node("Split", [value, self._name(sizes)], outputs, axis=axis))
        return outputs
