"""The suites on Fashion-MNIST: reading, training, judging, and peers in 8 bits."""

from __future__ import annotations

import gzip

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks import fashion_vgg
from benchmarks.fashion import SHORT, accuracy
from benchmarks.fashion_data import NETWORKS, Fashion, read_fashion
from benchmarks.peers.images import OnnxRuntimeImageEngine, OpenVinoImageEngine, TorchImageEngine, quantize_images
from examples.fashion.train import onnx_bytes, train
from tvm_dual.errors import DataError


def write_part(folder, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the two files of a part, random."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
    for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        content = bytes(header) + values.astype(np.uint8).tobytes()
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    return images, labels


def test_images_are_scaled_and_labels_are_kept(tmp_path):
    images, labels = write_part(tmp_path, "t10k", 10_000)
    found = read_fashion("t10k", tmp_path)
    assert found.images.shape == (10_000, 1, 28, 28) and found.images.dtype == np.float32
    np.testing.assert_allclose(found.images[:3, 0] * 0.353 + 0.286, images[:3] / 255, atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)


def test_missing_and_short_files_are_named(tmp_path):
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        read_fashion("train", tmp_path)
    write_part(tmp_path, "t10k", 12)
    with pytest.raises(DataError, match="7840000"):
        read_fashion("t10k", tmp_path)


def test_a_checkpoint_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"examples/fashion/train\.py"):
        fashion_vgg.run(1, SHORT, lambda *_: None)


def test_accuracy_counts_the_highest_output():
    assert accuracy(np.array([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 1.0]]), np.array([1, 0, 1, 1])) == 75


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, tmp_path_factory):
    """Return a network after one step of gradient descent, and its ONNX file."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = NETWORKS[request.param]().to(memory_format=torch.channels_last)
    data = Fashion(rng.standard_normal((5004, 1, 28, 28)).astype("float32"), rng.integers(0, 10, 5004))
    before = [p.detach().clone() for p in network.parameters()]
    train(network, data, epochs=1, batch=4, rate=0.01, decay=0)
    assert any((a != b).any() for a, b in zip(before, network.parameters(), strict=True))
    path = tmp_path_factory.mktemp("fashion") / f"{request.param}.onnx"
    path.write_bytes(onnx_bytes(network))
    return network, path


def test_every_peer_computes_the_trained_network(trained):
    network, path = trained
    images = np.random.default_rng(1).standard_normal((2, 1, 28, 28)).astype("float32")
    with torch.inference_mode():
        wanted = network.eval()(torch.from_numpy(images)).numpy()
    for engine, options in (
        (OnnxRuntimeImageEngine, {}),
        (OpenVinoImageEngine, {}),
        (TorchImageEngine, {"channels_last": True}),
    ):
        peer = engine(str(path), "fp32", 1, **options)
        np.testing.assert_allclose([peer.step(image) for image in images], wanted, rtol=1e-3, atol=1e-4)


def test_quantized_peers_come_close(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(5408, 4)
    )
    (tmp_path / "small.onnx").write_bytes(onnx_bytes(network))
    images = np.random.default_rng(1).standard_normal((8, 1, 28, 28)).astype("float32")
    path = quantize_images(str(tmp_path / "small.onnx"), images, tmp_path / "int8.onnx")
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"image": images[:1]})
    for engine in (OnnxRuntimeImageEngine, OpenVinoImageEngine):
        found = engine(str(path), "int8", 1).step(images[0])
        np.testing.assert_allclose(found, wanted[0], atol=0.1 * np.abs(wanted).max())
