"""ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from benchmarks.peers.base import Engine
from benchmarks.peers.expand import expand_recurrent
from benchmarks.peers.streaming import recurrent_states, streaming_model
from schedules.cpu import native_isa


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime in fp32, or int8 by its own dynamic quantization.

    Parameters
    ----------
    model_path, precision, threads, sequence
        See `Engine`.
    per_channel : bool
        int8 only: one weight scale per output channel, or one per matrix. One per matrix is some 15 % faster and
        less exact.
    expand : bool, optional
        Write recurrent layers as matrix products; by default for int8 alone. Dynamic quantization knows no GRU and
        leaves it in fp32: expanded, NSNet2 takes 0.44 ms a frame instead of 1.19. In fp32 it made no difference
        that held over several runs.
    """

    precisions = ("fp32", "int8")

    def __init__(
        self,
        model_path: str,
        precision: str,
        threads: int,
        sequence: int = 1,
        *,
        per_channel: bool = True,
        expand: bool | None = None,
    ):
        super().__init__(model_path, precision, threads, sequence)
        self._per_channel = per_channel
        model = streaming_model(onnx.load(model_path), sequence)
        states = recurrent_states(model)
        self._expand = precision == "int8" if expand is None else expand
        if self._expand:
            model = expand_recurrent(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning between the steps of a turn is the fastest; the harness waits until it has died down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        source = _quantized(model, per_channel) if precision == "int8" else model.SerializeToString()
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._bind(model, states)
        self.reset()

    def _bind(self, model: onnx.ModelProto, states: tuple) -> None:
        """Bind all buffers once: two sets of states take turns as input and output (0.02 ms a frame saved)."""
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        features = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        outputs = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
        self._given = features
        self._input, self._output = make(np.zeros(features, np.float32)), make(np.zeros(outputs, np.float32))
        self._states = [[make(np.zeros(s.shape, np.float32)) for s in states] for _ in range(2)]
        self._bindings = []
        for turn in range(2):
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(model.graph.input[0].name, self._input)
            binding.bind_ortvalue_output(model.graph.output[0].name, self._output)
            for state, before, after in zip(states, self._states[turn], self._states[1 - turn], strict=False):
                binding.bind_ortvalue_input(state.input, before)
                binding.bind_ortvalue_output(state.output, after)
            self._bindings.append(binding)

    def step(self, frame: np.ndarray) -> np.ndarray:
        self._input.update_inplace(frame.reshape(self._given))
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return self._output.numpy().reshape(self.shape).copy()

    def reset(self) -> None:
        self._turn = 0
        for state in self._states[0]:
            state.update_inplace(np.zeros(state.shape(), np.float32))

    def facts(self) -> dict:
        if self.precision == "fp32":
            return {}
        scales = "per channel" if self._per_channel else "per matrix"
        return {"weight_scales": scales, "form": "products" if self._expand else "layer"}


def _quantized(model: onnx.ModelProto, per_channel: bool) -> bytes:
    """The model after dynamic quantization, serialized."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        # Signed weights: VNNI multiplies unsigned activations with signed weights; unsigned ones took 5 % longer.
        # Without VNNI sums of two products saturate at 16 bits, and ONNX Runtime's guide says to take 7 of the 8 bits.
        isa = native_isa()
        reduced = isa is None or not isa.vnni
        quantize_dynamic(model, path, per_channel=per_channel, reduce_range=reduced, weight_type=QuantType.QInt8)
        return path.read_bytes()
