"""The engines on models that keep no state: one image, or spectrogram, a call."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import openvino
import torch
from onnx import helper, numpy_helper
from torch import nn

from benchmarks.harness import EngineSpec
from benchmarks.levels import without_amx
from benchmarks.peers.base import Engine
from benchmarks.peers.openvino_peer import latency_options
from schedules.cpu import cpu_flags, native_isa
from tvm_dual.errors import ModelError

#: Images that the ranges of activations are taken from.
QUANTIZATION_CALLS = 200
#: First version of ONNX whose quantized weights have a scale for each channel.
_SCALE_PER_CHANNEL = 13


def image_peer_specs(model_path: str, threads: int) -> tuple[EngineSpec, ...]:
    """Every fp32 peer for one model without states, PyTorch in both layouts of images; bf16 where the CPU has it."""
    peers = (
        ("torch", "fp32", "TorchImageEngine", {"channels_last": False}),
        ("torch", "fp32", "TorchImageEngine", {"channels_last": True}),
        ("onnxruntime", "fp32", "OnnxRuntimeImageEngine", {}),
        ("openvino", "fp32", "OpenVinoImageEngine", {}),
    )
    if has_bf16():
        peers += (
            ("torch", "bf16", "TorchImageEngine", {"channels_last": True}),
            ("openvino", "bf16", "OpenVinoImageEngine", {}),
        )
    return tuple(
        EngineSpec(
            *(engine, "dense", precision, f"benchmarks.peers.images:{name}"),
            {"model_path": str(model_path), "precision": precision, "threads": threads, **extra},
        )
        for engine, precision, name, extra in peers
    )


def has_bf16() -> bool:
    """Whether bf16 instructions exist, and are left to peers: without them bf16 is slower than fp32."""
    return not without_amx() and bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def quantized_peer_specs(model_path: str, images: np.ndarray, folder: Path, threads: int) -> tuple[EngineSpec, ...]:
    """int8 peers: ONNX Runtime's static quantization of a model, run by itself and by OpenVINO.

    Parameters
    ----------
    model_path : str
    images : ndarray, float32, (calls, *input shape)
        What the ranges of values are taken from.
    folder : Path
        Receives the quantized model.
    threads : int
    """
    path = quantize_images(model_path, images, folder / "int8.onnx")
    arguments = {"model_path": str(path), "precision": "int8", "threads": threads}
    peers = (("onnxruntime", "OnnxRuntimeImageEngine"), ("openvino", "OpenVinoImageEngine"))
    return tuple(
        EngineSpec(engine, "dense", "int8", f"benchmarks.peers.images:{name}", arguments) for engine, name in peers
    )


def quantize_images(model_path: str, images: np.ndarray, path: Path) -> Path:
    """Write a model with 8-bit weights, one scale per channel, and activations, as ONNX Runtime's guide says."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):
        """Gives the images one by one."""

        def __init__(self) -> None:
            name = onnx.load(model_path).graph.input[0].name
            self._images = ({name: image[None]} for image in images[:QUANTIZATION_CALLS])

        def get_next(self) -> dict | None:
            return next(self._images, None)

    prepared, current = path.with_suffix(".prepared.onnx"), path.with_suffix(".current.onnx")
    model = onnx.load(model_path)
    if max(entry.version for entry in model.opset_import if not entry.domain) < _SCALE_PER_CHANNEL:
        # Older operators have one scale for all channels; OpenVINO refuses more.
        model = onnx.version_converter.convert_version(model, _SCALE_PER_CHANNEL)
    onnx.save(model, current)
    quant_pre_process(str(current), prepared)
    # Without VNNI sums of two products saturate at 16 bits, and the guide says to take 7 of the 8 bits.
    isa = native_isa()
    reduced = isa is None or not isa.vnni
    weights = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": reduced}
    quantize_static(prepared, path, Reader(), activation_type=QuantType.QUInt8, **weights)
    return path


class _ImageEngine(Engine):
    """An engine that carries nothing from call to call."""

    precisions = ("fp32", "int8")

    def reset(self) -> None:
        """Do nothing: there is no state."""


class OnnxRuntimeImageEngine(_ImageEngine):
    """ONNX Runtime; a model quantized by itself is its int8."""

    def __init__(self, model_path: str, precision: str, threads: int):
        super().__init__(model_path, precision, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name

    def step(self, frame: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._name: frame[None]})[0].reshape(self.shape)


