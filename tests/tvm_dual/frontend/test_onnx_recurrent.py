"""ONNX LSTM and GRU: every accepted form agrees with ONNX Runtime; what is not accepted is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.tvm_dual.frontend.conftest import compiled_module, normal, stream
from tvm_dual.errors import DataError, ModelError
from tvm_dual.frontend.onnx import import_onnx

GATES = {"GRU": 3, "LSTM": 4}


def recurrent_model(
    kind="LSTM", k=5, h=7, *, direction="forward", bias=True, states=False, name="cell", more=None, **attributes
) -> onnx.ModelProto:
    """Return a model ``x: (time, batch, k) [, h0 [, c0]] -> (y, y_h [, y_c])`` of one layer, all extents open."""
    ways, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
    weights = {"w": normal(ways, gates * h, k), "r": normal(ways, gates * h, h, seed=1)}
    if bias:
        weights["b"] = normal(ways, 2 * gates * h, seed=2)
    weights |= more or {}
    given = ("h0", "c0")[: gates - 2] if states else ()
    inputs = ["x", "w", "r", "b" if bias else "", "", *given]
    for i, extra in enumerate(more or {}):
        inputs += [""] * (8 + i - len(inputs))
        inputs[7 + i] = extra
    outputs = ["y", "y_h", "y_c"][: gates - 1]
    node = helper.make_node(kind, inputs, outputs, name, hidden_size=h, direction=direction, **attributes)
    float32 = TensorProto.FLOAT
    described = [helper.make_tensor_value_info("x", float32, ["time", "batch", k])]
    described += [helper.make_tensor_value_info(name, float32, [ways, "batch", h]) for name in given]
    shapes = {"y": ["time", ways, "batch", h]}
    results = [helper.make_tensor_value_info(n, float32, shapes.get(n, [ways, "batch", h])) for n in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "test", described, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def reference(model: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["LSTM", "GRU"]),
    k=st.integers(1, 20),
    h=st.integers(1, 40),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    bias=st.booleans(),
    states=st.booleans(),
    late_reset=st.integers(0, 1),
    calls=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=2, max_size=3),
)
def test_layers_of_any_form_at_any_length_and_batch(kind, k, h, direction, bias, states, late_reset, calls):
    more = {"linear_before_reset": late_reset} if kind == "GRU" else {}
    model = recurrent_model(kind, k, h, direction=direction, bias=bias, states=states, **more)
    library, sites = compiled_module(import_onnx(model))
    ways = 2 if direction == "bidirectional" else 1
    assert [site.kind for site in sites] == [kind.lower()] * ways
    for time, batch in calls:
        arrays = [normal(time, batch, k, seed=3)]
        arrays += [normal(ways, batch, h, seed=4 + i) for i in range((GATES[kind] - 2) * states)]
        for found, wanted in zip(library(*arrays), reference(model, *arrays), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_an_initial_state_that_the_graph_makes_from_shapes():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Shape", ["ids"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["batch"], axis=0),
        helper.make_node("Concat", ["one", "batch", "hidden"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zero"]),
        helper.make_node("LSTM", ["e", "w", "r", "b", "", "zero", "zero"], ["y"], hidden_size=6),
        helper.make_node("Squeeze", ["y", "one"], ["q"]),
        helper.make_node("MatMul", ["q", "m"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["out"], axis=-1),
    ]
    weights = {"table": normal(11, 4), "w": normal(1, 24, 4), "r": normal(1, 24, 6), "b": normal(1, 48)}
    weights |= {"m": normal(6, 11), "one": np.array([1]), "hidden": np.array([6])}
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["time", "batch"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["time", "batch", 11])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    library, _ = compiled_module(import_onnx(model))
    for shape in ((1, 1), (7, 2)):
        ids = np.random.default_rng(0).integers(0, 11, shape)
        np.testing.assert_allclose(library(ids), reference(model, ids)[0], rtol=0, atol=1e-5)
    ids = np.random.default_rng(1).integers(0, 11, (9, 1))
    streamed, sites = compiled_module(import_onnx(model, streaming=True))
    assert [site.name for site in sites] == ["lstm0", "dense0"]
    np.testing.assert_allclose(stream(streamed, ids), reference(model, ids)[0][:, 0], rtol=0, atol=1e-5)
    for wrong in (11, -1):
        with pytest.raises(DataError, match=rf"'ids'.*{wrong}.*accepted: 0 to 10"):
            streamed.stream()(np.array([wrong]))
    with pytest.raises(DataError, match=r"'ids'.*int32.*accepted.*int64"):
        streamed.stream()(np.array([1], "int32"))


# Streaming.


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("states", [False, True])
def test_states_that_were_outputs_are_states(kind, states):
    model, x = recurrent_model(kind, states=states), normal(6, 1, 5, seed=3)
    library, _ = compiled_module(import_onnx(model, streaming=True))
    zeros = [np.zeros((1, 1, 7), "float32")] * ((GATES[kind] - 2) * states)
    wanted = reference(model, x, *zeros)
    described = library.metadata
    assert [tensor.name for tensor in described.inputs] == ["x"]
    assert [tensor.name for tensor in described.outputs] == ["y"]
    assert [tensor.name for tensor in described.states] == ["state0_h", "state0_c"][: GATES[kind] - 2]
    np.testing.assert_allclose(stream(library, x[:, None]), wanted[0][:, 0, 0], rtol=0, atol=1e-5)
    current = library.initial_state()
    for frame in x:
        _, *current = library(frame[None], *current)
    for found, final in zip(current, wanted[1:], strict=True):
        np.testing.assert_allclose(found, final, rtol=0, atol=1e-5)


def test_a_model_whose_only_output_is_the_state_keeps_it():
    model, x = recurrent_model("GRU"), normal(4, 1, 5, seed=3)
    del model.graph.output[0]
    library, _ = compiled_module(import_onnx(model, streaming=True))
    assert [tensor.name for tensor in library.metadata.outputs] == ["y_h"]
    np.testing.assert_allclose(stream(library, x)[-1], reference(model, x)[0].reshape(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_layers_that_run_backwards_cannot_be_streamed(direction):
    with pytest.raises(ModelError, match=r"cell.*LSTM.*backwards.*accepted.*streaming=False"):
        import_onnx(recurrent_model(direction=direction), streaming=True)


def test_a_fixed_length_is_streamed_in_calls_of_so_many_steps():
    model = recurrent_model("GRU")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    main = import_onnx(model, streaming=True)["main"]
    assert [int(extent) for extent in main.params[0].ty.shape][:2] == [4, 1]
    assert list(main.attrs["input_names"])[1:] == ["state0_h"]


def test_many_units_start_from_zeros_too():
    """TVM folds zeros of at most 1024 elements into constants."""
    main = import_onnx(recurrent_model("LSTM", k=2, h=1100), streaming=True)["main"]
    assert list(main.attrs["input_names"])[1:] == ["state0_h", "state0_c"]
    assert all(not state.numpy().any() and state.shape == (1, 1, 1100) for state in main.attrs["initial_states"])


# What calls and importers refuse.


@pytest.mark.parametrize(
    "shapes, text",
    [
        ([(0, 2, 5), (1, 2, 7), (1, 2, 7)], r"'x'.*\(0, 2, 5\).*from 1 on"),
        ([(3, 0, 5), (1, 0, 7), (1, 0, 7)], r"'x'.*from 1 on"),
        ([(3, 2, 5), (1, 3, 7), (1, 2, 7)], r"'h0'.*3 where 'x' has 2.*accepted.*'batch'"),
        ([(3, 2, 5), (1, 2, 7), (1, 1, 7)], r"'c0'.*1 where 'x' has 2"),
        ([(3, 2, 6), (1, 2, 7), (1, 2, 7)], r"'x'.*\(3, 2, 6\).*accepted"),
        ([(3, 2, 5), (2, 2, 7), (1, 2, 7)], r"'h0'.*accepted"),
        ([(3, 2, 5)], r"1 arrays; accepted: 3 \(x float32"),
    ],
)
def test_calls_whose_extents_do_not_fit(with_states, shapes, text):
    with pytest.raises(DataError, match=text):
        with_states(*(np.zeros(shape, "float32") for shape in shapes))


@pytest.fixture(scope="module")
def with_states():
    """Return an LSTM that takes its states."""
    return compiled_module(import_onnx(recurrent_model(states=True)))[0]


@pytest.mark.parametrize(
    "kind, settings, parts",
    [
        ("LSTM", {"more": {"p": normal(1, 21)}}, ["peephole", "accepted: none"]),
        ("LSTM", {"input_forget": 1}, ["input_forget is 1", "accepted: 0"]),
        ("LSTM", {"clip": 2.0}, ["clip is 2.0", "accepted: 0.0"]),
        ("LSTM", {"layout": 1}, ["layout is 1", "accepted: 0"]),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, ["Relu", "accepted: ['Sigmoid', 'Tanh', 'Tanh']"]),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, ["HardSigmoid", "accepted: ['Sigmoid', 'Tanh']"]),
    ],
)
def test_forms_that_are_not_supported(kind, settings, parts):
    with pytest.raises(ModelError) as caught:
        import_onnx(recurrent_model(kind, **settings))
    for part in (f"layer 'cell' ({kind})", *parts):
        assert part in str(caught.value)


def test_activations_may_be_said_explicitly():
    model = recurrent_model("GRU", direction="bidirectional", activations=["sigmoid", "Tanh"] * 2)
    assert "main" in [target.name_hint for target in import_onnx(model).functions]


def changed(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    """Return the model with another value for a weight."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    "name, array, text",
    [
        ("w", np.full((1, 28, 5), np.nan, "float32"), r"'w'.*NaN"),
        ("r", np.full((1, 28, 7), -np.inf, "float32"), r"'r'.*infinity"),
        ("b", np.full((1, 56), np.inf, "float32"), r"'b'.*infinity"),
        ("w", normal(1, 28, 5).astype("float64"), r"cell.*input weight is float64.*accepted: float32"),
        ("w", normal(1, 21, 5), r"cell.*input weight.*\(21, 5\).*accepted for 7 units: \(28, 5\)"),
        ("w", normal(1, 28, 6), r"cell.*input has the shape.*5.*accepted.*6"),
        ("b", normal(1, 28), r"cell.*bias.*\(28,\).*accepted.*\(56,\)"),
        ("w", normal(2, 28, 5), r"cell.*2, 1 and 1 directions.*accepted: 1"),
    ],
)
def test_weights_that_do_not_fit(name, array, text):
    model = changed(recurrent_model(name=""), name, array)
    model.graph.node[0].name = "cell"
    with pytest.raises(ModelError, match=text):
        import_onnx(model)


