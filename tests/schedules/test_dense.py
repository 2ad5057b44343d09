"""Gated rows: open rows are computed, closed rows keep what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import dense, row_operands
from schedules.knobs import ROWS, RowKnobs
from schedules.quantize import quantize_rows, quantize_vector, round_up
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel, join, run

#: Rows, columns, threads.
CASES = [(1, 19, 2), (37, 1, 1), (37, 19, 2), (513, 800, 1), (513, 800, 2)]


def open_rows(n, opened):
    """Return the operands ``rows``, ``count`` that open the rows `opened`."""
    opened = np.asarray(opened, "int32")
    rows = np.full(row_operands.list_length(n), opened[-1] if len(opened) else 0, "int32")
    rows[: len(opened)] = opened
    return rows, np.array([len(opened)], "int32")


def gates(n):
    """Return no open row, one, every third and all of `n`."""
    return [[], [n // 2], list(range(0, n, 3)), list(range(n))]


def data(n, k, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, k)).astype("float32"),
        rng.standard_normal(n).astype("float32"),
        rng.standard_normal(k).astype("float32"),
        rng.standard_normal(n).astype("float32"),
    )


def padded_bytes(isa, q):
    result = np.zeros(round_up(len(q), isa.row_bytes), "uint8")
    result[: len(q)] = q
    return result


def check_int8(isa, n, k, threads, gates, q, affine, weight, bias, closed):
    """Run the kernel with each gate and compare with the exact sums of the quantized values."""
    packed = row_operands.pack_rows_int8(isa, weight, bias)["weight"]
    kernels = [
        compile_kernel(isa, dense.gated_rows_int8(isa, n, k, threads, knobs), threads)
        for knobs in (ROWS, RowKnobs(ahead=dense.STREAM_AHEAD))
    ]
    quantized = quantize_rows(weight)
    row_scale, (scale, zero) = quantized.scale.astype("float64"), affine.astype("float64")
    dot = quantized.values.astype("int64") @ q.astype("int64")
    shift = zero * quantized.values.sum(axis=1, dtype="int64")
    exact = scale * row_scale * (dot - shift) + bias
    # The two terms may cancel: the error of single precision is relative to each of them.
    size = scale * row_scale * (np.abs(dot) + np.abs(shift)) + np.abs(bias) + 1e-30
    for kernel, opened in [*((kernels[0], opened) for opened in gates), (kernels[1], np.arange(n))]:
        rows, count = open_rows(n, opened)
        operands = (padded_bytes(isa, q), affine, packed, rows, count, closed)
        (y,) = call(kernel, *operands, Output((n,), "float32"), threads=threads)
        is_open = np.isin(np.arange(n), opened)
        assert (np.abs(y - exact) <= 5e-7 * size)[is_open].all()
        np.testing.assert_array_equal(y[~is_open], closed[~is_open])


@pytest.mark.parametrize(("n", "k", "threads"), CASES)
def test_int8_rows_are_the_exact_sums_of_the_quantized_values(isa, n, k, threads):
    weight, bias, _, closed = data(n, k)
    q = np.random.default_rng(5).integers(0, isa.activation_levels + 1, k).astype("uint8")
    affine = np.array([0.013, 57], "float32")
    check_int8(isa, n, k, threads, gates(n), q, affine, weight, bias, closed)


def test_the_largest_bytes_everywhere_do_not_saturate(isa):
    n, k = 37, 800
    q = np.full(k, isa.activation_levels, "uint8")
    weight = np.ones((n, k), "float32")
    weight[::2] = -1
    zeros = np.zeros(n, "float32")
    check_int8(isa, n, k, 1, [range(n)], q, np.array([1, 0], "float32"), weight, zeros, zeros)


@pytest.mark.parametrize(("n", "k", "threads"), [*CASES, (6, 7, 1), (6, 8, 1), (9, 15, 2), (9, 16, 1), (9, 17, 1)])
def test_fp32_rows_match_numpy(isa, n, k, threads):
    weight, bias, x, closed = data(n, k)
    packed = row_operands.pack_rows_fp32(isa, weight, bias)
    kernel = compile_kernel(isa, dense.gated_rows_fp32(isa, n, k, threads), threads)
    exact = weight.astype("float64") @ x + bias
    size = np.abs(weight) @ np.abs(x) + np.abs(bias)
    for opened in gates(n):
        rows, count = open_rows(n, opened)
        operands = (x, *packed.values(), rows, count, closed)
        (y,) = call(kernel, *operands, Output((n,), "float32"), threads=threads)
        is_open = np.isin(np.arange(n), opened)
        assert (np.abs(y - exact) <= 1e-5 * size)[is_open].all()
        np.testing.assert_array_equal(y[~is_open], closed[~is_open])


def test_a_missing_bias_is_zero(isa):
    weight, _, x, closed = data(5, 7)
    packed = row_operands.pack_rows_fp32(isa, weight, None)
    with_zeros = row_operands.pack_rows_int8(isa, weight, np.zeros(5, "float32"))["weight"]
    np.testing.assert_array_equal(row_operands.pack_rows_int8(isa, weight, None)["weight"], with_zeros)
    rows, count = open_rows(5, range(5))
    kernel = dense.gated_rows_fp32(isa, 5, 7, 1)
    (y,) = run(isa, kernel, x, *packed.values(), rows, count, closed, Output((5,), "float32"))
    np.testing.assert_allclose(y, weight @ x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 4, 37])
def test_the_list_of_every_row_opens_each_and_repeats_the_last(n):
    rows = row_operands.every_row(n)
    assert len(rows) == row_operands.list_length(n)
    np.testing.assert_array_equal(rows[:n], np.arange(n))
    assert (rows[n:] == n - 1).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    n=st.integers(1, 80),
    k=st.integers(1, 200),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)
def test_int8_rows_are_exact_at_any_shape_and_gate(isa, n, k, seed, density):
    rng = np.random.default_rng(seed)
    weight, bias, _, closed = data(n, k, seed)
    opened = np.flatnonzero(rng.random(n) < density)
    q = rng.integers(0, isa.activation_levels + 1, k).astype("uint8")
    affine = np.array([rng.random() + 1e-3, rng.integers(0, 128)], "float32")
    check_int8(isa, n, k, 2, [opened], q, affine, weight, bias, closed)


@pytest.mark.parametrize(("n", "k"), [(37, 19)])
def test_quantize_and_rows_joined_in_one_kernel_equal_the_two_apart(isa, threads, n, k):
    weight, bias, x, closed = data(n, k)
    packed = row_operands.pack_rows_int8(isa, weight, bias)["weight"]
    rows, count = open_rows(n, range(0, n, 2))
    quantize = quantize_vector(isa, k)
    kernel = dense.gated_rows_int8(isa, n, k, threads)
    padded = round_up(k, isa.row_bytes)
    q, affine = run(isa, quantize, x, Output((padded,), "uint8"), Output((2,), "float32"))
    (apart,) = run(isa, kernel, q, affine, packed, rows, count, closed, Output((n,), "float32"), threads=threads)

    operands = {"x": x, "weight": packed, "rows": rows, "count": count, "closed": closed}
    stages = [
        (quantize, ["x"], ["q", "affine"]),
        (kernel, ["q", "affine", "weight", "rows", "count", "closed"], ["y"]),
    ]
    joined = join(operands, stages, "y")
    (together,) = run(isa, joined, *operands.values(), Output((n,), "float32"), threads=threads)
    np.testing.assert_array_equal(together, apart)
