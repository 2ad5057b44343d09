"""Large inputs and outputs, which stay where the caller has them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvm_dual.buffers import Recycled
from tvm_dual.builder import build
from tvm_dual.options import AdvancedOptions

SIZE, CHANNELS = 48, 8


@pytest.fixture(scope="module")
def library():
    """Return ``max(0, conv(x))`` of images of 72 kB, channels last, and the calls it was calibrated on."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, CHANNELS, 3, 3)).astype("float32")
    nodes = [
        helper.make_node("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["i", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE, SIZE, CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIZE, SIZE, 16])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    calls = rng.standard_normal((3, SIZE, SIZE, CHANNELS)).astype("float32")
    return build(model, [calls], precision="fp32", options=AdvancedOptions(mode="dense")), calls, weight


def expected(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    taps = [padded[r : r + SIZE, c : c + SIZE] @ weight[:, :, r, c].T for r in range(3) for c in range(3)]
    return np.maximum(sum(taps), 0)


def test_nothing_is_copied_and_no_image_has_a_second_one(library):
    metadata = library[0].metadata
    image, result = SIZE * SIZE * CHANNELS * 4, SIZE * SIZE * 16 * 4
    assert len(metadata.afar) == 2
    # Their places, and a band of rows: less than another image in and out.
    assert metadata.offsets[-1] < 2 * image + 2 * result


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 4, "uint8")
    memory[4:] = array.reshape(-1).view("uint8")
    return memory[4:].view("float32").reshape(array.shape)


def at_odd_bytes(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, "uint8")
    memory[1:] = array.reshape(-1).view("uint8")
    return memory[1:].view("float32").reshape(array.shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def transposed(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


@pytest.mark.parametrize("form", [np.copy, misaligned, at_odd_bytes, read_only, transposed])
def test_arrays_of_any_layout_and_place(library, form):
    model, calls, weight = library
    given, step = form(calls[0]), model.stream()
    # The call before leaves nothing behind, whichever way its array went in.
    step(calls[1])
    np.testing.assert_allclose(step(given)[0], expected(calls[0], weight), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(given, calls[0])
    np.testing.assert_array_equal(model(given[None]), step(given))


def test_results_are_the_callers_while_any_part_of_them_is_held(library):
    model, calls, weight = library
    step, kept = model.stream(), []
    for i in range(12):
        y = step(calls[i % 3])
        kept.append(y if i % 2 else y[0, 1:3, ::2])
    for i, part in enumerate(kept):
        whole = expected(calls[i % 3], weight)
        np.testing.assert_allclose(part, whole[None] if i % 2 else whole[1:3, ::2], rtol=1e-4, atol=1e-4)


def test_a_result_may_be_the_next_input():
    outputs = Recycled(np.zeros((2, 3), "float32"), np.zeros(1, "int64"))
    first = outputs.next()
    assert not np.shares_memory(first, outputs.next())


def test_memory_that_nobody_holds_is_used_again():
    place, distance = np.zeros((2, 3), "float32"), np.zeros(1, "int64")
    outputs = Recycled(place, distance)
    y = outputs.next()
    start = y.ctypes.data
    assert start % 64 == 0 and place.ctypes.data + 4 * distance[0] == start
    part = y[1:].reshape(-1)
    del y
    other = outputs.next()
    assert other.ctypes.data != start and part.base is not None
    del part, other
    assert outputs.next().ctypes.data == start
