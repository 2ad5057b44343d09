"""Calibration data: what is accepted, and what is named as wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual.calibration import check_calibration
from tvm_dual.errors import DataError


@pytest.mark.parametrize(
    "data, text",
    [
        ([], "empty"),
        ([np.zeros((0, 40), "float32")], "empty"),
        ([np.zeros((5, 39), "float32")], r"item 0.*shape \(5, 39\).*40"),
        ([np.zeros((5, 40), "float32"), np.zeros((5, 40))], "item 1.*float64"),
        ([np.full((5, 40), np.nan, "float32")], "NaN"),
        ([np.full((5, 40), np.inf, "float32")], "infinity"),
        (np.zeros((5, 40), "float32"), "list"),
        (7, "int"),
        (["frames"], "item 0"),
    ],
)
def test_wrong_calibration(builder, data, text):
    with pytest.raises(DataError, match=text):
        check_calibration(data, builder._dense.metadata.inputs)


def test_calibration_may_be_a_generator(builder, calibration):
    inputs = builder._dense.metadata.inputs
    one = check_calibration((stream for stream in calibration), inputs)
    two = check_calibration([stream[:, None, None] for stream in calibration], inputs)
    assert one.digest == two.digest == builder._data.digest and one.calls == 300
