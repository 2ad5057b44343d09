"""Weights whose products with bytes are added up in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.cpu import ISAS
from schedules.quantize import quantize_rows
from schedules.words import GROUP, quantize_taps, stored_taps, sure_level, word_groups

AVX2, AVX512, VNNI = (ISAS[name] for name in ("avx2", "avx512", "avx512_vnni"))


def words(levels: np.ndarray, bytes_: np.ndarray, groups: int) -> np.ndarray:
    """Return all sums of 16 bits of a row, by the instruction's own order: ``(words, ...)``."""
    products = levels.astype(int) * bytes_.astype(int)
    return products.reshape(-1, groups, 2, 2).sum(axis=(1, 3))


@pytest.mark.parametrize(
    "isa, run, groups",
    [(AVX2, 64, 2), (AVX2, 24, 2), (AVX2, 20, 1), (AVX2, 3, 1), (VNNI, 64, 1), (AVX512, 16, 2)],
)
def test_words_are_added_up_where_taps_fill_them(isa, run, groups):
    assert word_groups(isa, run) == groups


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5),
    blocks=st.integers(1, 6),
    heavy=st.floats(0.2, 5),
    seed=st.integers(0, 2**31),
    same_sign=st.booleans(),
)
def test_no_word_overflows(rows, blocks, heavy, seed, same_sign):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, 16 * blocks)) * np.exp(heavy * rng.standard_normal((rows, 16 * blocks)))
    weight = (np.abs(weight) if same_sign else weight).astype("float32")
    found = quantize_taps(AVX2, weight, 16)
    for row in found.values:
        # The largest sum and the smallest one: the largest byte meets one sign, and zero the other.
        for sign in (1, -1):
            sums = words(row, np.where(sign * row.astype(int) > 0, 255, 0), word_groups(AVX2, 16))
            assert sums.min() >= -32768 and sums.max() <= 32767
    np.testing.assert_allclose(stored_taps(AVX2, found.dequantized(), 16), found.dequantized(), rtol=1e-6)
    assert (np.abs(found.dequantized() - weight) <= 0.501 * found.scale[:, None]).all()


def test_rows_have_as_many_levels_as_their_words_bear():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 512)).astype("float32")
    error = np.square(stored_taps(AVX2, weight, 512) - weight).mean()
    assert error < 1.1 * np.square(quantize_rows(weight, 7).dequantized() - weight).mean()
    # One large weight among small ones shares its word with little.
    weight = np.full((1, 64), 0.01, "float32")
    weight[0, 5] = 1
    assert quantize_taps(AVX2, weight, 64).values.max() == 100


@pytest.mark.parametrize("isa, run, most", [(VNNI, 64, 127), (AVX2, 3, 63), (AVX2, 32, 28)])
def test_some_level_is_sure(isa, run, most):
    assert sure_level(isa, run) == most
    row = np.full((1, run * GROUP), most, "float32")
    np.testing.assert_array_equal(stored_taps(isa, row, run), row)


@pytest.mark.parametrize("run", [32, 30])
def test_rows_of_zeros_stay_zeros(run):
    found = quantize_taps(AVX2, np.zeros((2, 2 * run), "float32"), run)
    assert not found.values.any() and not found.dequantized().any()


def test_weights_of_four_bits_stay_as_they_are():
    rng = np.random.default_rng(1)
    weight = quantize_rows(rng.standard_normal((9, 160)).astype("float32"), 4).dequantized()
    np.testing.assert_allclose(stored_taps(AVX2, weight, 160), weight, rtol=1e-6)
