"""Calibration data: what is accepted, and what is named as wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual.calibration import check_calibration
from tvm_dual.calibration_file import read_calibration
from tvm_dual.errors import DataError, ModelError
from tvm_dual.metadata import Tensor

STREAMED = (Tensor("x", (1, 1, 40)),)
#: A sequence and the state it starts from; batch and time are open.
WITH_STATE = (
    Tensor("x", (-1, -1, 5), symbols=("time", "batch", "")),
    Tensor("h0", (1, -1, 7), symbols=("", "batch", "")),
)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, "float32")


@pytest.mark.parametrize(
    "data, text",
    [
        ([], "empty"),
        ([zeros(0, 40)], "empty"),
        ([zeros(5, 39)], r"item 0.*shape \(5, 39\).*40"),
        ([zeros(5, 40), np.zeros((5, 40))], "item 1.*float64"),
        ([np.full((5, 40), np.nan, "float32")], "NaN"),
        ([np.full((5, 40), np.inf, "float32")], "infinity"),
        (zeros(5, 40), "list"),
        (7, "int"),
        ("frames.npz", "str"),
        ({"x": zeros(5, 40)}, "dict.*list"),
        (["frames"], "item 0"),
        ([None], "item 0.*object"),
        ([[zeros(3), zeros(4)]], "item 0.*cannot be made an array"),
        ([np.array([zeros(40), None], dtype=object)], "item 0.*object"),
        ([(zeros(5, 40), zeros(5, 40))], r"item 0: 2 arrays; accepted: an array"),
        ([{"y": zeros(5, 40)}], r"item 0.*names \['y'\]"),
        ([{"x": zeros(5, 39)}], r"item 0, input 'x': shape \(5, 39\)"),
    ],
)
def test_wrong_data_for_one_input(data, text):
    with pytest.raises(DataError, match=text):
        check_calibration(data, STREAMED)


@pytest.mark.parametrize(
    "item, text",
    [
        (zeros(2, 3, 4, 5), r"ndarray; accepted: a dict.*'x': float32.*'h0'.*tuple"),
        ([zeros(2, 3, 4, 5), zeros(2, 1, 4, 7)], "list; accepted: a dict"),
        ((zeros(2, 3, 4, 5),), "1 arrays; accepted: a dict"),
        ({"x": zeros(2, 3, 4, 5)}, r"names \['x'\]; accepted.*'h0'"),
        ({"x": zeros(2, 3, 4, 5), "h0": zeros(2, 1, 4, 7), "c0": zeros(2, 1, 4, 7)}, r"\['c0', 'h0', 'x'\]"),
        ((zeros(2, 3, 4, 5), zeros(3, 1, 4, 7)), "2 of 'x', 3 of 'h0'; accepted: as many"),
        ((zeros(2, 3, 4, 5), zeros(2, 1, 3, 7)), r"'h0'.*3 where 'x' has 4; accepted: the same 'batch'"),
        ((zeros(2, 0, 4, 5), zeros(2, 1, 4, 7)), r"'x': shape \(2, 0, 4, 5\).*any from 1 on"),
        ((zeros(2, 3, 4, 5), zeros(2, 4, 7)), r"'h0': shape \(2, 4, 7\); accepted: float32 of shape \(calls, 1, any"),
        ((zeros(2, 3, 4, 5), np.zeros((2, 1, 4, 7))), "'h0': dtype float64"),
    ],
)
def test_wrong_data_for_several_inputs(item, text):
    good = (zeros(1, 9, 2, 5), zeros(1, 1, 2, 7))
    with pytest.raises(DataError, match=rf"^calibration item 1\b.*{text}"):
        check_calibration([good, item], WITH_STATE)


def test_forms_of_an_item_are_equal():
    rng = np.random.default_rng(0)
    x, h0 = (rng.standard_normal(shape).astype("float32") for shape in ((2, 3, 4, 5), (2, 1, 4, 7)))
    forms = [{"h0": h0, "x": x}, (x, h0), (x, (h0,)), (np.asfortranarray(x), h0[::-1].copy()[::-1])]
    found = [check_calibration([form], WITH_STATE) for form in forms]
    assert len({data.digest for data in found}) == 1
    (stream,) = found[0].streams
    assert len(stream) == 2 and found[0].calls == 2 and found[0].vectors_per_call == 12
    calls = list(stream)
    assert len(calls) == 2
    np.testing.assert_array_equal(calls[1][0], x[1])
    np.testing.assert_array_equal(calls[1][1], h0[1])
    np.testing.assert_array_equal(stream[1:].arrays[1], h0[1:])


def test_an_input_without_axes():
    (stream,) = check_calibration([np.arange(2, dtype="float32")], (Tensor("scale", ()),)).streams
    assert [(type(scale), float(scale)) for (scale,) in stream] == [(np.ndarray, 0.0), (np.ndarray, 1.0)]


def test_steps_of_token_sequences_are_counted():
    ids = (Tensor("ids", (1, -1), "int64", ("", "time"), below=9),)
    assert check_calibration([np.zeros((2, 1, 8), "int64"), np.zeros((1, 1, 3), "int64")], ids).vectors_per_call == 8


def test_a_model_without_inputs():
    with pytest.raises(ModelError, match="no inputs"):
        check_calibration([zeros(1)], ())


def test_calibration_may_be_a_generator(builder, calibration):
    inputs = builder._dense.metadata.inputs
    one = check_calibration((stream for stream in calibration), inputs)
    two = check_calibration([stream[:, None, None] for stream in calibration], inputs)
    assert one.digest == two.digest == builder._data.digest and one.calls == 300


# Files.


def test_streams_of_a_file(tmp_path):
    x, h0, alone = zeros(2, 3, 1, 5), zeros(2, 1, 1, 7), zeros(4, 40)
    np.savez(tmp_path / "data.npz", **{"b/x": x, "a/model/x": x, "b/h0": h0, "c": alone})
    found = read_calibration(tmp_path / "data.npz")
    assert [sorted(item) if isinstance(item, dict) else item.shape for item in found] == [
        ["h0", "x"],
        ["model/x"],
        (4, 40),
    ]


def test_files_of_something_else(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", x=np.random.default_rng(0).standard_normal((50, 40)))
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    whole[len(whole) // 2] ^= 255
    np.save(tmp_path / "array.npy", zeros(3))
    np.savez(tmp_path / "objects.npz", np.array([None, "a"], dtype=object))
    contents = [b"", b"text", b"PK\x03\x04 broken", b"\x80\x04.", bytes(whole), bytes(whole[:-100])]
    contents += [(tmp_path / name).read_bytes() for name in ("array.npy", "objects.npz")]
    for content in contents:
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz.*accepted: a \.npz file"):
            read_calibration(tmp_path / "data.npz")
    for path in (tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            read_calibration(path)


def test_nobody_is_advised_to_load_a_file_unsafely(tmp_path):
    (tmp_path / "text.npz").write_text("speech")
    with pytest.raises(DataError, match=r"cannot be read as arrays of numbers; accepted: a \.npz file") as error:
        read_calibration(tmp_path / "text.npz")
    assert "pickle" not in str(error.value)
