"""The suite layers, on a small layer."""

from __future__ import annotations

from benchmarks import layers
from benchmarks.image_suite import Turns
from benchmarks.levels import our_bf16


def test_a_layer_is_measured_in_every_form(tmp_path, capsys):
    layer = layers.Layer(6, 8, 16, 3, 2)
    size = layers.Size(Turns(1, 2), (layer,), zeros=(0.5,), closed=(0.5,), closed_outputs=(0.8,))
    result = layers.run(1, size, lambda *_: None)
    # Not every CPU has bf16.
    assert not [row for row in result.rows if "error" in row and row["precision"] != "bf16"]
    ours = [row for row in result.rows if row["engine"] == "tvm_dual"]
    keys = ("mode", "unit", "closed", "zeros")
    assert [tuple(row.get(key) for key in keys) for row in ours if row["precision"] == "fp32"] == [
        ("dense", None, None, None),
        ("dual", "tile", 0.5, None),
        ("dual", "output", 0.8, None),
        ("skip", None, None, 0.5),
    ]
    kinds = ("int8", "bf16") if our_bf16() else ("int8",)
    low = [(kind, closed) for kind in kinds for closed in (None, 0.5)]
    assert [(row["precision"], row.get("closed")) for row in ours if row["precision"] != "fp32"] == low
    assert {row["engine"] for row in result.rows} == {"tvm_dual", "torch", "onnxruntime", "openvino"}
    layers.show(result, tmp_path / "rows.json")
    assert "6x6 8->16 3x3/2" in capsys.readouterr().out
