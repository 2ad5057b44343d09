"""RewriteTransposes: matrices of floats that are transposed become kernels; others stay."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.rewrite_transposes import RewriteTransposes
from schedules.compiling import compiled
from schedules.cpu import ISAS, native_isa
from schedules.transpose import transpose

ISA = ISAS["avx2"]


def transposing(shape: tuple, axes: list[int], dtype: str = "float32") -> tvm.IRModule:
    """Return a module that transposes a tensor."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(relax.op.permute_dims(x, axes)))
        builder.emit_func_output(output)
    return builder.get()


def test_an_image_becomes_a_kernel_on_plain_vectors():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 32, 5, 7), "float32")) -> R.Tensor((1, 5, 7, 32), "float32"):
            with R.dataflow():
                y = R.permute_dims(x, axes=[0, 2, 3, 1])
                R.output(y)
            return y

    builder, vector = relax.BlockBuilder(), relax.TensorType([1120], "float32")
    target, given = builder.add_func(transpose(ISA, 1, 32, 35, 1), "transpose0_transpose"), relax.Var("x", vector)
    attributes = {"Primitive": True, "dual.site": "transpose0"}
    with builder.function("transpose0_step", [given], attrs=attributes, private=True):
        with builder.dataflow():
            turned = builder.emit(relax.call_tir(target, [given], vector))
            output = builder.emit_output(relax.Tuple([turned]))
        builder.emit_func_output(output)
    step, x = (
        builder.get().get_global_var("transpose0_step"),
        relax.Var("x", relax.TensorType([1, 32, 5, 7], "float32")),
    )
    with builder.function("main", [x]):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, [1120]))
            parts = builder.emit(relax.Call(step, [flat]))
            turned = builder.emit(relax.TupleGetItem(parts, 0))
            output = builder.emit_output(relax.op.reshape(turned, [1, 5, 7, 32]))
        builder.emit_func_output(output)
    tidy = relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(tidy(RewriteTransposes(ISA, 2)(Before)), tidy(builder.get()))


def test_large_images_are_shared_by_threads():
    module = RewriteTransposes(ISA, 2)(transposing((1, 64, 32, 32), [0, 2, 3, 1]))
    (found,) = [f for v, f in module.functions.items() if v.name_hint == "transpose0_transpose"]
    tvm.ir.assert_structural_equal(found, transpose(ISA, 1, 64, 1024, 2), map_free_vars=True)


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((1, 3, 40, 40), [0, 2, 3, 1], "float32"),  # few channels
        ((20, 20, 20), [2, 1, 0], "float32"),  # no matrix
        ((20, 30), [1, 0], "uint8"),
        ((20, 30, 1), [0, 2, 1], "float32"),  # nothing moves
        ((tvm.tirx.Var("n", "int64"), 20), [1, 0], "float32"),
    ],
    ids=str,
)
def test_others_stay(shape, axes, dtype):
    module = transposing(shape, axes, dtype)
    tvm.ir.assert_structural_equal(RewriteTransposes(ISA, 1)(module), module)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 17, 5, 7), [0, 2, 3, 1]),
        ((2, 5, 7, 17), [0, 3, 1, 2]),
        ((16, 1, 40), [2, 1, 0]),
        ((3, 2, 16, 4, 5), [0, 1, 3, 4, 2]),
        ((4, 5, 3, 7), [2, 3, 0, 1]),
    ],
    ids=str,
)
def test_what_is_rewritten_is_what_numpy_transposes(shape, axes):
    isa = native_isa()
    module = RewriteTransposes(isa, 1)(transposing(shape, axes))
    assert "transpose0_step" in {target.name_hint for target in module.functions}
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    machine = relax.VirtualMachine(compiled(module, isa), tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), x.transpose(axes))
