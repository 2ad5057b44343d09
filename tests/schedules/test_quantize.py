"""Quantization of activations at run time and of weights at build time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.quantize import clip_rows, quantize_rows, quantize_vector, round_up
from tests.schedules.conftest import RUNNABLE, Output, run


def quantize(isa, x, nonnegative=False):
    q, affine = run(
        isa,
        quantize_vector(isa, len(x), nonnegative),
        x,
        Output((round_up(len(x), isa.row_bytes),), "uint8"),
        Output((2,), "float32"),
    )
    assert (q[len(x) :] == 0).all(), "padding is zero"
    return q[: len(x)], affine


@pytest.mark.parametrize(("k", "shift"), [(1, -1.0), (1, 5.0), (19, 0.0), (64, -1.0), (600, 0.0), (805, 5.0)])
def test_bytes_stand_for_the_vector_within_half_a_step(isa, k, shift):
    x = (np.random.default_rng(k).standard_normal(k) + shift).astype("float32")
    q, (scale, zero) = quantize(isa, x)
    assert q.max() <= isa.activation_levels
    # Half a step for the value, half for the zero point where it is cut off at the end of the range.
    assert np.abs(scale * (q.astype("float64") - zero) - x).max() <= 1.01 * scale
    span = max(x.max(), 0.0) - min(x.min(), 0.0)
    np.testing.assert_allclose(scale, span / isa.activation_levels, rtol=1e-6)


def test_zeros_stay_exact(isa):
    x = np.random.default_rng(1).standard_normal(100).astype("float32")
    x[::3] = 0
    q, (_, zero) = quantize(isa, x)
    assert zero == np.floor(zero)
    assert (q[::3] == zero).all()


@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_vector_of_zeros_gives_finite_parameters_and_zeros(isa, nonnegative):
    q, (scale, zero) = quantize(isa, np.zeros(37, "float32"), nonnegative)
    assert np.isfinite(scale) and scale > 0
    assert (q == zero).all()


def test_a_nonnegative_vector_has_zero_point_zero_and_reaches_the_top_level(isa):
    x = np.maximum(np.random.default_rng(2).standard_normal(77), 0).astype("float32")
    q, (_, zero) = quantize(isa, x, nonnegative=True)
    assert zero == 0
    assert q.max() == isa.activation_levels


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    k=st.integers(1, 200),
    seed=st.integers(0, 1000),
    magnitude=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_rounding_error_is_bounded_at_any_length_and_magnitude(isa, k, seed, magnitude):
    x = (np.random.default_rng(seed).standard_normal(k) * magnitude).astype("float32")
    q, (scale, zero) = quantize(isa, x)
    assert np.abs(scale * (q.astype("float64") - zero) - x).max() <= 1.01 * scale


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_within_half_a_step_of_their_bytes(bits):
    weight = np.random.default_rng(0).standard_normal((37, 19)).astype("float32")
    quantized = quantize_rows(weight, bits)
    levels = 2 ** (bits - 1) - 1
    assert np.abs(quantized.values).max(axis=1).tolist() == [levels] * 37
    assert (np.abs(quantized.dequantized() - weight) <= 0.501 * quantized.scale[:, None]).all()


def test_four_levels_leave_less_error_than_three():
    weight = np.random.default_rng(0).standard_normal((37, 188)).astype("float32")
    quantized = quantize_rows(clip_rows(weight, 2, np.ones(188, "float32")), 2)
    assert set(np.unique(quantized.values)) == {-3, -1, 1, 3}
    error = ((quantized.dequantized() - weight) ** 2).mean(axis=1)
    # Max (1960) has 0.1188 and 0.1902 for the best four and three equidistant levels of a normal distribution.
    assert error.mean() < 0.13
    for scale in np.linspace(0.5, 2, 16):
        assert (error < ((np.clip(np.rint(weight / scale), -1, 1) * scale - weight) ** 2).mean(axis=1)).all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_clipping_leaves_no_more_error_where_it_counts(bits):
    rng = np.random.default_rng(0)
    weight, importance = rng.standard_normal((37, 64)).astype("float32"), rng.random(64).astype("float32") ** 4
    clipped = clip_rows(weight, bits, importance)
    assert (np.abs(clipped) <= np.abs(weight)).all()
    plain, best = (((weight - quantize_rows(w, bits).dequantized()) ** 2 @ importance) for w in (weight, clipped))
    assert (best <= plain).all() and (bits == 8 or best.sum() < 0.95 * plain.sum())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_levels_are_kept(bits):
    levels = [-3, -1, 1, 3] if bits == 2 else np.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1))
    values = np.random.default_rng(0).choice(levels, (37, 19)).astype("float32")
    values[:, 0] = levels[-1]
    np.testing.assert_array_equal(quantize_rows(values * np.float32(0.7), bits).values, values)


@pytest.mark.parametrize("shape", [(3, 5), (3, 0)])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rows_of_zeros_stay_zeros(shape, bits):
    quantized = quantize_rows(np.zeros(shape, "float32"), bits)
    assert quantized.dequantized().shape == shape and not quantized.dequantized().any()
    assert not clip_rows(np.zeros(shape, "float32"), bits, np.ones(shape[1], "float32")).any()


@pytest.mark.parametrize(("size", "multiple", "expected"), [(0, 4, 0), (1, 4, 4), (64, 64, 64), (65, 64, 128)])
def test_round_up(size, multiple, expected):
    assert round_up(size, multiple) == expected
