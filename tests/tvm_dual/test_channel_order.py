"""Orders of channels: those that open together share a panel, and fewer tiles open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_dual.channel_order import LOSSES, Harms, channel_order, densities


def planted(channels: int, size: int, pixels: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return harms of channels that are high together in groups of `size`, mixed up, and each channel's group."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(channels) // size)
    active = rng.random((pixels, group.max() + 1)) < 0.1
    return (active[:, group] * (1 + rng.random((pixels, channels))) + 0.01).astype("float32"), group


@pytest.mark.parametrize("channels", [64, 72])
def test_channels_that_are_high_together_share_a_panel(channels):
    harms, group = planted(channels, 8)
    order = channel_order([Harms(harms, 8)])
    assert sorted(order) == list(range(channels))
    panels, best = [slice(i, i + 8) for i in range(0, channels, 8)], np.argsort(group)
    before, found, least = (densities(harms[:, o], harms[:, o], panels) for o in (np.arange(channels), order, best))
    assert (found < 0.5 * before).all() and (found <= 1.3 * least).all()


def test_smaller_panels_are_parts_of_larger_ones():
    large, of_large = planted(64, 16, seed=1)
    # Within each large panel halves are high together for another convolution.
    rng = np.random.default_rng(2)
    half = np.array([rng.permutation(np.arange(16) // 8) for _ in range(4)])
    of_small = np.empty(64, int)
    for panel in range(4):
        of_small[of_large == panel] = 2 * panel + half[panel]
    active = rng.random((400, 8)) < 0.1
    small = (active[:, of_small] * (1 + rng.random(large.shape)) + 0.01).astype("float32")
    order = channel_order([Harms(large, 16, 4.0), Harms(small, 8)])
    assert all(len(set(of_large[order[i : i + 16]])) == 1 for i in range(0, 64, 16))
    assert all(len(set(of_small[order[i : i + 8]])) == 1 for i in range(0, 64, 8))


def test_what_no_pixel_changes_is_sorted_or_left():
    constant = np.tile(np.array([1, 4, 1, 4, 1, 4, 1, 4], "float32"), (50, 1))
    order = channel_order([Harms(constant, 4)])
    assert set(order[:4]) in ({0, 2, 4, 6}, {1, 3, 5, 7})
    assert (channel_order([Harms(constant, 16)]) == np.arange(8)).all()
    assert sorted(channel_order([Harms(np.zeros((5, 8), "float32"), 4)])) == list(range(8))


def test_densities_are_what_opening_tiles_in_turn_leaves():
    harms = np.array([[4.0, 0, 1, 1], [0, 0, 3, 0]], "float32")
    panels = [slice(0, 2), slice(2, 4)]
    # Of tiles 4, 3, 2, 0 in errors of 10: 6, 3, 1, 0 are left after each.
    errors = np.array([[4.0, 0, 1, 1], [1, 0, 3, 0]], "float32")
    found = densities(harms, errors, panels)
    assert LOSSES == (0.5, 0.3, 0.2, 0.1)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.75, 0.75])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.sampled_from([4, 8, 16]), st.integers(0, 99))
def test_every_order_is_one(channels, size, seed):
    rng = np.random.default_rng(seed)
    harms = [Harms((rng.random((30, channels)) ** 4).astype("float32"), s, w) for s, w in ((size, 1.0), (4, 2.0))]
    assert sorted(channel_order(harms)) == list(range(channels))