class OpenVinoImageEngine(_ImageEngine):
    """OpenVINO with the latency hint; in int8 of a model that ONNX Runtime quantized.

    bf16 is refused on a CPU without bf16 instructions: OpenVINO would emulate them.
    """

    precisions = ("fp32", "bf16", "int8")

    def __init__(self, model_path: str, precision: str, threads: int):
        super().__init__(model_path, precision, threads)
        core = openvino.Core()
        model = core.read_model(model_path)
        model.reshape([extent.get_length() if extent.is_static else 1 for extent in model.input(0).partial_shape])
        options = latency_options(core, precision, threads)
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def step(self, frame: np.ndarray) -> np.ndarray:
        self._request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(frame[None])))
        self._request.infer()
        return self._request.get_output_tensor(0).data.reshape(self.shape).copy()


class TorchImageEngine(_ImageEngine):
    """PyTorch in fp32 or bf16, traced and optimized for inference.

    Parameters
    ----------
    model_path, precision, threads
        See `Engine`; `ModelError` if the model has an operator without a counterpart here.
    channels_last : bool
        Layout of images in memory: NHWC instead of NCHW.
    """

    precisions = ("fp32", "bf16")

    def __init__(self, model_path: str, precision: str, threads: int, *, channels_last: bool):
        super().__init__(model_path, precision, threads)
        torch.set_num_threads(threads)
        model = onnx.load(model_path)
        self._channels_last = channels_last
        extents = model.graph.input[0].type.tensor_type.shape.dim
        self._type = torch.bfloat16 if precision == "bf16" else torch.float32
        example = torch.zeros([extent.dim_value or 1 for extent in extents], dtype=self._type)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network = _Graph(model.graph, layout, self._type).eval()
        with torch.inference_mode(), warnings.catch_warnings():
            # Both are announced as deprecated; they are still the fastest that PyTorch offers here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._network = torch.jit.optimize_for_inference(torch.jit.trace(network, example))

    @torch.inference_mode()
    def step(self, frame: np.ndarray) -> np.ndarray:
        return self._network(torch.from_numpy(frame)[None].to(self._type)).float().numpy().reshape(self.shape)

    def facts(self) -> dict:
        return {"form": "NHWC" if self._channels_last else "NCHW"}


class _Graph(nn.Module):
    """The nodes of an ONNX graph, one after another."""

    def __init__(self, graph: onnx.GraphProto, layout: torch.memory_format, type_: torch.dtype):
        super().__init__()
        self._nodes = [(node.op_type, list(node.input), node.output[0], _attributes(node)) for node in graph.node]
        for kind, *_ in self._nodes:
            if kind not in _OPERATORS:
                raise ModelError(f"{kind} has no counterpart in the PyTorch peer; it knows {', '.join(_OPERATORS)}")
        self._source, self._result, self._layout = graph.input[0].name, graph.output[0].name, layout
        self._weights = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.int64:  # axes and shapes, which are no tensors to PyTorch
                self._weights[tensor.name] = array.tolist()
                continue
            value = torch.tensor(array)
            value = value.to(type_) if value.is_floating_point() else value
            self._weights[tensor.name] = value.contiguous(memory_format=layout) if value.dim() == 4 else value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the graph's first output."""
        values = self._weights | {self._source: x}
        for kind, inputs, output, attributes in self._nodes:
            found = _OPERATORS[kind](*(values[name] for name in inputs), **attributes)
            # The result is left as it lies: whoever reads it wants plain order.
            moved = kind == "Transpose" and output != self._result
            values[output] = found.contiguous(memory_format=self._layout) if moved else found
        return values[self._result]


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _conv(x, weight, bias, *, pads, strides, dilations, group, **_):
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        top, left, bottom, right = pads
        x, pads = nn.functional.pad(x, (left, right, top, bottom)), [0] * len(pads)
    return torch.conv2d(x, weight, bias, strides, pads[:half], dilations, group)


def _batch_norm(x, gamma, beta, mean, variance, *, epsilon=1e-5, **_):
    return nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _unsqueeze(x, given=None, *, axes=None):
    for axis in axes if given is None else given:
        x = x.unsqueeze(axis)
    return x


#: By ONNX operator: from operands and attributes to the result.
_OPERATORS = {
    "Add": torch.add,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Flatten": lambda x, *, axis=1: x.flatten(axis),
    "Gemm": lambda x, weight, bias, **given: torch.addmm(bias, x, weight.t() if given.get("transB") else weight),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "MaxPool": lambda x, *, kernel_shape, strides, **_: nn.functional.max_pool2d(x, kernel_shape, strides),
    "ReduceMax": lambda x, *, axes, keepdims: x.amax(axes, bool(keepdims)),
    "Relu": torch.relu,
    "Reshape": torch.reshape,
    "Sigmoid": torch.sigmoid,
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
}
