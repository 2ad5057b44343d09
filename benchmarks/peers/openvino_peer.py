"""OpenVINO."""

from __future__ import annotations

import numpy as np
import onnx
import openvino

from benchmarks.peers.base import Engine, EngineError
from benchmarks.peers.expand import expand_recurrent
from benchmarks.peers.rewrites import int8_weights
from benchmarks.peers.streaming import recurrent_states, streaming_model


def latency_options(core: openvino.Core, precision: str, threads: int) -> dict:
    """Return the options of a model that is called one frame at a time.

    Raises
    ------
    EngineError
        If `precision` is bf16 and the CPU has no such instructions: OpenVINO would emulate them.
    """
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise EngineError(
            "this CPU has no bf16 instructions (avx512_bf16 or amx_bf16); OpenVINO offers " + ", ".join(capabilities)
        )
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }


class OpenVinoEngine(Engine):
    """OpenVINO with the latency hint: fp32, bf16, or int8 weights with activations quantized as they come.

    Parameters
    ----------
    model_path, precision, threads, sequence
        See `Engine`. bf16 is refused on a CPU without bf16 instructions: OpenVINO would emulate them, about seven
        times slower than fp32.
    expand : bool
        Write recurrent layers as matrix products. int8 needs it (OpenVINO compresses no recurrent weights); in fp32
        on one thread it saves some 7 %.

    Notes
    -----
    int8 keeps int8 weights and quantizes activations in groups. The model that ONNX Runtime's dynamic quantizer
    makes is no use here: OpenVINO runs it slower than fp32.
    """

    precisions = ("fp32", "bf16", "int8")

    def __init__(self, model_path: str, precision: str, threads: int, sequence: int = 1, *, expand: bool = True):
        super().__init__(model_path, precision, threads, sequence)
        core = openvino.Core()
        options = latency_options(core, precision, threads)
        model = streaming_model(onnx.load(model_path), sequence)
        states = recurrent_states(model)
        if expand:
            model = expand_recurrent(model)
        if precision == "int8":
            model = int8_weights(model)
            # Of 0 (off), 32, 64, 128 and 600, 64 was the fastest.
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 64
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
        self._bind(compiled, model, states)
        self.reset()

    def _bind(self, compiled: openvino.CompiledModel, model: onnx.ModelProto, states: tuple) -> None:
        """Two requests whose states are each other's: nothing is bound or copied between frames."""
        source, target = model.graph.input[0], model.graph.output[0].name
        self._input = np.zeros([d.dim_value for d in source.type.tensor_type.shape.dim], np.float32)
        self._given = self._input.reshape(self.shape)
        shared = openvino.Tensor(self._input, shared_memory=True)
        self._states = [[openvino.Tensor(np.zeros(s.shape, np.float32)) for s in states] for _ in range(2)]
        self._requests, self._outputs = [], []
        for turn in range(2):
            request = compiled.create_infer_request()
            request.set_tensor(source.name, shared)
            for state, before, after in zip(states, self._states[turn], self._states[1 - turn], strict=False):
                request.set_tensor(state.input, before)
                request.set_tensor(state.output, after)
            self._requests.append(request)
            self._outputs.append(request.get_tensor(target).data.reshape(self.shape))

    def step(self, frame: np.ndarray) -> np.ndarray:
        self._given[...] = frame
        self._requests[self._turn].infer()
        output = self._outputs[self._turn].copy()
        self._turn = 1 - self._turn
        return output

    def reset(self) -> None:
        self._turn = 0
        for state in self._states[0]:
            state.data[...] = 0

    def facts(self) -> dict:
        return {"weight_scales": "per channel"} if self.precision == "int8" else {}
