"""The ONNX importer: what it takes agrees with ONNX Runtime, what it does not take it names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tvm_dual.frontend.conftest import compiled_module, normal
from tvm_dual.builder import Builder
from tvm_dual.errors import ModelError
from tvm_dual.frontend.onnx import import_onnx

FRAMES = 12


def make_model(nodes, weights, shape, outputs=("y",)) -> onnx.ModelProto:
    """Return a model with one input ``x`` and float32 weights."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def gru_model(k=9, hidden=20, *, bias=True, state=None, late_reset=1, more_inputs=(), **attributes) -> onnx.ModelProto:
    """Return a model that is one GRU named ``cell``, ``x: (time, 1, k)``."""
    weights = {"w": normal(1, 3 * hidden, k), "r": normal(1, 3 * hidden, hidden, seed=1)}
    if bias:
        weights["b"] = normal(1, 6 * hidden, seed=2)
    if state is not None:
        weights["h0"] = state
    inputs = ["x", "w", "r", "b" if bias else "", "", "h0" if state is not None else ""]
    for slot, name, value in more_inputs:
        inputs[slot] = name
        weights[name] = value
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        "GRU", inputs, ["y"], "cell", hidden_size=hidden, linear_before_reset=late_reset, **attributes
    )
    return make_model([node], weights, ["time", 1, k])


def compiled(model: onnx.ModelProto, precision: str = "fp32", *, streaming: bool = False):
    """Return a library of the exact forms, and the names of its sites."""
    library, sites = compiled_module(import_onnx(model, streaming=streaming), precision)
    return library, [site.name for site in sites]


def reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 3e-6), ("int8", 0.05)])
@pytest.mark.parametrize("late_reset", [0, 1])
@pytest.mark.parametrize("hidden, bias, zero_state", [(20, True, False), (16, False, True), (7, True, True)])
def test_streamed_gru(hidden, bias, zero_state, late_reset, precision, tolerance):
    state = np.zeros((1, 1, hidden), "float32") if zero_state else None
    model = gru_model(9, hidden, bias=bias, state=state, late_reset=late_reset)
    library, names = compiled(model, precision, streaming=True)
    assert names == ["gru0"]
    x = normal(FRAMES, 1, 9, seed=5)
    run = library.stream()
    found = np.stack([run(frame[None]).reshape(-1) for frame in x])
    np.testing.assert_allclose(found, reference(model, x).reshape(FRAMES, hidden), atol=tolerance)


@pytest.mark.parametrize("late_reset", [0, 1])
@pytest.mark.parametrize("with_state", [False, True])
def test_whole_sequences_of_any_length(late_reset, with_state):
    state = normal(1, 1, 6, seed=8) if with_state else None
    model = gru_model(5, 6, state=state, late_reset=late_reset)
    library, _ = compiled(model)
    for frames in (1, 7):
        x = normal(frames, 1, 5, seed=frames)
        np.testing.assert_allclose(library(x), reference(model, x), atol=3e-6)


def test_one_frame_from_a_constant_state_can_be_calibrated():
    model = gru_model(5, 6, state=normal(1, 1, 6, seed=8))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    builder = Builder(model, [normal(20, 5, seed=3)])
    assert [a.shape for a in builder._observations["gru0"].inputs] == [(20, 5), (20, 6)]
    x = normal(1, 1, 5, seed=4)
    np.testing.assert_allclose(builder._dense(x), reference(model, x), atol=3e-6)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 3e-6), ("int8", 0.05)])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", None])
def test_dense_layers(activation, precision, tolerance):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["a"])]
    nodes.append(helper.make_node(activation or "Identity", ["a"], ["h"]))
    nodes.append(helper.make_node("MatMul", ["h", "v"], ["y"]))
    weights = {"w": normal(19, 33), "b": normal(33, seed=1), "v": normal(33, 3, seed=2)}
    model = make_model(nodes, weights, [1, 19])
    library, names = compiled(model, precision)
    assert names == ["dense0", "dense1"]
    for seed in range(4):
        x = normal(1, 19, seed=10 + seed)
        np.testing.assert_allclose(library(x), reference(model, x), atol=tolerance)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias_shape", [(33,), (1, 33), (1,), None])
def test_gemm(transposed, bias_shape):
    weight = normal(19, 33)
    weights = {"w": weight.T.copy() if transposed else weight}
    if bias_shape:
        weights["b"] = normal(*bias_shape, seed=1)
    model = make_model([helper.make_node("Gemm", ["x", *weights], ["y"], transB=transposed)], weights, [1, 19])
    library, names = compiled(model)
    assert names == ["dense0"]
    x = normal(1, 19, seed=7)
    np.testing.assert_allclose(library(x), reference(model, x), atol=3e-6)


def test_a_scalar_addend():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    for value in (np.float32(0.5), normal(1)):
        model = make_model(nodes, {"w": normal(19, 33), "b": value}, [1, 19])
        library, _ = compiled(model)
        x = normal(1, 19, seed=7)
        np.testing.assert_allclose(library(x), reference(model, x), atol=3e-6)


