"""Reshapes at a step's borders: which of them need no copy, and that the kernel computes the same without."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from relay_passes.one_memory import in_one_memory
from relay_passes.same_places import reshaped, same_places
from schedules import cpu

ROWS, COLUMNS = 30, 40
N = ROWS * COLUMNS


def step():
    """Return ``(x) -> (y, z)``: images in and out, vectors in between; `z` is the vector that `y` is computed from."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x: T.Buffer((1, ROWS, COLUMNS), "float32"),
        y: T.Buffer((ROWS, COLUMNS), "float32"),
        z: T.Buffer((ROWS, COLUMNS), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("root"):
            flat = T.sblock_alloc_buffer((N,), "float32")
            plus = T.sblock_alloc_buffer((N,), "float32")
            twice = T.sblock_alloc_buffer((N,), "float32")
            for i in T.serial(N):
                with T.sblock("in"):
                    v = T.axis.spatial(N, i)
                    flat[v] = x[0, v % N // COLUMNS, v % COLUMNS]
            for i in T.serial(N):
                plus[i] = flat[N - 1 - i] + T.float32(1)
            for i, j in T.grid(ROWS, COLUMNS):
                with T.sblock("out"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    z[vi, vj] = plus[vi * COLUMNS + vj]
            for i in T.serial(N):
                twice[i] = plus[i] + z[i // COLUMNS, i % COLUMNS]
            for i, j in T.grid(ROWS, COLUMNS):
                with T.sblock("out"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = twice[vi * COLUMNS + vj]

    return kernel


def copied(rows=3, at=lambda i, j: (i * 4 + j) % 12, after=lambda value: value):
    """Return a statement that writes `rows` rows of ``b: f32[3, 4]`` from ``a: f32[12]``, and the two buffers."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(a: T.Buffer((12,), "float32"), b: T.Buffer((3, 4), "float32")):
        for i, j in T.grid(rows, 4):
            with T.sblock("copy"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = after(a[at(vi, vj)])

    return kernel.body.block.body, kernel.params


def test_a_copy_in_the_same_order_is_a_reshape():
    statement, parameters = copied()
    source, copy = reshaped(statement)
    assert source.same_as(parameters[0]) and copy.same_as(parameters[1])


@pytest.mark.parametrize(
    "other", [{"at": lambda i, j: j * 3 + i}, {"rows": 2}, {"after": lambda value: value + T.float32(1)}]
)
def test_everything_else_is_not(other):
    assert reshaped(copied(**other)[0]) is None


def test_results_that_are_read_again_keep_their_copy():
    kernel = step()
    (x, y, z), root = kernel.params, kernel.body.block
    flat, plus, twice = root.alloc_buffers
    places = same_places(list(root.body.seq), [x], [y, z], root.alloc_buffers)
    assert {a.name: b.name for a, b in places.same.items()} == {flat.name: x.name, twice.name: y.name}
    assert len(places.statements) == len(root.body.seq) - 2 and plus not in places.same


def test_states_keep_theirs():
    kernel = step()
    root = kernel.body.block
    assert same_places(list(root.body.seq), [], [], root.alloc_buffers).same == {}


@pytest.mark.parametrize("afar", [(), (0, 1), (1,)])
def test_the_kernel_computes_the_same_wherever_images_lie(native, afar):
    kernel, offsets = in_one_memory(step(), 1, {}, afar)
    assert isinstance(kernel, tirx.PrimFunc)
    run = tvm.compile(
        tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target=cpu.tvm_target(native, 1)
    )["main"]
    memory = cpu.aligned_empty((offsets[-1],), "uint8")
    memory[:] = 0
    views = [memory[o : o + 4 * N].view("float32") for o in offsets[:3]]
    # Callers' arrays start anywhere.
    outside = [np.zeros(N + 3, "float32")[3:] for _ in views]
    for i, position in enumerate(afar):
        distance = (outside[position].ctypes.data - views[position].ctypes.data) // 4
        memory[8 * i : 8 * i + 8].view("int64")[0] = distance
        views[position] = outside[position]
    x, y, z = views
    x[:] = np.random.default_rng(0).standard_normal(N)
    run(tvm.runtime.from_dlpack(memory))
    np.testing.assert_array_equal(z, x[::-1] + 1)
    np.testing.assert_array_equal(y, 2 * z)


def test_values_that_others_are_written_over_are_copied():
    """So are those of closed rows, before open rows are computed."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(closed: T.Buffer((N,), "float32"), rows: T.Buffer((2,), "int32"), y: T.Buffer((N,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("root"):
            values = T.sblock_alloc_buffer((N,), "float32")
            for i in T.serial(N):
                with T.sblock("closed"):
                    v = T.axis.spatial(N, i)
                    values[v] = closed[v]
            for task in T.serial(1):
                with T.sblock("rows"):
                    vt = T.axis.spatial(1, task)
                    T.reads(rows[0:2])
                    T.writes(values[0:N])
                    for r in T.serial(2):
                        values[rows[r]] = T.float32(5) + T.Cast("float32", vt)
            for i in T.serial(N):
                with T.sblock("out"):
                    v = T.axis.spatial(N, i)
                    y[v] = values[v] * T.float32(2)

    root = kernel.body.block
    closed, rows, y = kernel.params
    places = same_places(list(root.body.seq), [closed, rows], [y], root.alloc_buffers)
    assert not places.same and len(places.statements) == 3
