"""DivideStep: where a step is divided, and that its parts compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from relay_passes import divide_step
from relay_passes.divide_step import PARTS, DivideStep, part_lengths
from relay_passes.one_memory import in_one_memory
from schedules import cpu
from schedules.compiling import compiled

N, FEW = 700, 24


def step():
    """Return ``(x) -> y`` in nine statements: large and small vectors in between, a value and memory of its own."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("root"):
            large = T.sblock_alloc_buffer((N,), "float32")
            small = T.sblock_alloc_buffer((FEW,), "float32")
            inner = T.sblock_alloc_buffer((FEW,), "float32")
            for i in T.serial(N):
                large[i] = x[i] * T.float32(2)
            for i in T.serial(FEW):
                small[i] = large[N - 1 - i]
            for i in T.serial(FEW):
                inner[i] = small[i] + T.float32(1)
            for i in T.serial(FEW):
                small[i] = small[i] + inner[i]
            own = T.alloc_buffer((N,), "float32")
            for i in T.serial(N):
                own[i] = large[i] + T.float32(1)
            kept: T.let[T.float32] = x[3]
            for i in T.serial(N):
                large[i] = own[i] - kept
            for i in T.serial(N):
                y[i] = large[i] + small[i % FEW]

    return kernel


def expected(x):
    small = 2 * x[::-1][:FEW]
    small = small + small + 1
    return 2 * x + 1 - x[3] + small[np.arange(N) % FEW]


def divide(patch, most: int, whole: int = 0) -> None:
    """Divide steps of more than `whole` statements into parts of `most`."""
    patch.setattr(divide_step, "_MOST", most)
    patch.setattr(divide_step, "_WHOLE", whole)


@pytest.mark.parametrize(
    ("most", "whole", "lengths"), [(2, 0, [2, 2, 4, 1]), (5, 8, [8, 1]), (2, 9, [9]), (32, 256, [9])]
)
def test_no_part_ends_where_a_value_or_memory_of_its_own_is_used_behind(monkeypatch, most, whole, lengths):
    divide(monkeypatch, most, whole)
    assert part_lengths(list(step().body.block.body.seq)) == lengths


@pytest.mark.parametrize(("most", "parts"), [(2, 4), (5, 2), (9, 1)])
def test_parts_compute_the_same(monkeypatch, native, most, parts):
    divide(monkeypatch, most)
    kernel, offsets = in_one_memory(step(), 1, {})
    assert len(kernel.attrs[PARTS]) == parts
    module = DivideStep()(tvm.IRModule({"step": kernel.with_attr("global_symbol", "step")}))
    assert len(module.functions) == (1 + parts if parts > 1 else 1)
    assert not any(PARTS in function.attrs for function in module.functions.values())
    run = compiled(module, native)["step"]
    memory = cpu.aligned_empty((offsets[-1],), "uint8")
    memory[:] = 0xA5
    x, y = (memory[offset : offset + N * 4].view("float32") for offset in offsets[:2])
    x[:] = np.random.default_rng(0).standard_normal(N)
    before = x.copy()
    run(tvm.runtime.from_dlpack(memory))
    np.testing.assert_allclose(y, expected(before), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x, before)


def test_what_parts_share_lies_in_the_memory_and_the_rest_on_their_stacks(monkeypatch):
    divide(monkeypatch, 2)
    kernel, _ = in_one_memory(step(), 1, {})
    assert [buffer.name for buffer in kernel.body.block.alloc_buffers] == ["inner"]


def test_other_functions_are_left_alone():
    module = tvm.IRModule({"main": step().with_attr("global_symbol", "main")})
    tvm.ir.assert_structural_equal(DivideStep()(module), module)