@pytest.mark.parametrize("bounds", [(0, 6), (-0.5, None), (None, 0.25), (None, None), (0.5, -0.5)], ids=str)
def test_clips(bounds):
    names = ["low" if bounds[0] is not None else "", "high" if bounds[1] is not None else ""]
    weights = {name: np.float32(bound) for name, bound in zip(names, bounds, strict=True) if name}
    conv, clip = helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("Clip", ["c", *names], ["y"])
    model = make_model([conv, clip], weights | {"k": normal(4, 2, 3, 3)}, [1, 2, 5, 5])
    x = normal(1, 2, 5, 5, seed=3)
    np.testing.assert_allclose(compiled(model)[0](x), reference(model, x), atol=1e-5)


def test_a_clip_at_what_is_no_number_is_refused():
    clip = helper.make_node("Clip", ["x", "", "high"], ["y"])
    with pytest.raises(ModelError, match="'high': holds NaN"):
        compiled(make_model([clip], {"high": np.float32(np.nan)}, [1, 4]))


def test_clips_of_old_opsets_and_of_computed_bounds():
    clip = helper.make_node("Clip", ["c"], ["y"], min=-0.1, max=0.2)
    model = make_model([helper.make_node("Conv", ["x", "k"], ["c"]), clip], {"k": normal(4, 2, 3, 3)}, [1, 2, 5, 5])
    model.opset_import[0].version = 10
    x = normal(1, 2, 5, 5, seed=3)
    np.testing.assert_allclose(compiled(model)[0](x), reference(model, x), atol=1e-5)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["high"], keepdims=0),
        helper.make_node("Clip", ["x", "", "high"], ["y"]),
    ]
    model = make_model(nodes, {}, [1, 4])
    np.testing.assert_allclose(compiled(model)[0](x[0, 0, :1, :4]), x[0, 0, :1, :4])


def test_layers_left_to_tvm():
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1], group=2),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    model = make_model(nodes, {"k": normal(4, 1, 3, 3), "w": normal(100, 8)}, [1, 2, 5, 5])
    library, names = compiled(model)
    assert names == ["dense0"]
    x = normal(1, 2, 5, 5, seed=3)
    np.testing.assert_allclose(library(x), reference(model, x), atol=1e-5)


def test_a_model_without_any_site():
    model = make_model([helper.make_node("Softmax", ["x"], ["y"])], {}, [1, 6])
    library, names = compiled(model)
    assert names == []
    x = normal(1, 6)
    np.testing.assert_allclose(library(x), reference(model, x), atol=1e-6)


def test_several_rows_per_call_are_left_to_tvm():
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(6, 8)}, [5, 6])
    library, _ = compiled(model)
    x = normal(5, 6, seed=2)
    np.testing.assert_allclose(library(x), reference(model, x), atol=3e-6)


@pytest.mark.parametrize(
    "attributes, parts",
    [
        ({"layout": 1}, ["layout is 1", "0"]),
        ({"activations": ["Relu", "Tanh"]}, ["activations", "Relu", "Sigmoid"]),
        ({"clip": 3.0}, ["clip is 3.0", "0.0"]),
        ({"direction": "sideways"}, ["direction", "sideways", "forward or reverse or bidirectional"]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_unsupported_forms_of_gru(attributes, parts, streaming):
    with pytest.raises(ModelError) as caught:
        import_onnx(gru_model(**attributes), streaming=streaming)
    for part in ("cell", "GRU", "accepted", *parts):
        assert part in str(caught.value)


def test_sequence_lens():
    model = gru_model(more_inputs=[(4, "lens", np.array([3], "int32"))])
    with pytest.raises(ModelError, match=r"cell.*sequence_lens.*accepted"):
        import_onnx(model)


def test_plain_rnn():
    weights = {"w": normal(1, 4, 3), "r": normal(1, 4, 4)}
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], "memory", hidden_size=4)
    with pytest.raises(ModelError, match=r"memory.*RNN.*accepted.*GRU, LSTM"):
        import_onnx(make_model([node], weights, ["time", 1, 3]))


def test_an_operator_that_nobody_imports():
    model = make_model([helper.make_node("Det", ["x"], ["y"])], {}, [1, 3, 3])
    with pytest.raises(ModelError, match="Det"):
        import_onnx(model)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_inputs_of_other_dtypes(kind):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", kind, [1, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"'x'.*accepted.*float32"):
        import_onnx(model)


@pytest.mark.parametrize("content", [b"", b"not a model at all", bytes(range(256)) * 4])
def test_a_file_that_is_not_onnx(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        import_onnx(path)


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(ModelError, match=r"no such file.*accepted"):
        import_onnx(tmp_path / name)


@pytest.mark.parametrize("value", [None, 3, normal(2)])
def test_something_that_is_no_model(value):
    with pytest.raises(ModelError, match="accepted"):
        import_onnx(value)


def test_an_empty_graph():
    model = make_model([], {}, [1, 3], outputs=())
    with pytest.raises(ModelError, match="accepted"):
        import_onnx(model)
