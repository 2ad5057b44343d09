"""Little modules: quantized projections and their interleaved rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import little
from schedules.quantize import quantize_rows
from tests.schedules.conftest import RUNNABLE, Output, join, run

#: Rows, columns, threads.
CASES = [(1, 19, 2), (37, 1, 1), (37, 19, 2), (513, 96, 1), (513, 96, 2)]
BITS = [8, 4, 2]


def quantize(isa, z, bits):
    """Return the bytes, padding included, and the parameters."""
    q, affine = run(
        isa,
        little.quantize_projection(isa, len(z), bits),
        z,
        Output((little.padded_inputs(len(z)),), "uint8"),
        Output((2,), "float32"),
    )
    assert not q[len(z) :].any(), "padding is zero"
    return q, affine


def check_rows(isa, n, k, bits, threads, q, affine, weight, bias):
    """Run the kernel and compare with the exact sums of the quantized values."""
    packed, meta = little.pack_little(isa, weight, bias, bits)
    kernel = little.little_rows(isa, n, k, bits, threads)
    (y,) = run(isa, kernel, q, affine, packed, meta, Output((n,), "float32"), threads=threads)
    quantized = quantize_rows(weight, bits)
    row_scale, values = quantized.scale.astype("float64"), quantized.values.astype("int64")
    if bits < 8:
        dot = values @ q[:k].view("int8").astype("int64")
        # The kernel sums weights that are too large by the offset and takes that times the inputs' sum away.
        size = np.abs(dot) + 2 * little.CODES[bits].offset * abs(float(affine[1]))
    else:
        zero = np.float64(affine[1])
        dot = values @ q[:k].astype("int64") - zero * values.sum(axis=1)
        size = np.abs(dot) + 2 * np.abs(zero * values.sum(axis=1))
    exact = np.float64(affine[0]) * row_scale * dot + bias
    assert (np.abs(y - exact) <= 5e-7 * (affine[0] * row_scale * size + np.abs(bias)) + 1e-30).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [1, 3, 19, 64, 100])
def test_bytes_stand_for_the_projection_within_half_a_step(isa, bits, k):
    z = np.random.default_rng(k).standard_normal(k).astype("float32")
    q, (scale, offset) = quantize(isa, z, bits)
    values = q[:k].view("int8").astype("float64") if bits < 8 else q[:k].astype("float64") - offset
    assert np.abs(scale * values - z).max() <= 0.501 * scale
    if bits < 8:
        assert offset == values.sum()
    else:
        assert q.max() <= isa.activation_levels


@pytest.mark.parametrize("bits", BITS)
def test_a_projection_of_zeros_gives_finite_parameters(isa, bits):
    q, (scale, offset) = quantize(isa, np.zeros(19, "float32"), bits)
    assert np.isfinite(scale) and scale > 0
    assert (q[:19] == (0 if bits < 8 else offset)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "k", "threads"), CASES)
def test_rows_are_the_exact_sums_of_the_quantized_values(isa, n, k, threads, bits):
    rng = np.random.default_rng(n + k)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    q, affine = quantize(isa, rng.standard_normal(k).astype("float32"), bits)
    check_rows(isa, n, k, bits, threads, q, affine, weight, bias)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_bytes_everywhere_do_not_saturate(isa, bits, sign):
    n, k = 70, 96
    if bits < 8:
        q, affine = np.full(k, 127 * sign, "int8").view("uint8"), np.array([1, 127 * sign * k], "float32")
    else:
        q, affine = np.full(k, isa.activation_levels, "uint8"), np.array([1, 0], "float32")
    weight = np.full((n, k), float(sign), "float32")
    check_rows(isa, n, k, bits, 1, q, affine, weight, np.zeros(n, "float32"))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    n=st.integers(1, 150),
    k=st.integers(1, 100),
    bits=st.sampled_from(BITS),
    seed=st.integers(0, 1000),
)
def test_rows_are_exact_at_any_shape(isa, n, k, bits, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    q, affine = quantize(isa, rng.standard_normal(k).astype("float32"), bits)
    check_rows(isa, n, k, bits, 2, q, affine, weight, bias)


@pytest.mark.parametrize("bits", BITS)
def test_quantize_and_rows_joined_in_one_kernel_equal_the_two_apart(isa, bits):
    n, k = 70, 19
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal(n).astype("float32")
    z = rng.standard_normal(k).astype("float32")
    packed, meta = little.pack_little(isa, weight, bias, bits)
    rows = little.little_rows(isa, n, k, bits, 2)
    q, affine = quantize(isa, z, bits)
    (apart,) = run(isa, rows, q, affine, packed, meta, Output((n,), "float32"), threads=2)
    operands = {"z": z, "weight": packed, "meta": meta}
    stages = [
        (little.quantize_projection(isa, k, bits), ["z"], ["q", "affine"]),
        (rows, ["q", "affine", "weight", "meta"], ["y"]),
    ]
    joined = join(operands, stages, "y")
    (together,) = run(isa, joined, *operands.values(), Output((n,), "float32"), threads=2)
    np.testing.assert_array_equal(together, apart)
