"""Scales of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual.byte_convs import RANGES, byte_scale


def error(values: np.ndarray, scale: float, zero: int) -> float:
    levels = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float(np.square((levels - zero) * scale - values).mean())


def test_few_far_values_are_cut_off():
    values = np.abs(np.random.default_rng(0).standard_normal(100_000)).astype("float32")
    values[0] = 40.0
    found = byte_scale(values)
    assert found.zero == 0 and found.scale < 40 / 255
    assert error(values, found.scale, 0) < error(values, 40 / 255, 0)


def test_the_whole_range_cuts_nothing_off():
    values = np.abs(np.random.default_rng(0).standard_normal(1000)).astype("float32")
    values[0] = 40.0
    found = byte_scale(values, RANGES[1])
    assert found.zero == 0 and found.scale == pytest.approx(40 / 255)


@pytest.mark.parametrize("shift", [-12.0, -1.0, 0.5])
def test_zero_is_a_level(shift):
    values = (np.random.default_rng(0).standard_normal(10_000) + shift).astype("float32")
    found = byte_scale(values)
    assert 0 <= found.zero <= 255
    assert error(values, found.scale, found.zero) < (found.scale) ** 2


def test_an_image_of_zeros_has_a_scale():
    assert byte_scale(np.zeros((3, 4), "float32")).scale > 0
