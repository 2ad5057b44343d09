"""Pieces of kernels: they see where they stand, may contain each other, and are nothing outside of a kernel."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import tirx as T

from schedules.inlining import inline
from tests.schedules.conftest import RUNNABLE, Output, run


def test_pieces_see_what_stands_around_them_and_contain_each_other():
    factor, count = 3.0, 5

    @inline
    def scaled(x, y, i):
        y[i] = x[i] * T.float32(factor)

    @inline
    def every(x, y, piece):
        for i in T.serial(count):
            piece(x, y, i)

    @T.prim_func(s_tir=True, private=True)
    def kernel(x: T.Buffer((count,), "float32"), y: T.Buffer((count,), "float32")):
        T.func_attr({"tirx.noalias": True})
        every(x, y, scaled)

    x = np.arange(count, dtype="float32")
    (y,) = run(RUNNABLE[-1], kernel, x, Output((count,), "float32"))
    np.testing.assert_array_equal(y, x * factor)
    with pytest.raises(RuntimeError, match="scaled is used outside of a kernel"):
        scaled(x, y, 0)
