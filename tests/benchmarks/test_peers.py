"""Every peer computes what the original ONNX graph computes, frame by frame."""

import importlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.nsnet2 import model_path
from benchmarks.peers.base import EngineError
from benchmarks.peers.expand import expand_recurrent
from benchmarks.peers.streaming import recurrent_states, streaming_model
from tvm_dual.errors import ModelError

FRAMES = 50
ENGINES = {
    "torch": "torch_peer:TorchEngine",
    "onnxruntime": "onnxruntime_peer:OnnxRuntimeEngine",
    "openvino": "openvino_peer:OpenVinoEngine",
}
# Rounding differs between engines in fp32; int8 has 7 to 8 bits for each weight and activation.
LARGEST = {"fp32": 1e-4, "int8": 0.25}
MEAN = {"fp32": 1e-6, "int8": 0.01}


def make(engine, path, precision, **extra):
    module, name = ENGINES[engine].split(":")
    return getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)(str(path), precision, 1, **extra)


def run(engine, frames):
    return np.stack([engine.step(frame) for frame in frames])


def original(model, frames):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: frames[None]})[0].reshape(len(frames), -1)


@pytest.fixture(scope="module")
def nsnet2():
    """The real model, 50 frames of log-power-like features, and what the original graph makes of them."""
    path = model_path()
    frames = (np.random.default_rng(0).normal(size=(FRAMES, 513)) * 2 - 5).astype(np.float32)
    return path, frames, original(onnx.load(path), frames)


@pytest.mark.parametrize("rewrite", [lambda model: model, expand_recurrent], ids=["gru", "expanded"])
def test_streaming_model_equals_the_original(nsnet2, rewrite):
    import onnxruntime

    path, frames, expected = nsnet2
    model = rewrite(streaming_model(onnx.load(path)))
    assert not {"Shape", "Gather", "ConstantOfShape", "Slice", "Concat"} & {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    states = recurrent_states(model)
    assert [state.shape for state in states] == [(1, 1, 600)] * 2
    given, made = {state.input: np.zeros(state.shape, np.float32) for state in states}, []
    for frame in frames:
        output, *after = session.run(["output", *(s.output for s in states)], {"input": frame[None, None], **given})
        made.append(output.reshape(-1))
        given = {state.input: value for state, value in zip(states, after, strict=False)}
    np.testing.assert_allclose(np.stack(made), expected, atol=1e-5)


def test_weights_are_untouched(nsnet2):
    model = onnx.load(nsnet2[0])
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in streaming_model(model).graph.initializer}
    large = [name for name, array in before.items() if array.ndim > 1]
    assert len(large) == 10
    for name in large:
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_peer_agrees_and_carries_its_state(nsnet2, engine, precision):
    path, frames, expected = nsnet2
    peer = make(engine, path, precision)
    first = run(peer, frames)
    assert first.dtype == np.float32 and first.shape == expected.shape
    error = np.abs(first - expected)
    assert error.max() < LARGEST[precision] and error.mean() < MEAN[precision]
    assert np.abs(peer.step(frames[0]) - first[0]).max() > 1e-3, "the state was not carried"
    peer.reset()
    np.testing.assert_allclose(run(peer, frames[:5]), first[:5], atol=1e-6)


def test_bf16_runs_or_says_what_is_missing(nsnet2):
    import openvino

    path, frames, expected = nsnet2
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert np.abs(run(make("openvino", path, "bf16"), frames) - expected).mean() < 0.01
    else:
        with pytest.raises(EngineError, match="no bf16 instructions"):
            make("openvino", path, "bf16")


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_precision_is_refused(engine):
    with pytest.raises(EngineError, match="does not run 'fp8'"):
        make(engine, "absent.onnx", "fp8")


def lstm_model(path, direction="forward", start=0.0):
    """A small LSTM with a linear layer, (batch, time, 6) to (batch, time, 4), that starts from `start`."""
    rng = np.random.default_rng(1)
    ways = 2 if direction == "bidirectional" else 1
    arrays = {
        "w": rng.normal(size=(ways, 32, 6)), "r": rng.normal(size=(ways, 32, 8)), "b": rng.normal(size=(ways, 64)),
        "h": np.full((ways, 1, 8), start), "c": np.full((ways, 1, 8), start), "m": rng.normal(size=(8, 4)),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "w", "r", "b", "", "h", "c"], ["s"], hidden_size=8, direction=direction),
        helper.make_node("Squeeze", ["s", "axis"], ["q"]),
        helper.make_node("MatMul", ["q", "m"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("x", onnx.TensorProto.FLOAT, ["batch", "time", 6])]
    outputs = [value("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_lstm_streams_too(tmp_path, engine):
    path = tmp_path / "lstm.onnx"
    model = lstm_model(path)
    frames = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    expected = original(model, frames)
    np.testing.assert_allclose(run(make(engine, path, "fp32"), frames), expected, atol=1e-4)
    assert np.abs(run(make(engine, path, "int8"), frames) - expected).max() < 0.5


@pytest.mark.parametrize("change", [{"direction": "bidirectional"}, {"start": 0.5}])
def test_a_layer_that_cannot_be_streamed_is_named(tmp_path, change):
    with pytest.raises(ModelError, match="LSTM number 0"):
        streaming_model(lstm_model(tmp_path / "lstm.onnx", **change))
