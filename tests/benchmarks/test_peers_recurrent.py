"""Peers of a recurrent layer agree with PyTorch, word by word and in sequences, with their states carried along."""

import importlib

import numpy as np
import onnx
import pytest
import torch

from benchmarks.harness import EngineSpec, Harness
from benchmarks.peers import peer_specs
from benchmarks.peers.expand import expand_recurrent
from benchmarks.peers.streaming import streaming_model
from benchmarks.word_model import LAYERS, WordModel, layer_onnx
from tvm_dual.errors import DataError, ModelError

HIDDEN, CALLS, SEQUENCE = 20, 12, 4
# int8 has 7 to 8 bits for each weight and activation; a layer of 20 units averages little out.
LARGEST = {"fp32": 1e-5, "int8": 0.05}


def word_model(cell):
    torch.manual_seed(5)
    layer = LAYERS[cell](HIDDEN, HIDDEN, batch_first=True).eval().requires_grad_(False)
    embedding = np.random.default_rng(6).standard_normal((30, HIDDEN)).astype(np.float32)
    return WordModel(cell, tuple(map(str, range(30))), embedding, layer, np.zeros(30, np.float32))


def engine(spec):
    module, name = spec.factory.split(":")
    return getattr(importlib.import_module(module), name)(**spec.arguments)


def every_peer():
    for cell in LAYERS:
        for sequence in (1, SEQUENCE):
            for spec in peer_specs("", 1, sequence, cell):
                if spec.precision != "bf16":
                    extra = {n: v for n, v in spec.arguments.items() if n in ("per_channel", "expand")}
                    yield pytest.param(cell, spec, id=f"{cell}-{sequence}-{spec.engine}-{spec.precision}-{extra}")


@pytest.mark.parametrize("cell, spec", list(every_peer()))
def test_peer_agrees_with_torch(tmp_path, cell, spec):
    model, path = word_model(cell), tmp_path / "layer.onnx"
    onnx.save(layer_onnx(model), path)
    words = np.arange(CALLS)
    expected = model.states(words[None])[0]
    spec.arguments["model_path"] = str(path)
    peer = engine(spec)
    frames = model.embedding[words]
    blocks = frames if spec.sequence == 1 else frames.reshape(-1, SEQUENCE, HIDDEN)
    found = np.stack([peer.step(block) for block in blocks])
    assert found.shape == blocks.shape and found.dtype == np.float32
    assert np.abs(found.reshape(expected.shape) - expected).max() < LARGEST[spec.precision]
    assert np.abs(peer.step(blocks[0]) - found[0]).max() > 1e-3, "the state was not carried"
    peer.reset()
    np.testing.assert_allclose(peer.step(blocks[0]), found[0], atol=1e-6)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_expanded_layers_have_one_product_for_the_input(cell, steps):
    model = expand_recurrent(streaming_model(layer_onnx(word_model(cell)), steps))
    kinds = [node.op_type for node in model.graph.node]
    assert cell not in kinds and kinds.count("MatMul") == 1 + steps
    # The state's matrix is there once, however many steps read it.
    large = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert len(large) == 2


@pytest.mark.parametrize("cell", LAYERS)
def test_a_layer_without_bias_is_expanded_too(cell):
    import onnxruntime

    original = layer_onnx(word_model(cell))
    original.graph.node[0].input[3] = ""
    streamed = streaming_model(original, 2)
    rng, found = np.random.default_rng(9), []
    feeds = {
        value.name: rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in streamed.graph.input
    }
    for model in (streamed, expand_recurrent(streamed)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, feeds))
    assert len(found[0]) == (3 if cell == "LSTM" else 2)
    for plain, expanded in zip(*found, strict=True):
        np.testing.assert_allclose(expanded, plain, atol=1e-5)


def test_a_sequence_needs_one_open_extent():
    model = layer_onnx(word_model("GRU"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    with pytest.raises(ModelError, match="2 extents open"):
        streaming_model(model, 5)


class Doubler:
    """Takes sequences of three frames."""

    def step(self, frames):
        assert frames.shape == (3, 2)
        return 2 * frames

    def reset(self):
        pass


def test_the_harness_cuts_sequences_and_counts_frames():
    frames = np.arange(16, dtype=np.float32).reshape(8, 2)
    spec = EngineSpec("doubler", "dense", "fp32", f"{__name__}:Doubler", sequence=3)
    with Harness([spec], settle_s=0) as harness:
        harness.measure(frames, rounds=2, steps=7)
        (row,) = harness.rows()
        (clips,) = harness.outputs({"a": frames, "b": frames[:3]})
    assert row["sequence"] == 3 and row["median_ms"] > 0
    np.testing.assert_array_equal(clips["a"], 2 * frames)
    np.testing.assert_array_equal(clips["b"], 2 * frames[:3])


def test_no_frames_are_refused_for_sequences_too():
    spec = EngineSpec("doubler", "dense", "fp32", f"{__name__}:Doubler", sequence=3)
    with Harness([spec]) as harness, pytest.raises(DataError, match="0 frames"):
        harness.measure(np.zeros((0, 2), np.float32))
