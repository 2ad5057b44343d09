"""MarkSites: every layer that could be rewritten becomes one call of its own function."""

from __future__ import annotations

import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.mark_sites import MarkSites, layer_activation


def sites(module: IRModule) -> dict:
    """Return the site functions of a module by name."""
    found = {}
    for function in module.functions.values():
        if isinstance(function, relax.Function) and function.attrs and "dual.site" in function.attrs:
            found[str(function.attrs["dual.site"])] = function
    return found


def test_two_layers_become_two_functions_and_the_second_may_skip_zeros(tools):
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"),
            w: R.Tensor((4, 6), "float32"),
            b: R.Tensor((6,), "float32"),
            w2: R.Tensor((6, 3), "float32"),
        ) -> R.Tensor((1, 3), "float32"):
            with R.dataflow():
                y = R.matmul(x, w)
                z = R.add(y, b)
                r = R.nn.relu(z)
                m = R.matmul(r, w2)
                o = R.sigmoid(m)
                R.output(o)
            return o

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def dense0(
            x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32"), b: R.Tensor((6,), "float32")
        ) -> R.Tensor((1, 6), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense0"})
            with R.dataflow():
                y = R.matmul(x, w)
                z = R.add(y, b)
                r = R.nn.relu(z)
                R.output(r)
            return r

        @R.function(private=True)
        def dense1(r: R.Tensor((1, 6), "float32"), w2: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 1, "dual.site": "dense1"})
            with R.dataflow():
                m = R.matmul(r, w2)
                o = R.sigmoid(m)
                R.output(o)
            return o

        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"),
            w: R.Tensor((4, 6), "float32"),
            b: R.Tensor((6,), "float32"),
            w2: R.Tensor((6, 3), "float32"),
        ) -> R.Tensor((1, 3), "float32"):
            cls = Expected
            with R.dataflow():
                r = cls.dense0(x, w, b)
                o = cls.dense1(r, w2)
                R.output(o)
            return o

    weights = {"w": tools.normal(4, 6), "b": tools.normal(6), "w2": tools.normal(6, 3)}
    tvm.ir.assert_structural_equal(MarkSites()(tools.bound(Before, **weights)), tools.bound(Expected, **weights))


def test_a_product_with_an_input_is_no_site():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

    tvm.ir.assert_structural_equal(MarkSites()(Before), Before)


@pytest.mark.parametrize("bias_shape", [(1,), (1, 6), (3, 1)])
def test_an_addend_that_is_not_one_value_per_output_stays_outside(tools, bias_shape):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([1, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(tools.normal(4, 6))))
            output = builder.emit_output(relax.op.add(product, relax.const(tools.normal(*bias_shape))))
        builder.emit_func_output(output)
    (site,) = sites(MarkSites()(builder.get())).values()
    assert [tuple(p.ty.shape) for p in site.params] == [(1, 4), (4, 6)]


def test_an_addend_that_repeats_a_single_output_stays_outside(tools):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([1, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(tools.normal(4, 1))))
            output = builder.emit_output(relax.op.add(product, relax.const(tools.normal(6))))
        builder.emit_func_output(output)
    (site,) = sites(MarkSites()(builder.get())).values()
    assert [tuple(p.ty.shape) for p in site.params] == [(1, 4), (4, 1)]


@pytest.mark.parametrize(
    "operator, name, nonnegative",
    [("nn.relu", "relu", 1), ("sigmoid", "sigmoid", 1), ("tanh", "tanh", 0), (None, None, 0)],
)
def test_activation_and_sign_of_what_follows(tools, operator, name, nonnegative):
    apply = {"nn.relu": relax.op.nn.relu, "sigmoid": relax.op.sigmoid, "tanh": relax.op.tanh}.get(operator)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([1, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, relax.const(tools.normal(4, 6))))
            y = builder.emit(apply(y)) if apply else y
            # Moving values around does not change their sign.
            y = builder.emit(relax.op.reshape(y, (6, 1)))
            y = builder.emit(relax.op.permute_dims(y, (1, 0)))
            output = builder.emit_output(relax.op.matmul(y, relax.const(tools.normal(6, 2))))
        builder.emit_func_output(output)
    found = sites(MarkSites()(builder.get()))
    assert list(found) == ["dense0", "dense1"]
    assert layer_activation(found["dense0"]) == name
    assert int(found["dense1"].attrs["dual.nonnegative"]) == nonnegative


def test_recurrent_layers_that_share_a_function_get_one_each(tools):
    h = 3
    module = tools.gru_module(
        tools.normal(3 * h, 3), tools.normal(3 * h, h), tools.normal(6 * h), 1, layers=2, relu=True
    )
    found = sites(MarkSites()(module))
    assert sorted(found) == ["gru0", "gru1"]
    assert [int(found[name].attrs["dual.nonnegative"]) for name in ("gru0", "gru1")] == [1, 0]
    assert layer_activation(found["gru0"]) is None
