from pathlib import Path

import numpy as np

from benchmarks.image_suite import Network, with_quality
from tvm_dual.options import AdvancedOptions


def test_rows_say_whether_their_quality_is_that_of_the_published_model():
    calls = np.zeros((2, 1, 4), "float32")
    network = Network(
        "small",
        Path("small.onnx"),
        calls,
        calls,
        lambda outputs, published: {"mean": float(outputs.mean()), "off": float(np.abs(outputs - published).max())},
        ("mean", 0.25),
        lambda library: 0.0,
        0.1,
        AdvancedOptions(),
    )
    published = np.array([[1.0], [3.0]])
    outputs = [published, published + 0.25, published - 0.5, None]
    rows = with_quality(network, [{"engine": name} for name in "abcd"], outputs, published)
    assert [row.get("same_quality") for row in rows] == [True, True, False, None]
    assert rows[2]["quality"] == {"mean": 1.5, "off": 0.5}
    assert rows[3] == {"engine": "d"}
