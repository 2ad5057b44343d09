"""PyTorch."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from benchmarks.peers.base import Engine
from benchmarks.peers.streaming import recurrent_states, streaming_model
from benchmarks.peers.torch_layers import KINDS, CellLayer, PairedLayer, linear
from tvm_dual.errors import ModelError


class TorchEngine(Engine):
    """PyTorch in fp32, or int8 by its own dynamic quantization (one weight scale per output channel).

    Notes
    -----
    The form is the fastest of those measured on NSNet2 with one thread. fp32: traced and `optimize_for_inference`
    with `GRUCell` 1.71 ms, the same with linear layers 1.83, frozen 2.20, eager 2.36, `nn.GRU` 2.20 to 2.58,
    `addmv` as slow as frozen, `torch.compile` slower than eager. int8: traced and frozen with a pair of linear
    layers 0.46 ms, quantized `GRUCell` 0.48, quantized `nn.GRU` 0.53, eager 0.96 and up; the `x86` backend is as
    fast as `fbgemm`, `onednn` takes 0.75.

    A layer of 1500 units in sequences of 35: a pair of linear layers takes 0.67 (LSTM) and 0.94 (GRU) of the time of
    `nn.LSTM` and `nn.GRU` in fp32, and as long in int8. Step by step a pair, a cell and `nn.LSTM` take as long in int8;
    in fp32 `nn.LSTM` takes nine times as long as its cell.
    """

    precisions = ("fp32", "int8")

    def __init__(self, model_path: str, precision: str, threads: int, sequence: int = 1):
        super().__init__(model_path, precision, threads, sequence)
        torch.set_num_threads(threads)
        model = streaming_model(onnx.load(model_path), sequence)
        self._zeros = [torch.zeros(1, state.shape[-1]) for state in recurrent_states(model)]
        network = _Chain(model, CellLayer if precision == "fp32" and sequence == 1 else PairedLayer).eval()
        shape = model.graph.input[0].type.tensor_type.shape.dim
        example = (torch.zeros(sequence, shape[-1].dim_value), *self._zeros)
        with torch.inference_mode(), warnings.catch_warnings():
            # Both are announced as deprecated; they are still the fastest that PyTorch offers here.
            warnings.simplefilter("ignore", DeprecationWarning)
            if precision == "int8":
                self._network = torch.jit.freeze(torch.jit.trace(_quantized(network), example))
            else:
                self._network = torch.jit.optimize_for_inference(torch.jit.trace(network, example))
        self.reset()

    @torch.inference_mode()
    def step(self, frame: np.ndarray) -> np.ndarray:
        output, *self._states = self._network(torch.from_numpy(frame).view(self.sequence, -1), *self._states)
        return output.view(self.shape).numpy()

    def reset(self) -> None:
        self._states = list(self._zeros)

    def facts(self) -> dict:
        return {"weight_scales": "per channel"} if self.precision == "int8" else {}


class _Clamp(nn.Module):
    def __init__(self, low: float | None, high: float | None):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, self.low, self.high)


class _Chain(nn.Module):
    """The layers of a streaming ONNX model whose nodes follow one another, with the states passed through.

    Parameters
    ----------
    model : onnx.ModelProto
        What `streaming_model` returned.
    recurrent : type
        Form of recurrent layers, from `torch_layers`.
    """

    def __init__(self, model: onnx.ModelProto, recurrent: type[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList()
        weights = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
        current = {model.graph.input[0].name}
        for node in model.graph.node:
            if not current & set(node.input):
                raise ModelError(
                    f"{node.op_type} {node.name!r} does not read the layer before it; only a chain of layers "
                    "is built in PyTorch"
                )
            self._append(node, weights, recurrent)
            current = {name for name in node.output if name}

    def _append(self, node: onnx.NodeProto, weights: dict[str, torch.Tensor], recurrent: type[nn.Module]) -> None:
        kind = node.op_type
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        simple = {"Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh}
        if kind == "MatMul" and node.input[1] in weights:
            matrix = weights[node.input[1]].t()
            self.layers.append(linear(matrix, torch.zeros(len(matrix))))
        elif kind == "Add" and self.layers and isinstance(self.layers[-1], nn.Linear):
            self.layers[-1].bias.data += next(weights[name] for name in node.input if name in weights)
        elif kind in simple:
            self.layers.append(simple[kind]())
        elif kind == "Clip":
            bounds = [weights[name].item() if name else None for name in (*node.input[1:], "", "")[:2]]
            self.layers.append(_Clamp(*bounds))
        elif kind in KINDS and not {"clip", "activations"} & attributes.keys() and not "".join(node.input[7:]):
            if kind == "GRU" and attributes.get("linear_before_reset") != 1:
                raise ModelError(f"GRU {node.name!r} has linear_before_reset=0, which PyTorch does not compute")
            self.layers.append(recurrent(kind, [weights.get(name) for name in node.input[1:4]]))
        elif kind != "Squeeze":
            raise ModelError(f"{kind} {node.name!r} in this form has no counterpart in the PyTorch peer")

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map (steps, features) and states (1, hidden) to (steps, outputs) and the next states, float32."""
        given, taken = list(states), []
        for layer in self.layers:
            if isinstance(layer, (CellLayer, PairedLayer)):
                x, *after = layer(x, *(given.pop(0) for _ in range(layer.states)))
                taken += after
            else:
                x = layer(x)
        return (x, *taken)


def _quantized(network: nn.Module) -> nn.Module:
    """The network with dynamically quantized linear layers."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    torch.backends.quantized.engine = "x86"
    return quantize_dynamic(network, {nn.Linear: per_channel_dynamic_qconfig})
