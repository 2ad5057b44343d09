"""RewriteDepthwise: depthwise convolutions become steps of one kernel; others stay."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.rewrite_depthwise import RewriteDepthwise
from schedules.compiling import compiled
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, native_isa
from schedules.depthwise import depthwise_conv2d, pack_depthwise

ISA, CHANNELS = ISAS["avx2"], 12
WINDOWS = {"strides": [2, 1], "padding": [1, 0, 0, 1], "dilation": [1, 2]}


def convolving(weight: np.ndarray, bias: np.ndarray | None, activation: str | None, groups: int) -> tvm.IRModule:
    """Return a module that convolves an image, channels last, and what follows."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 7, 9, CHANNELS], "float32"))
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight), groups=groups, **WINDOWS, **layouts))
            if bias is not None:
                y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, 1, 1, -1))))
            if activation:
                y = builder.emit(relax.op.nn.relu(y))
            if activation == "relu6":
                y = builder.emit(relax.op.minimum(y, relax.const(6, "float32")))
            output = builder.emit_output(relax.op.negative(y))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize("activation", ["relu6", "relu", None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_depthwise_convolution_becomes_a_step(tools, activation, with_bias):
    weight, bias = tools.normal(CHANNELS, 3, 2, 1), tools.normal(CHANNELS) if with_bias else None
    conv = Conv2d(1, 7, 9, CHANNELS, CHANNELS, (3, 2), (2, 1), (1, 0, 0, 1), (1, 2), activation)
    builder, size = relax.BlockBuilder(), conv.output_size
    target = builder.add_func(depthwise_conv2d(ISA, conv, 2), "depthwise0_depthwise_conv2d")
    constants = [pack_depthwise(weight), np.zeros(CHANNELS, "float32") if bias is None else bias]
    parameters = [
        relax.Var(name, relax.TensorType([n], "float32"))
        for name, n in (("x", conv.input_size), ("weight", constants[0].size), ("bias", CHANNELS))
    ]
    attributes = {"Primitive": True, "dual.site": "depthwise0"}
    with builder.function("depthwise0_step", parameters, attrs=attributes, private=True):
        with builder.dataflow():
            y = builder.emit(relax.call_tir(target, parameters, relax.TensorType([size], "float32")))
            output = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(output)
    step, x = (
        builder.get().get_global_var("depthwise0_step"),
        relax.Var("x", relax.TensorType([1, 7, 9, 12], "float32")),
    )
    with builder.function("main", [x], attrs={"dual.thresholds": [], "dual.counts": []}):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, [conv.input_size]))
            parts = builder.emit(relax.Call(step, [flat, *map(relax.const, constants)]))
            y = builder.emit(relax.TupleGetItem(parts, 0))
            y = builder.emit(relax.op.reshape(y, [1, conv.out_height, conv.out_width, CHANNELS]))
            output = builder.emit_output(relax.op.negative(y))
        builder.emit_func_output(builder.emit(relax.Tuple([output])))
    tidy = relax.transform.CanonicalizeBindings()
    found = RewriteDepthwise(ISA, 2)(convolving(weight, bias, activation, CHANNELS))
    tvm.ir.assert_structural_equal(tidy(found), tidy(builder.get()))


def test_other_groups_stay(tools):
    module = convolving(tools.normal(CHANNELS, 3, 2, 2), None, "relu", CHANNELS // 2)
    tvm.ir.assert_structural_equal(RewriteDepthwise(ISA, 1)(module), module)


def test_what_is_rewritten_computes_the_same(tools):
    isa, x = native_isa(), tools.normal(1, 7, 9, CHANNELS)
    module = convolving(tools.normal(CHANNELS, 3, 2, 1), tools.normal(CHANNELS), "relu", CHANNELS)
    machines = [
        relax.VirtualMachine(compiled(each, isa), tvm.cpu())
        for each in (module, relax.transform.FuseTIR()(RewriteDepthwise(isa, 1)(module)))
    ]
    plain, (rewritten,) = (machine["main"](tvm.runtime.tensor(x)) for machine in machines)
    np.testing.assert_allclose(rewritten.numpy(), plain.numpy(), rtol=1e-5, atol=1e-5)
