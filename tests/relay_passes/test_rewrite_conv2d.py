"""Convolutions are marked with all that follows them, and become one kernel each."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.conv2d_bytes_stage import byte_bias
from relay_passes.conv2d_site import read_conv2d
from relay_passes.mark_sites import MarkSites, layer_activation
from relay_passes.name_hard_swish import hard_swish
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.conv2d import conv2d, default_tile, pack_conv2d
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_skip import conv2d_skip, default_skip_tile, pack_conv2d_skip
from schedules.cpu import ISAS
from schedules.pool import MaxPool2d, max_pool2d
from schedules.words import stored_taps
from tests.schedules.conv2d_reference import operands, reference

CONV = Conv2d(1, 6, 5, 3, 4, (3, 3), padding=(1, 1, 1, 1))
LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
AFTER = {
    "relu": relax.op.nn.relu,
    "relu6": lambda y: relax.op.minimum(relax.op.nn.relu(y), relax.const(6.0, "float32")),
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
    "silu": relax.op.nn.silu,
    "hard_swish": hard_swish,
    None: lambda y: y,
}


def model(weight, bias, activation, residual=False, pooled=False, swapped=False):
    """Return a convolution of `CONV`'s shape, channels last, with what follows it."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([1, 6, 5, 3], "float32"))
    other = relax.Var("other", relax.TensorType([1, 6, 5, 4], "float32"))
    with builder.function("main", [x, other] if residual else [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight), padding=CONV.padding, **LAYOUT))
            if bias is not None:
                y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, 1, 1, -1))))
            if residual:
                y = builder.emit(relax.op.add(*((other, y) if swapped else (y, other))))
            if activation:
                y = builder.emit(AFTER[activation](y))
            if pooled:
                y = builder.emit(relax.op.nn.max_pool2d(y, pool_size=[2, 2], strides=[2, 1], layout="NHWC"))
            output = builder.emit_output(y)
        builder.emit_func_output(output)
    return builder.get()


def only_call(module):
    """Return the single call of ``main`` and the function that it calls."""
    (call,) = [b.value for b in module["main"].body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    return call, module[call.op]


@pytest.mark.parametrize("activation", AFTER)
@pytest.mark.parametrize("residual, swapped, pooled", [(0, 0, 1), (1, 0, 0), (1, 1, 1)])
def test_all_that_follows_becomes_part_of_the_site(activation, residual, swapped, pooled):
    _, weight, bias, _ = operands(CONV)
    module = MarkSites()(model(weight, bias, activation, bool(residual), bool(pooled), bool(swapped)))
    call, function = only_call(module)
    site = read_conv2d(function, call, layer_activation(function))
    assert site.conv == Conv2d(
        1, 6, 5, 3, 4, (3, 3), padding=(1, 1, 1, 1), activation=activation, residual=bool(residual)
    )
    assert site.pool == (MaxPool2d(1, 6, 5, 4, (2, 2), (2, 1)) if pooled else None)
    assert site.x.name == "x" and (not residual or site.residual.name == "other")
    np.testing.assert_array_equal(site.weight, weight)
    np.testing.assert_array_equal(site.bias, bias)


def test_an_input_that_is_added_to_the_output_is_read_twice():
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 6, 5, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(np.ones((4, 1, 1, 4), "float32")), **LAYOUT))
            output = builder.emit_output(builder.emit(relax.op.add(y, x)))
        builder.emit_func_output(output)
    call, function = only_call(MarkSites()(builder.get()))
    site = read_conv2d(function, call, None)
    assert site.x.same_as(site.residual)


