"""What ONNX models leave open, and what they compute of extents, is fixed before the import."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tvm_dual.frontend.test_images import EXACT, onnx_model
from tvm_dual.builder import Builder
from tvm_dual.calibration import call_shapes
from tvm_dual.errors import ModelError
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.metadata import Tensor

OPEN = ["n", 3, "h", "w"]
IMAGES = Tensor("x", (-1, 3, -1, -1))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, "float32")


def read_shape(model, calibration, **arguments) -> tuple[int, ...]:
    (x,) = import_model(model, calibration=calibration, **arguments)["main"].params
    return tuple(map(int, x.ty.shape))


@pytest.mark.parametrize(
    "data, shape",
    [
        ([zeros(5, 2, 3, 8, 7)], (2, 3, 8, 7)),
        ([zeros(5, 3, 8, 7), zeros(1, 1, 3, 8, 7)], (1, 3, 8, 7)),  # without a batch, and with one of 1
        ([zeros(5, 1, 3, 8, 7), zeros(5, 1, 3, 9, 7)], (1, 3, -1, 7)),
        ([{"x": zeros(5, 1, 3, 8, 7)}], (1, 3, 8, 7)),
        ([(zeros(5, 1, 3, 8, 7),)], (1, 3, 8, 7)),
    ],
)
def test_shapes_that_all_calls_agree_on(data, shape):
    assert call_shapes(data, (IMAGES,)) == {"x": shape}


@pytest.mark.parametrize("data", [7, "frames.npz", {"x": zeros(5, 8)}, [None], [{"y": zeros(5, 8)}], [[[1], [2, 3]]]])
def test_what_is_no_calibration_data_is_left_to_its_check(data):
    assert call_shapes(data, (IMAGES,)) == {}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", [OPEN, [-1, 3, "h", None]], ids=str)
def test_open_images_are_those_of_the_data(shape, streaming):
    model = onnx_model(shape)
    assert read_shape(model, [zeros(5, 1, 3, 8, 7)], streaming=streaming) == (1, 3, 8, 7)
    with pytest.raises(ModelError, match=r"\(1, 3, h.*, 7\).*fixed rows and columns.*data of one size"):
        import_model(onnx_model(OPEN), calibration=[zeros(5, 1, 3, 8, 7), zeros(5, 1, 3, 9, 7)], streaming=streaming)


def test_an_open_batch_stays_open_where_calls_differ_in_it():
    batch = import_model(onnx_model(["n", 3, 8, 7]), calibration=[zeros(2, 1, 3, 8, 7), zeros(2, 4, 3, 8, 7)])
    (x,) = batch["main"].params
    assert str(x.ty.shape[0]) == "n"


def test_fixed_extents_are_not_those_of_the_data():
    assert read_shape(onnx_model([1, 3, 8, 7]), [zeros(5, 2, 3, 9, 9)]) == (1, 3, 8, 7)


def test_sequences_of_models_without_images_stay_open():
    node = helper.make_node("Relu", ["x"], ["y"])
    (x,) = import_model(_model([node], ["t", 4], rank=2), calibration=[zeros(2, 3, 4)])["main"].params
    assert str(x.ty.shape[0]) == "t"


def _model(nodes, shape, weights=(), opset: int = 17, rank: int = 4) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _computed(model: onnx.ModelProto, image: np.ndarray) -> None:
    """Compare the library of a model with ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": image})
    found = Builder(model, [image[None]]).build("fp32", options=EXACT)(image)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def conv(source: str, result: str):
    return helper.make_node("Conv", [source, "w"], [result], name=result, pads=[1, 1, 1, 1])


RANDOM = np.random.default_rng(0)
WEIGHTS = {"w": RANDOM.standard_normal((3, 3, 3, 3)).astype("float32")}
IMAGE = RANDOM.standard_normal((1, 3, 8, 7)).astype("float32")


def test_shapes_and_branches_that_follow_from_extents_are_computed():
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["r"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3)],
        )
        for name, operator in (("then", "Sigmoid"), ("else", "Tanh"))
    }
    nodes = [
        conv("x", "c"),
        helper.make_node("Shape", ["c"], ["extents"]),
        helper.make_node("Gather", ["extents", "rows"], ["high"]),
        helper.make_node("Cast", ["high"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["cast"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Concat", ["front", "whole", "back"], ["shape"], axis=0),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("Equal", ["whole", "eight"], ["is_eight"]),
        helper.make_node("If", ["is_eight"], ["y"], **branches),
    ]
    numbers = {"rows": [2], "front": [1, -1], "back": [7], "eight": [8]}
    weights = WEIGHTS | {name: np.array(values, "int64") for name, values in numbers.items()}
    _computed(_model(nodes, OPEN, weights, rank=3), IMAGE)


def test_operators_of_old_versions_are_converted():
    sliced = helper.make_node("Slice", ["c"], ["y"], axes=[2], starts=[1], ends=[5])
    _computed(_model([conv("x", "c"), sliced], OPEN, WEIGHTS, opset=9), IMAGE)


def test_operators_of_many_operands():
    nodes = [conv("x", "a"), conv("a", "b"), helper.make_node("Max", ["a", "x", "b"], ["m"])]
    nodes += [helper.make_node("Sum", ["m", "a", "b"], ["s"]), helper.make_node("Min", ["s", "x"], ["y"])]
    _computed(_model(nodes, OPEN, WEIGHTS), IMAGE)


def test_what_cannot_be_computed_is_named():
    nodes = [conv("x", "c"), helper.make_node("Reshape", ["c", "shape"], ["y"])]
    model = _model(nodes, OPEN, WEIGHTS | {"shape": np.array([5, 5], "int64")}, rank=2)
    with pytest.raises(ModelError, match="model"):
        import_model(model, calibration=[IMAGE[None]])
