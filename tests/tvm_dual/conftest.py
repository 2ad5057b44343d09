"""One tiny streaming model and the libraries that several test files look at; building takes seconds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_dual import planner, step_search
from tvm_dual.builder import Builder
from tvm_dual.options import AdvancedOptions

INPUTS, OUTPUTS = 40, 24
#: Microseconds of a layer in its exact forms, behind its little module alone, and with a gate: closed, and more open.
EXACT, ALONE, GATED = 10.0, 1.0, (2.0, 11.0, 20.0)


def tiny_model() -> onnx.ModelProto:
    """Return 40 -> ReLU 48 -> GRU 40 -> ReLU 64 -> sigmoid 24, nearly low-rank weights."""
    rng = np.random.default_rng(0)

    def matrix(n: int, k: int) -> np.ndarray:
        strong = rng.standard_normal((n, 4)) @ rng.standard_normal((4, k)) / 2
        return ((strong + 0.3 * rng.standard_normal((n, k))) / np.sqrt(k)).astype("float32")

    def bias(n: int) -> np.ndarray:
        return (rng.standard_normal(n) * 0.1).astype("float32")

    weights = {
        "w0": matrix(48, INPUTS).T,
        "b0": bias(48),
        "gru_w": matrix(120, 48)[None],
        "gru_r": matrix(120, 40)[None],
        "gru_b": bias(240)[None],
        "axis": np.array([1]),
        "w1": matrix(64, 40).T,
        "b1": bias(64),
        "w2": matrix(OUTPUTS, 64).T,
        "b2": bias(OUTPUTS),
    }
    nodes = []

    def dense(source: str, number: int, kind: str, result: str) -> None:
        product, total = f"m{number}", f"a{number}"
        nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [product]))
        nodes.append(helper.make_node("Add", [product, f"b{number}"], [total]))
        nodes.append(helper.make_node(kind, [total], [result]))

    dense("x", 0, "Relu", "r0")
    attributes = {"hidden_size": 40, "linear_before_reset": 1}
    nodes.append(helper.make_node("GRU", ["r0", "gru_w", "gru_r", "gru_b"], ["g"], "cell", **attributes))
    nodes.append(helper.make_node("Squeeze", ["g", "axis"], ["s"]))
    dense("s", 1, "Relu", "r1")
    dense("r1", 2, "Sigmoid", "y")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", 1, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", 1, OUTPUTS])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="session")
def model() -> onnx.ModelProto:
    """Return the tiny model."""
    return tiny_model()


@pytest.fixture(scope="session")
def calibration() -> list[np.ndarray]:
    """Return 300 correlated frames in two streams."""
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((5, INPUTS))
    return [(rng.standard_normal((150, 5)) @ mixing).astype("float32") for _ in range(2)]


@pytest.fixture(scope="session")
def builder(model, calibration) -> Builder:
    """Return the tiny model, calibrated."""
    return Builder(model, calibration, streaming=True)


@pytest.fixture(scope="session")
def built(builder):
    """Return the library of a build at int8 that searched both rules."""
    return builder.build(options=AdvancedOptions(search_steps=0))


@pytest.fixture(scope="session")
def gated(builder, built):
    """Return a library in which every matrix that can be gated is: what is faster differs between machines."""
    from dataclasses import replace

    sites = []
    for site in built.report.plan.sites:
        forms = {"input": "rows", "hidden": "rows" if site.kind == "gru" else ""}
        sites.append(replace(site, **forms, rule="damage", limit=0.05))
    return builder.build(plan=replace(built.report.plan, sites=tuple(sites)))


@pytest.fixture(scope="session")
def dense(builder):
    """Return the fp32 library with every row computed."""
    return builder.build("fp32", options=AdvancedOptions(mode="dense"))


@pytest.fixture(scope="session")
def run_stream():
    """Return a function from a library and a stream to its outputs, ``(calls, outputs)``."""

    def run(library, stream: np.ndarray) -> np.ndarray:
        step = library.stream()
        return np.stack([step(frame).reshape(-1) for frame in stream])

    return run


@pytest.fixture(scope="session")
def library_file(gated, tmp_path_factory):
    """Return the path of the gated library, exported."""
    return gated.export_library(tmp_path_factory.mktemp("library") / "tiny.so")


@pytest.fixture
def gates_pay(monkeypatch) -> None:
    """Let gates and little modules be faster than exact forms, whatever this machine says of layers this small."""

    def in_turns(model, entries, others=None, turns=0) -> dict[str, list[float]]:
        found = {}
        for name, queue in entries.items():
            found[name], before, at = [], None, 0
            for library, tables in queue:
                at = at + 1 if library is before else 0
                exact = others is None or library is others[name][0]
                found[name].append(EXACT if exact else GATED[at] if tables else ALONE)
                before = library
        return found

    monkeypatch.setattr("tvm_dual.site_times.in_turns", in_turns)
    # Nor is a layer, or the whole plan, dropped for exact forms that are faster here.
    monkeypatch.setattr(step_search, "LOOKED_AT", 0)
    monkeypatch.setattr(planner, "WORTH", float("inf"))
