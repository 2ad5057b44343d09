"""ScheduleLoops: kernels of several operators become one pass over memory, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.script import tirx as T

from relay_passes.schedule_loops import ScheduleLoops, scheduled
from schedules.compiling import compiled
from schedules.conv2d import conv2d, default_tile
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS

SHAPE = (1, 9, 11, 33)


def kernel_of(emit, shape=SHAPE) -> tirx.PrimFunc:
    """Return what TVM makes of what a function of builder and input emits, as one kernel."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(emit(builder, x))
        builder.emit_func_output(output)
    fuse = relax.transform
    stages = [fuse.LegalizeOps(), fuse.AnnotateTIROpPattern(), fuse.FoldConstant(), fuse.FuseOps(), fuse.FuseTIR()]
    module = tvm.transform.Sequential([*stages, fuse.DeadCodeElimination(["main"])])(builder.get())
    (kernel,) = (function for function in module.functions.values() if isinstance(function, tirx.PrimFunc))
    return kernel


def loops(kernel: tirx.PrimFunc) -> list[list[tirx.For]]:
    """Return the loops of each nest of a kernel, from the outside in."""
    body = kernel.body.block.body
    nests = []
    for statement in list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]:
        nest = []
        while isinstance(statement, tirx.For):
            nest.append(statement)
            statement = statement.body
        nests.append(nest)
    return nests


def same(before: tirx.PrimFunc, after: tirx.PrimFunc, native) -> None:
    rng = np.random.default_rng(0)
    shapes = [[int(extent) for extent in parameter.shape] for parameter in before.params]
    given = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    results = []
    for kernel in (before, after):
        run = compiled(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), native)["main"]
        tensors = [tvm.runtime.tensor(array) for array in given]
        run(*tensors)
        results.append(tensors[-1].numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)


def hard_swish(builder, x):
    flat = builder.emit(relax.op.reshape(x, [99, 33]))
    inner = builder.emit(relax.op.add(flat, relax.const(3.0)))
    inner = builder.emit(relax.op.minimum(builder.emit(relax.op.nn.relu(inner)), relax.const(6.0)))
    return builder.emit(relax.op.divide(builder.emit(relax.op.multiply(flat, inner)), relax.const(6.0)))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_hard_swish_is_one_pass(native, threads):
    before = kernel_of(hard_swish)
    after = scheduled(before, threads)
    assert len(loops(before)) == 6 and len(loops(after)) == 1
    assert not after.body.block.alloc_buffers
    same(before, after, native)


@pytest.mark.parametrize(("size", "parallel"), [(64, False), (300, True)])
def test_large_loops_are_shared_between_threads(native, size, parallel):
    before = kernel_of(lambda builder, x: relax.op.negative(builder.emit(relax.op.abs(x))), (size, size))
    after = scheduled(before, 2)
    ((outer, _),) = loops(after)
    assert (outer.kind == tirx.ForKind.PARALLEL) == parallel
    same(before, after, native)


def test_what_takes_long_is_computed_once(native):
    def emit(builder, x):
        y = builder.emit(relax.op.exp(x))
        return builder.emit(relax.op.multiply(y, builder.emit(relax.op.add(y, relax.const(1.0)))))

    before = kernel_of(emit)
    after = scheduled(before, 1)
    assert len(loops(after)) == 2
    same(before, after, native)


def test_loops_go_over_what_is_reshaped_at_the_end(native):
    def emit(builder, x):
        spread = builder.emit(relax.op.permute_dims(builder.emit(relax.op.nn.relu(x)), [0, 2, 1, 3]))
        return builder.emit(relax.op.reshape(spread, [9 * 11 * 33]))

    before = kernel_of(emit)
    after = scheduled(before, 1)
    assert [[int(loop.extent) for loop in nest if int(loop.extent) > 1] for nest in loops(after)] == [[11, 9, 33]]
    same(before, after, native)


def test_a_concatenation_is_part_of_what_reads_it(native):
    def emit(builder, x):
        both = builder.emit(relax.op.concat([x, builder.emit(relax.op.nn.relu(x))], axis=3))
        return builder.emit(relax.op.multiply(both, relax.const(2.0)))

    before = kernel_of(emit)
    after = scheduled(before, 1)
    assert len(loops(after)) == 1
    same(before, after, native)


def test_means_over_pixels_add_one_row_after_another(native):
    before = kernel_of(lambda builder, x: builder.emit(relax.op.mean(x, [1, 2], keepdims=True)))
    after = scheduled(before, 1)
    sums = max(loops(after), key=lambda nest: np.prod([int(loop.extent) for loop in nest]))
    assert [int(loop.extent) for loop in sums if int(loop.extent) > 1] == [9, 11, 33]
    same(before, after, native)


def test_means_over_pixels_behind_one_another_stay_as_they_are(native):
    before = kernel_of(lambda builder, x: builder.emit(relax.op.mean(x, [2, 3])))
    same(before, scheduled(before, 1), native)


def test_values_that_a_pool_reads_several_times_are_computed_once(native):
    @T.prim_func(s_tir=True, private=True)
    def pool(x: T.Buffer((10, 33), "float32"), y: T.Buffer((8, 33), "float32")):
        T.func_attr({"tirx.noalias": True})
        with T.sblock("root"):
            root = T.sblock_alloc_buffer((10, 33), "float32")
            for i, j in T.grid(10, 33):
                with T.sblock("root_of_x"):
                    row, column = T.axis.remap("SS", [i, j])
                    root[row, column] = T.max(x[row, column], T.float32(0))
            for i, j, k in T.grid(8, 33, 3):
                with T.sblock("y"):
                    row, column, tap = T.axis.remap("SSR", [i, j, k])
                    with T.init():
                        y[row, column] = T.float32(0)
                    y[row, column] = T.max(y[row, column], root[row + tap, column])

    after = scheduled(pool, 1)
    assert len(after.body.block.alloc_buffers) == 1
    same(pool, after, native)


def test_schedules_of_this_project_stay_as_they_are():
    conv = Conv2d(1, 5, 5, 8, 16, (3, 3), padding=(1, 1, 1, 1))
    isa = ISAS["avx2"]

    @T.prim_func(s_tir=True, private=True)
    def open_shape(a: T.handle, b: T.handle):
        n = T.int64()
        x, y = T.match_buffer(a, (n,), "float32"), T.match_buffer(b, (n,), "float32")
        for i in range(n):
            with T.sblock("y"):
                at = T.axis.spatial(n, i)
                y[at] = x[at] + T.float32(1)

    module = tvm.IRModule({"conv": conv2d(isa, conv, default_tile(isa, conv), 1), "open": open_shape})
    after = ScheduleLoops(2)(module)
    tvm.ir.assert_structural_equal(after, module)
