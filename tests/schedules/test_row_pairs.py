"""Row pairs: the same as two gated products with one list of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import dense, row_operands, row_pairs
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel
from tests.schedules.test_dense import data, gates, open_rows, padded_bytes


def check(isa, n, k, h, threads, gates, seed=0):
    """Compare with `gated_rows_int8` called for each half."""
    rng = np.random.default_rng(seed)
    halves = []
    for size, salt in ((k, 0), (h, 1)):
        weight, bias, _, closed = data(n, size, seed + salt)
        q = padded_bytes(isa, rng.integers(0, isa.activation_levels + 1, size).astype("uint8"))
        halves.append((weight, bias, closed, q, np.array([rng.random() + 1e-3, rng.integers(0, 128)], "float32")))
    packed = row_pairs.pack_pairs_int8(isa, *((weight, bias) for weight, bias, *_ in halves))["weight"]
    pairs = compile_kernel(isa, row_pairs.row_pairs_int8(isa, n, k, h, threads), threads)
    single = [compile_kernel(isa, dense.gated_rows_int8(isa, n, size, threads), threads) for size in (k, h)]
    inputs = [value for *_, q, affine in halves for value in (q, affine)]
    for opened in gates:
        rows, count = open_rows(n, opened)
        outputs = Output((n,), "float32"), Output((n,), "float32")
        found = call(pairs, *inputs, packed, rows, count, halves[0][2], halves[1][2], *outputs, threads=threads)
        for kernel, (weight, bias, closed, q, affine), values in zip(single, halves, found, strict=True):
            alone = row_operands.pack_rows_int8(isa, weight, bias)["weight"]
            (wanted,) = call(kernel, q, affine, alone, rows, count, closed, Output((n,), "float32"), threads=threads)
            np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize(("n", "k", "h", "threads"), [(1, 19, 3, 1), (37, 1, 19, 2), (90, 600, 30, 1), (96, 52, 64, 2)])
def test_pairs_are_two_gated_products(isa, n, k, h, threads):
    check(isa, n, k, h, threads, gates(n))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    n=st.integers(1, 60),
    k=st.integers(1, 150),
    h=st.integers(1, 150),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)
def test_pairs_at_any_shape_and_gate(isa, n, k, h, seed, density):
    opened = np.flatnonzero(np.random.default_rng(seed).random(n) < density)
    check(isa, n, k, h, 2, [opened], seed)
