"""OneMemory: a kernel's operands, results and vectors in between as parts of one region."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

from relay_passes.one_memory import OneMemory, in_one_memory
from schedules import cpu
from schedules.compiling import compiled
from schedules.conv2d import conv2d, default_tile
from schedules.conv2d_shape import Conv2d

N, ODD = 700, 33


def chain():
    """Return ``(x, state, weight) -> (y, count, new state)`` with five large vectors in between."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x: T.Buffer((1, N), "float32"),
        state: T.Buffer((1, N), "float32"),
        weight: T.Buffer((N,), "float32"),
        y: T.Buffer((ODD,), "float32"),
        count: T.Buffer((1,), "int32"),
        after: T.Buffer((1, N), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("root"):
            a = T.sblock_alloc_buffer((N,), "float32")
            b = T.sblock_alloc_buffer((N,), "float32")
            c = T.sblock_alloc_buffer((N + 5,), "float32")
            d = T.sblock_alloc_buffer((N,), "int32")
            e = T.sblock_alloc_buffer((1, N), "float32")
            small = T.sblock_alloc_buffer((1,), "int32")
            for i in T.serial(N):
                a[i] = x[0, i] + T.float32(1)
            for i in T.serial(N):
                b[i] = a[i] * weight[i]
            for i in T.serial(N):
                c[i] = b[N - 1 - i] + state[0, i]
            small[0] = 0
            for i in T.serial(N):
                d[i] = T.Cast("int32", c[i] > T.float32(0))
                small[0] = small[0] + d[i]
            for i in T.serial(N):
                e[0, i] = c[i] * T.Cast("float32", d[i])
            count[0] = small[0]
            for i in T.serial(N):
                after[0, i] = e[0, N - 1 - i] - state[0, i]
            for i in T.serial(ODD):
                y[i] = e[0, i]

    return kernel


def expected(x, state, weight):
    c = ((x[0] + 1) * weight)[::-1] + state[0]
    e = np.maximum(c, 0)
    return e[:ODD], (c > 0).sum(), e[::-1] - state[0]


@pytest.fixture(scope="module")
def placed(native):
    kernel, offsets = in_one_memory(chain(), 3, {2: 1})
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return compiled(module, native)["main"], offsets


def test_every_parameter_has_a_cache_line_of_its_own_and_a_state_one_place(placed):
    _, offsets = placed
    x, state, weight, y, count, after, size = offsets
    assert all(offset % 64 == 0 for offset in offsets)
    assert after == state
    assert weight - state >= N * 4 and y - weight >= N * 4 and count - y >= ODD * 4 and size > count > x


def test_vectors_that_never_live_at_once_share_memory(placed):
    _, offsets = placed
    line = -(-N * 4 // 64) * 64
    # x, state, new state, weight; a and c as one, b, d and e.
    assert offsets[-1] <= 4 * line + 4 * (line + 64) + 4 * 64


def test_the_kernel_computes_the_same_and_replaces_its_state(placed):
    run, offsets = placed
    memory = cpu.aligned_empty((offsets[-1],), "uint8")
    memory[:] = 0xA5
    views = [memory[o : o + n * 4].view("float32") for o, n in zip(offsets, (N, N, N, ODD), strict=False)]
    rng = np.random.default_rng(0)
    x, state, weight = (rng.standard_normal(shape).astype("float32") for shape in ((1, N), (1, N), N))
    views[0][:], views[1][:], views[2][:] = x[0], state[0], weight
    tensor = tvm.runtime.from_dlpack(memory)
    for _ in range(3):
        y, count, after = expected(x, state, weight)
        run(tensor)
        np.testing.assert_allclose(views[3], y, rtol=1e-6)
        assert memory[offsets[4] : offsets[4] + 4].view("int32")[0] == count
        np.testing.assert_allclose(views[1], after, rtol=1e-5, atol=1e-6)
        state = views[1][None].copy()
    np.testing.assert_array_equal(views[0], x[0])
    np.testing.assert_array_equal(views[2], weight)


@pytest.mark.parametrize("level", cpu.ISAS.values(), ids=list(cpu.ISAS))
def test_sums_of_a_convolution_stay_in_registers_while_weights_are_fetched_ahead(level):
    conv = Conv2d(1, 128, 1, 1024, 128, (64, 1), padding=(31, 0, 32, 0))
    kernel, _ = in_one_memory(conv2d(level, conv, default_tile(level, conv), 1), 4, {})
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    code = compiled(module, level).mod.inspect_source("ll")
    loops = [block for block in code.split("\n\n") if "call void @llvm.prefetch" in block]
    assert loops and all("fmuladd" in block and "store " not in block for block in loops)


def test_a_single_kernel_of_open_extents_is_no_step():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([tvm.tirx.Var("n", "int64"), 3], "float32"))
    with builder.function("main", [x], attrs={"num_input": 1, "num_states": 0, "output_names": ["y"]}):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(y)
    module = relax.transform.LegalizeOps()(builder.get())
    assert OneMemory()(module).same_as(module)
