"""Zero skipping: lists of nonzeros, and products over their columns alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import columns, nonzeros
from schedules.quantize import quantize_rows, quantize_vector, round_up
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel, join, run

#: Rows, columns, threads.
CASES = [(1, 19, 2), (37, 1, 1), (37, 19, 2), (513, 800, 1), (513, 800, 2)]
DENSITIES = [0.0, 0.2, 1.0]


def sparse(k, density, seed=0):
    """Return nonnegative values of which `density` are not zero."""
    rng = np.random.default_rng(seed)
    return ((rng.random(k) + 0.1) * (rng.random(k) < density)).astype("float32")


def list_outputs(k, dtype):
    length = nonzeros.list_length(k)
    return Output((length,), "int32"), Output((length,), dtype), Output((1,), "int32")


def check_list(isa, *sources):
    """Run the list kernel of the sources' type on each of them, all of one length."""
    k, dtype = len(sources[0]), str(sources[0].dtype)
    as_bytes = dtype == "uint8"
    kernel = compile_kernel(isa, (nonzeros.nonzero_bytes if as_bytes else nonzeros.nonzero_floats)(isa, k))
    for source in sources:
        # Nonzero padding must not be listed.
        padded = np.full(round_up(k, isa.row_bytes) if as_bytes else k, 255, dtype)
        padded[:k] = source
        listed, values, count = call(kernel, padded, *list_outputs(k, dtype))
        expected = np.flatnonzero(source)
        assert count[0] == len(expected)
        np.testing.assert_array_equal(listed[: len(expected)], expected)
        np.testing.assert_array_equal(values[: len(expected)], source[expected])
        # A last quad that is not full reads on behind the list.
        tail = slice(len(expected), len(expected) + nonzeros.QUAD)
        assert not listed[tail].any() and not values[tail].any()


@pytest.mark.parametrize("k", [1, 19, 805])
def test_lists_hold_the_nonzeros_in_order_and_end_in_zeros(isa, k):
    inputs = [sparse(k, density) for density in DENSITIES]
    check_list(isa, *inputs)
    check_list(isa, *[np.ceil(x * 200).astype("uint8") for x in inputs])


def test_negative_values_count_as_nonzero_and_negative_zero_does_not(isa):
    x = np.array([-1, -0.0, 0, 2, -1e-30] * 5, "float32")
    check_list(isa, x)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(isa=st.sampled_from(RUNNABLE), k=st.integers(1, 300), seed=st.integers(0, 1000), density=st.floats(0, 1))
def test_lists_are_right_at_any_length_and_density(isa, k, seed, density):
    x = sparse(k, density, seed)
    check_list(isa, x if seed % 2 else np.ceil(x * 200).astype("uint8"))


def nonzero_operands(source, dtype):
    """Return ``columns``, ``values``, ``count`` as the list kernels make them."""
    length, found = nonzeros.list_length(len(source)), np.flatnonzero(source)
    listed, values = np.zeros(length, "int32"), np.zeros(length, dtype)
    listed[: len(found)], values[: len(found)] = found, source[found]
    return listed, values, np.array([len(found)], "int32")


def check_int8(isa, n, k, threads, inputs, weight, bias):
    """Run the product on each of the `inputs` and compare with the exact sums."""
    packed, meta = columns.pack_columns_int8(isa, weight, bias)
    affine = np.array([0.02, 0], "float32")
    kernel = compile_kernel(isa, columns.columns_int8(isa, n, k, threads), threads)
    quantized = quantize_rows(weight)
    for q in inputs:
        operands = (*nonzero_operands(q, "uint8"), affine, packed, meta)
        (y,) = call(kernel, *operands, Output((n,), "float32"), threads=threads)
        dot = quantized.values.astype("int64") @ q.astype("int64")
        scaled = np.float64(affine[0]) * quantized.scale * dot
        assert (np.abs(y - (scaled + bias)) <= 5e-7 * (np.abs(scaled) + np.abs(bias)) + 1e-30).all()


def sparse_bytes(isa, k, density, seed=0):
    """Return bytes in the whole range of an activation of which `density` are not zero."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, isa.activation_levels + 1, k) * (rng.random(k) < density)).astype("uint8")


@pytest.mark.parametrize(("n", "k", "threads"), CASES)
def test_int8_products_are_the_exact_sums_of_the_quantized_values(isa, n, k, threads):
    rng = np.random.default_rng(n + k)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    check_int8(isa, n, k, threads, [sparse_bytes(isa, k, density) for density in DENSITIES], weight, bias)


def test_the_largest_bytes_everywhere_do_not_saturate(isa):
    n, k = 37, 803
    weight = np.ones((n, k), "float32")
    weight[::2] = -1
    check_int8(isa, n, k, 1, [np.full(k, isa.activation_levels, "uint8")], weight, np.zeros(n, "float32"))


@pytest.mark.parametrize(("n", "k", "threads"), CASES)
def test_fp32_products_match_numpy(isa, n, k, threads):
    rng = np.random.default_rng(n + k)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    packed, packed_bias = columns.pack_columns_fp32(isa, weight, bias)
    kernel = compile_kernel(isa, columns.columns_fp32(isa, n, k, threads), threads)
    for density in DENSITIES:
        x = sparse(k, density)
        operands = (*nonzero_operands(x, "float32"), packed, packed_bias)
        (y,) = call(kernel, *operands, Output((n,), "float32"), threads=threads)
        size = np.abs(weight) @ x + np.abs(bias)
        assert (np.abs(y - (weight.astype("float64") @ x + bias)) <= 1e-5 * size).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    n=st.integers(1, 150),
    k=st.integers(1, 100),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)
def test_int8_products_are_exact_at_any_shape_and_density(isa, n, k, seed, density):
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    check_int8(isa, n, k, 2, [sparse_bytes(isa, k, density, seed)], weight, bias)


@pytest.mark.parametrize(("n", "k"), [(37, 19)])
def test_quantize_list_and_product_joined_in_one_kernel_equal_the_three_apart(isa, n, k):
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    x = sparse(k, 0.3)
    packed, meta = columns.pack_columns_int8(isa, weight, bias)
    quantize, listing = quantize_vector(isa, k, nonnegative=True), nonzeros.nonzero_bytes(isa, k)
    product = columns.columns_int8(isa, n, k, 2)
    q, affine = run(isa, quantize, x, Output((round_up(k, isa.row_bytes),), "uint8"), Output((2,), "float32"))
    listed = run(isa, listing, q, *list_outputs(k, "uint8"))
    (apart,) = run(isa, product, *listed, affine, packed, meta, Output((n,), "float32"), threads=2)
    operands = {"x": x, "weight": packed, "meta": meta}
    stages = [
        (quantize, ["x"], ["q", "affine"]),
        (listing, ["q"], ["columns", "values", "count"]),
        (product, ["columns", "values", "count", "affine", "weight", "meta"], ["y"]),
    ]
    joined = join(operands, stages, "y")
    (together,) = run(isa, joined, *operands.values(), Output((n,), "float32"), threads=2)
    np.testing.assert_array_equal(together, apart)
