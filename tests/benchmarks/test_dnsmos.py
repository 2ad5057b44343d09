"""The suite dnsmos: its front end, its scores, and peers that compute what the ONNX graph computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.audio.mos import RATE, scores, spectrogram
from benchmarks.image_suite import spread
from benchmarks.peers.base import EngineError
from benchmarks.peers.images import OnnxRuntimeImageEngine, OpenVinoImageEngine, TorchImageEngine
from tvm_dual.errors import ModelError


def test_a_sine_shows_in_its_bin_and_short_clips_are_repeated():
    wave = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    found = spectrogram(wave)
    assert found.shape == (901, 161) and found.dtype == np.float32
    # Bins are 50 Hz apart; a whole second holds whole periods, so that repeating it changes nothing.
    assert (found[1:-1].argmax(axis=1) == 20).all()
    np.testing.assert_array_equal(found, spectrogram(np.tile(wave, 12)))


def test_silence_lies_at_the_floor():
    assert (spectrogram(np.zeros(100)) == -12).all()


def test_scores_are_polynomials_of_the_outputs():
    outputs = np.array([[1.0, 2.0, 3.0]], "float32")
    found = scores("bak_ovr", outputs)
    assert found["bak"] == pytest.approx(-3.73346001 + 2 * 2.70011423 - 4 * 0.17213329)
    assert found["ovr"] == pytest.approx(0.89245468 + 3 * 0.66099817 + 9 * 0.0760027)
    assert scores("sig", outputs)["sig"] == pytest.approx(0.96512280 + 0.65926376 + 0.07572372)


def write_model(path, kind: str = "Relu", pads=(1, 1, 1, 1)):
    """Write a model of the networks' operators, smaller."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 1, 3, 3)), "b": rng.standard_normal(4), "d": rng.standard_normal((4, 2))}
    shape = {"kernel_shape": [3, 3], "pads": list(pads), "strides": [1, 1], "dilations": [1, 1], "group": 1}
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[3]),
        helper.make_node("Transpose", ["u"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["c", "w", "b"], ["y"], **shape),
        helper.make_node(kind, ["y"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMax", ["p"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "d"], ["o"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 9, 7])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype("float32"), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return str(path)


@pytest.mark.parametrize(
    "engine, options",
    [
        (OnnxRuntimeImageEngine, {}),
        (OpenVinoImageEngine, {}),
        (TorchImageEngine, {"channels_last": False}),
        (TorchImageEngine, {"channels_last": True}),
    ],
)
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (1, 2, 0, 1)], ids=["even", "uneven"])
def test_peers_compute_what_the_graph_computes(tmp_path, engine, options, pads):
    path = write_model(tmp_path / "small.onnx", pads=pads)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    peer = engine(path, "fp32", 1, **options)
    for frame in np.random.default_rng(1).standard_normal((3, 9, 7)).astype("float32"):
        (wanted,) = session.run(None, {"x": frame[None]})
        np.testing.assert_allclose(peer.step(frame), wanted[0], rtol=1e-5, atol=1e-5)


def test_what_an_engine_does_not_compute_is_refused(tmp_path):
    with pytest.raises(EngineError, match="does not run 'bf16'; choose one of fp32, int8"):
        OnnxRuntimeImageEngine(write_model(tmp_path / "small.onnx"), "bf16", 1)


def test_a_model_that_pytorch_has_no_form_of_is_refused(tmp_path):
    with pytest.raises(ModelError, match="Elu"):
        TorchImageEngine(write_model(tmp_path / "small.onnx", kind="Elu"), "fp32", 1, channels_last=True)


def test_items_are_taken_from_all_over():
    assert spread(list(range(10)), 3) == [0, 4, 9]
