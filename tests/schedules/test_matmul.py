"""Matrix products: many vectors at once, at sizes that fill tiles and panels and that do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.matmul import matmul_fp32, matmul_int8, pack_matmul_fp32, pack_matmul_int8, quantize_matrix
from schedules.quantize import quantize_rows, quantize_vector, round_up
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel, run

#: (m, n, k): one of each, less than a vector, whole tiles, tiles and panels that overlap.
SHAPES = [(1, 1, 1), (3, 5, 7), (8, 48, 64), (9, 49, 33), (35, 100, 130), (17, 15, 3)]


def data(m, n, k):
    rng = np.random.default_rng(m + n + k)
    return tuple(rng.standard_normal(shape).astype("float32") for shape in ((m, k), (n, k), (n,)))


def quantized(isa, x, nonnegative=False):
    m, k = x.shape
    outputs = Output((m, round_up(k, isa.row_bytes)), "uint8"), Output((m, 2), "float32")
    return run(isa, quantize_matrix(isa, k, nonnegative), x, *outputs)


def check_fp32(isa, m, n, k, threads):
    x, weight, bias = data(m, n, k)
    (y,) = run(
        isa,
        matmul_fp32(isa, n, k, threads),
        x,
        *pack_matmul_fp32(isa, weight, bias),
        Output((m, n), "float32"),
        threads=threads,
    )
    np.testing.assert_allclose(y, x @ weight.T + bias, rtol=1e-4, atol=1e-4)


def check_int8(isa, m, n, k, threads):
    x, weight, bias = data(m, n, k)
    q, affine = quantized(isa, x)
    kernel = compile_kernel(isa, matmul_int8(isa, n, k, threads), threads)
    (y,) = call(kernel, q, affine, *pack_matmul_int8(isa, weight, bias), Output((m, n), "float32"), threads=threads)
    values = affine[:, :1].astype("float64") * (q[:, :k] - affine[:, 1:].astype("float64"))
    wanted = values @ quantize_rows(weight).dequantized().T.astype("float64") + bias
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32(isa, shape, threads):
    check_fp32(isa, *shape, threads)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_the_product_of_what_the_bytes_stand_for(isa, shape, threads):
    check_int8(isa, *shape, threads)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from(RUNNABLE), st.integers(1, 20), st.integers(1, 120), st.integers(1, 70))
def test_any_shape(isa, m, n, k):
    check_fp32(isa, m, n, k, 1)
    check_int8(isa, m, n, k, 1)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_each_row_is_quantized_as_a_vector_is(isa, nonnegative):
    x = data(5, 1, 37)[0]
    x = np.abs(x) if nonnegative else x
    x[2] = 0
    found = quantized(isa, x, nonnegative)
    kernel = compile_kernel(isa, quantize_vector(isa, 37, nonnegative))
    outputs = Output((round_up(37, isa.row_bytes),), "uint8"), Output((2,), "float32")
    for i, row in enumerate(x):
        for one, whole in zip(call(kernel, row, *outputs), found, strict=True):
            np.testing.assert_array_equal(one, whole[i])