def test_a_number_of_units_that_is_not_the_weights():
    model = recurrent_model()
    next(a for a in model.graph.node[0].attribute if a.name == "hidden_size").i = 9
    with pytest.raises(ModelError, match=r"'cell' \(LSTM\): hidden_size is 9, .*7 units; accepted: the same"):
        import_onnx(model)


def test_errors_of_the_importer_print_nothing(capsys):
    with pytest.raises(ModelError, match="bias"):
        import_onnx(changed(recurrent_model(), "b", normal(1, 28)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ["unnamed", "zero"])
def test_open_extents_without_a_name_differ(how):
    model = recurrent_model(states=True)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.ClearField("dim_param")
                if how == "zero":  # what some exporters write for it
                    dim.dim_value = 0
    library, _ = compiled_module(import_onnx(model))
    arrays = [normal(3, 2, 5, seed=3), normal(1, 2, 7, seed=4), normal(1, 2, 7, seed=5)]
    for found, wanted in zip(library(*arrays), reference(recurrent_model(states=True), *arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(DataError, match=r"\(3, 2, 5\) of 'x', \(1, 3, 7\) of 'h0'.*accepted: extents that fit"):
        library(arrays[0], normal(1, 3, 7), normal(1, 3, 7))
    (described,) = import_onnx(model, streaming=True)["main"].params[:1]
    assert [int(extent) for extent in described.ty.shape] == [1, 1, 5]


def test_a_layer_without_a_name_is_called_by_its_output():
    with pytest.raises(ModelError, match=r"layer 'y' \(LSTM\)"):
        import_onnx(changed(recurrent_model(name=""), "b", normal(1, 28)))
