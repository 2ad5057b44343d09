"""``tvm-dual bench MODEL.onnx``: a user's own model, from the command line to the file."""

import json

import numpy as np
import onnx
import pytest

from benchmarks import any_model
from benchmarks.any_model import Size, one_input, split
from tests.tvm_dual.conftest import INPUTS, tiny_model
from tests.tvm_dual.frontend.test_images import onnx_model
from tvm_dual.cli import main
from tvm_dual.errors import DataError


def test_a_model_of_the_users(monkeypatch, tmp_path, capsys):
    whole = any_model.peer_specs
    few = {("onnxruntime", "fp32"), ("torch", "fp32")}
    monkeypatch.setattr(
        any_model, "peer_specs", lambda *a: [spec for spec in whole(*a) if (spec.engine, spec.precision) in few]
    )
    monkeypatch.setattr(any_model, "SHORT", Size(1, 5))
    onnx.save(tiny_model(), tmp_path / "tiny.onnx")
    rng = np.random.default_rng(1)
    streams = (rng.standard_normal((2, 150, 5)) @ rng.standard_normal((5, INPUTS))).astype("float32")
    np.savez(tmp_path / "data.npz", *streams)
    files = ["--calibration", str(tmp_path / "data.npz"), "--json", str(tmp_path / "out.json")]
    assert main(["bench", str(tmp_path / "tiny.onnx"), "--short", *files]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["mode"], row["precision"]) for row in rows if row["engine"] == "tvm_dual"} == {
        ("dual", "int8"), ("dual", "fp32"), *any_model.FORMS
    }  # fmt: skip
    agreement = {(row["engine"], row["mode"], row["precision"]): row["quality"]["agreement"] for row in rows}
    assert agreement["tvm_dual", "dense", "fp32"] == 1
    for exact in (("tvm_dual", "skip", "fp32"), ("onnxruntime", "dense", "fp32"), ("torch", "dense", "fp32")):
        assert agreement[exact] == pytest.approx(1, abs=1e-4)
    assert 0.5 < agreement["tvm_dual", "dual", "int8"] < 1
    assert "fastest fp32 peer / dual" in capsys.readouterr().out


def test_what_is_kept():
    one = np.arange(60).reshape(20, 1, 3)
    seen, kept = split([one])
    np.testing.assert_array_equal(np.concatenate(seen + kept), one)
    assert sum(map(len, seen)) == 16 and [len(stream) for stream in kept] == [4]
    seen, kept = split([one] * 11)
    assert (len(seen), len(kept)) == (9, 2)


@pytest.mark.parametrize("streams", [[np.zeros((4, 3))], []])
def test_what_cannot_be_divided(streams):
    with pytest.raises(DataError, match="accepted"):
        split(streams)


def test_streams_of_several_inputs_are_refused():
    with pytest.raises(DataError, match="several inputs; accepted"):
        one_input([{"x": np.zeros((9, 3))}])


def test_a_model_of_images(monkeypatch, tmp_path, capsys):
    whole = any_model.image_peer_specs
    monkeypatch.setattr(
        any_model, "image_peer_specs", lambda *a: [spec for spec in whole(*a) if spec.engine == "onnxruntime"]
    )
    monkeypatch.setattr(any_model, "SHORT", Size(1, 5))
    monkeypatch.setattr(any_model, "FORMS", (("dense", "fp32"),))
    onnx.save(onnx_model(["n", 3, "h", "w"]), tmp_path / "images.onnx")
    np.savez(tmp_path / "data.npz", *np.random.default_rng(0).standard_normal((3, 4, 3, 9, 8)).astype("float32"))
    files = ["--calibration", str(tmp_path / "data.npz"), "--json", str(tmp_path / "out.json")]
    assert main(["bench", str(tmp_path / "images.onnx"), "--short", *files]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    agreement = {(row["engine"], row["mode"], row["precision"]): row["quality"]["agreement"] for row in rows}
    assert agreement["onnxruntime", "dense", "fp32"] == pytest.approx(1, abs=1e-4)
    assert {("onnxruntime", "dense", "int8"), ("openvino", "dense", "int8")} <= set(agreement)
    assert "fastest fp32 peer / dual" in capsys.readouterr().out


def test_mistakes(tmp_path, capsys):
    out = ["--json", str(tmp_path / "out.json")]
    assert main(["bench", "absent.onnx", *out]) == 2
    assert "--calibration: not given" in capsys.readouterr().err
    np.savez(tmp_path / "data.npz", np.zeros((20, 4), "float32"))
    assert main(["bench", "absent.onnx", "--calibration", str(tmp_path / "data.npz"), *out]) == 2
    assert "absent.onnx" in capsys.readouterr().err
    assert main(["bench", "nsnet2", "--calibration", "a.npz", *out]) == 2
    assert "suite 'nsnet2' does not take it" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
