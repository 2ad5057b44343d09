"""Scales of bytes, and which convolutions go back from them."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_dual.byte_convs import RANGES, byte_scale, fewest_back


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


#: What layers on bytes lose, and what going back costs.
LOSSES, COSTS = {"a": 5.0, "b": 3.0, "c": 2.0, "d": 0.5}, {"a": 9.0, "b": 4.0, "c": 1.0, "d": 1.0}


@pytest.mark.parametrize(
    "budget, wanted",
    [
        (8.0, {"b"}),  # a, or b alone: b is cheaper
        (5.6, {"a"}),
        (3.0, {"a", "b"}),
        (0.6, {"a", "b", "c"}),
        (0.0, {"a", "b", "c", "d"}),
        (-1.0, None),
    ],
)
def test_those_go_back_that_lose_most(budget, wanted):
    def judged(back: frozenset[str]) -> float:
        return -sum(loss for name, loss in LOSSES.items() if name not in back)

    found = fewest_back(COSTS, judged, lambda quality: quality >= -budget)
    assert found == (None if wanted is None else frozenset(wanted))


def test_what_others_have_made_needless_stays():
    # Alone a gains most, but what it gains b and c gain together.
    gains = {"a": 3.0, "b": 2.9, "c": 2.8}

    def judged(back: frozenset[str]) -> float:
        return 6.0 if {"b", "c"} <= back else max((gains[name] for name in back), default=0.0)

    assert fewest_back(dict.fromkeys(gains, 1.0), judged, lambda quality: quality >= 5) == frozenset("bc")
