"""The text detector: pages, the network of one size, and what is compared."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import text_detector
from benchmarks.packages import package_file
from tvm_dual.errors import SetupError


def test_pages_are_white_with_dark_words_that_differ():
    found = text_detector.pages(2, seed=0, pixels=96)
    assert found.shape == (2, 3, 96, 96) and found.dtype == np.float32
    assert found.max() == 1 and found.min() < 0
    assert 0.01 < (found < 0.5).mean() < 0.5
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, text_detector.pages(2, seed=0, pixels=96))


def test_the_network_gets_one_size(tmp_path):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, "h", "w"]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "open.onnx")
    model = text_detector.fixed(tmp_path / "open.onnx", 64)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]


def test_agreement_is_the_share_of_pixels_that_both_find():
    published = np.array([[0.9, 0.8, 0.1, 0.0]])
    assert text_detector.agreement(published, published) == 100
    assert text_detector.agreement(np.array([[0.9, 0.2, 0.4, 0.0]]), published) == pytest.approx(100 / 3)
    assert text_detector.agreement(np.zeros((1, 4)), published) == 0


def test_a_package_that_is_missing_is_named_with_its_version(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install --no-deps rapidocr_onnxruntime==1\.4\.4"):
        package_file(text_detector.PACKAGE, *text_detector.MODEL)