@pytest.mark.parametrize("with_bias", [True, False])
def test_an_image_of_constants_is_added_behind_the_bias(with_bias):
    _, weight, bias, residual = operands(CONV)
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 6, 5, 3], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight), padding=CONV.padding, **LAYOUT))
            if with_bias:
                y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, 1, 1, -1))))
            y = builder.emit(relax.op.add(y, relax.const(residual)))
            output = builder.emit_output(builder.emit(relax.op.nn.relu(y)))
        builder.emit_func_output(output)
    module = MarkSites()(builder.get())
    calls = [b.value for b in module["main"].body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    function = module[calls[0].op]
    site = read_conv2d(function, calls[0], layer_activation(function))
    if not with_bias:
        # A constant alone could be a bias: it stays behind the site.
        assert site.residual is None and site.conv.activation is None and len(calls) == 3
        return
    assert len(calls) == 1 and site.conv.residual and site.conv.activation == "relu"
    np.testing.assert_array_equal(site.bias, bias)
    np.testing.assert_array_equal(site.residual.value.numpy(), residual)


@pytest.mark.parametrize(
    "image, weight, attributes",
    [
        ([1, 6, 5, 3], [6, 3, 3, 1], LAYOUT | {"groups": 3}),
        ([1, 3, 6, 5], [4, 3, 3, 3], LAYOUT | {"data_layout": "NCHW"}),
    ],
    ids=["groups", "layout"],
)
def test_other_convolutions_are_no_sites(image, weight, attributes):
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(image, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            constant = relax.const(np.ones(weight, "float32"))
            output = builder.emit_output(relax.op.nn.conv2d(x, constant, **attributes))
        builder.emit_func_output(output)
    module = builder.get()
    tvm.ir.assert_structural_equal(MarkSites()(module), module)


def planned(form: str, **kwargs):
    _, weight, bias, _ = operands(CONV)
    module = MarkSites()(model(weight, bias, "relu", **kwargs))
    return AttachPlan({"conv2d0": SiteForm("fp32", form, "", "", 1, "avx2")}, {}, {}, {})(module), weight, bias


@pytest.mark.parametrize("form", ["dense", "columns"])
def test_a_planned_site_becomes_a_kernel_and_its_pooling_another(form):
    before, weight, bias = planned(form, pooled=True)
    isa, conv = ISAS["avx2"], Conv2d(1, 6, 5, 3, 4, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    if form == "dense":
        tile = default_tile(isa, conv)
        kernel, packed = conv2d(isa, conv, tile, 1), pack_conv2d(isa, tile, weight, bias)
    else:
        tile = default_skip_tile(isa, conv)
        kernel, packed = conv2d_skip(isa, conv, tile, 1), pack_conv2d_skip(isa, conv, tile, weight, bias)
    name, pool = ("conv2d" if form == "dense" else "conv2d_skip"), MaxPool2d(1, 6, 5, 4, (2, 2), (2, 1))

    def tensor(*shape):
        return relax.TensorType(list(shape), "float32")

    builder = relax.BlockBuilder()
    first = builder.add_func(kernel, f"conv2d0_{name}")
    second = builder.add_func(max_pool2d(isa, pool, 1), "conv2d0_max_pool2d")
    packed = [*packed, np.zeros(1, "float32")]
    values = [relax.Var("x", tensor(90)), *(relax.Var(n, tensor(*a.shape)) for n, a in zip("wbr", packed, strict=True))]
    with builder.function("conv2d0_step", values, attrs={"Primitive": True, "dual.site": "conv2d0"}, private=True):
        with builder.dataflow():
            y = builder.emit(relax.call_tir(first, values, tensor(conv.output_size)))
            y = builder.emit(relax.call_tir(second, [y], tensor(pool.output_size)))
            output = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(output)
    step = builder.get().get_global_var("conv2d0_step")
    x = relax.Var("x", tensor(1, 6, 5, 3))
    with builder.function("main", [x], attrs={"dual.counts": [], "dual.thresholds": []}):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (90,)))
            result = builder.emit(relax.Call(step, [flat, *(relax.const(a) for a in packed)]))
            part = builder.emit(relax.TupleGetItem(result, 0))
            output = builder.emit_output(builder.emit(relax.op.reshape(part, (1, 3, 4, 4))))
        builder.emit_func_output(builder.emit(relax.Tuple([output])))
    tidy = relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(tidy(RewriteConv2d()(before)), tidy(builder.get()))


@pytest.mark.parametrize("form", ["dense", "columns"])
def test_a_rewritten_site_computes_the_same(tools, native, form):
    conv = Conv2d(1, 6, 5, 3, 4, (3, 3), padding=(1, 1, 1, 1), activation="relu", residual=True)
    x, *_, residual = operands(conv)
    before, weight, bias = planned(form, residual=True)
    (y,) = tools.run(RewriteConv2d()(before), native, x, residual)
    np.testing.assert_allclose(y, reference(conv, x, weight, bias, residual), rtol=1e-4, atol=1e-5)


def test_a_site_without_a_plan_stays():
    _, weight, bias, _ = operands(CONV)
    module = MarkSites()(model(weight, bias, "relu"))
    tvm.ir.assert_structural_equal(RewriteConv2d()(module), module)


@pytest.mark.parametrize("level", ISAS.values(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("numbers", ["int8", "bf16"])
def test_the_bias_makes_up_for_what_a_level_leaves_of_the_weights(level, numbers):
    _, weight, bias, _ = operands(CONV)
    rows, mean = weight.reshape(4, 27), np.linspace(1, 3, 27).astype("float32")
    form = SiteForm(numbers, "dense", "", "", 1, level.name, 0.02, 7)
    attach = AttachPlan({"conv2d0": form}, {}, {}, {"conv2d0": (mean,)})
    call, function = only_call(attach(MarkSites()(model(weight, bias, "relu"))))
    found = byte_bias(function, level, read_conv2d(function, call, "relu"))
    if numbers == "bf16":
        np.testing.assert_array_equal(found, bias)
        return
    left = stored_taps(level, rows, CONV.runs[1])
    assert np.abs((left - rows) @ mean).max() > 1e-3
    np.testing.assert_allclose(left @ mean + found, rows @ mean + bias, rtol=1e-5)
