"""Transposition against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu
from schedules.transpose import BLOCK, can_transpose, transpose
from tests.schedules.conftest import RUNNABLE, Output, call, compile_kernel


def check(isa, matrices: int, rows: int, columns: int, threads: int):
    x = np.random.default_rng(0).standard_normal((matrices, rows, columns)).astype("float32")
    kernel = compile_kernel(isa, transpose(isa, matrices, rows, columns, threads), threads)
    (y,) = call(kernel, x.reshape(-1), Output((x.size,), "float32"), threads=threads)
    np.testing.assert_array_equal(y.reshape(matrices, columns, rows), x.transpose(0, 2, 1))


@pytest.mark.parametrize("shape", [(1, BLOCK, BLOCK), (1, 64, 33), (2, 49, 128), (3, 17, 31)], ids=str)
def test_matrices_are_transposed(isa, shape, threads):
    check(isa, *shape, threads)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(RUNNABLE),
    matrices=st.integers(1, 3),
    rows=st.integers(BLOCK, 70),
    columns=st.integers(BLOCK, 70),
    threads=st.integers(1, 2),
)
def test_any_matrix_is_transposed(isa, matrices, rows, columns, threads):
    check(isa, matrices, rows, columns, threads)


def test_a_matrix_without_a_block_is_somebody_elses():
    assert can_transpose(BLOCK, BLOCK) and not can_transpose(BLOCK - 1, 99) and not can_transpose(99, BLOCK - 1)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_every_level_compiles(level):
    compile_kernel(level, transpose(level, 2, 40, 20, 1))
