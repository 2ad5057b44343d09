"""SplitLittles: a little module on bytes as two convolutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import join_bytes
from relay_passes.conv2d_site import conv2d_function, read_conv2d
from relay_passes.join_bytes import CHAIN, JoinBytes
from relay_passes.mark_sites import MarkSites, layer_activation
from relay_passes.pass_bytes import PassBytes
from relay_passes.products import LittleModule
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from relay_passes.split_littles import SplitLittles
from schedules.conv2d_shape import Conv2d
from schedules.pool import MaxPool2d
from tests.relay_passes.conftest import bound, normal, run_module

LITTLE = LittleModule(
    (np.rint(20 * normal(16, 27, seed=3)),), normal(16, seed=4), normal(32, 16, seed=5) / 40, normal(32, seed=6), 8
)
FORM = SiteForm("int8", "little", "dense", "", 1, "avx512_vnni", 0.02, 7)


@pytest.fixture(scope="module")
def model():
    """A convolution with stride, ReLU and maximum, and one that reads it."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 3), "float32"),
            w0: R.Tensor((32, 3, 3, 3), "float32"),
            w1: R.Tensor((16, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 2, 2, 16), "float32"):
            with R.dataflow():
                a = R.nn.relu(
                    R.nn.conv2d(x, w0, strides=[2, 2], padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI")
                )
                p = R.nn.max_pool2d(a, [2, 2], [2, 2], layout="NHWC")
                c = R.nn.relu(R.nn.conv2d(p, w1, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    shapes = [(32, 3, 3, 3), (16, 1, 1, 32)]
    return MarkSites()(bound(Model, **{f"w{i}": normal(*shape, seed=i) for i, shape in enumerate(shapes)}))


def planned(model, first: SiteForm = FORM, second: SiteForm | None = None):
    forms = {"conv2d0": first} | ({"conv2d1": second} if second else {})
    return AttachPlan(forms, {"conv2d0": LITTLE}, {"conv2d0": np.ones(32, "float32")}, {})(model)


def test_the_few_channels_and_what_spreads_them_are_sites(model):
    @I.ir_module
    class Expected:
        @R.function(private=True)
        def conv2d0_few(
            x: R.Tensor((1, 8, 8, 3), "float32"),
            weight: R.Tensor((16, 3, 3, 3), "float32"),
            bias: R.Tensor((1, 1, 1, 16), "float32"),
        ) -> R.Tensor((1, 4, 4, 16), "float32"):
            R.func_attr(
                {
                    "Composite": "dual.conv2d",
                    "Primitive": True,
                    "dual.site": "conv2d0_few",
                    "dual.nonnegative": 0,
                    "dual.precision": "int8",
                    "dual.input": "dense",
                    "dual.hidden": "",
                    "dual.rule": "",
                    "dual.isa": "avx512_vnni",
                    "dual.threads": 1,
                    "dual.means": [],
                    "dual.scale": 0.02,
                    "dual.zero": 7,
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(
                    x,
                    weight,
                    strides=[2, 2],
                    padding=[1, 1, 1, 1],
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_layout="NHWC",
                )
                o = R.add(y, bias)
                R.output(o)
            return o

        @R.function(private=True)
        def conv2d0_spread(
            x: R.Tensor((1, 4, 4, 16), "float32"),
            weight: R.Tensor((32, 1, 1, 16), "float32"),
            bias: R.Tensor((1, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 2, 2, 32), "float32"):
            R.func_attr(
                {
                    "Composite": "dual.conv2d",
                    "Primitive": True,
                    "dual.site": "conv2d0",
                    "dual.nonnegative": 0,
                    "dual.precision": "int8",
                    "dual.input": "dense",
                    "dual.hidden": "",
                    "dual.rule": "",
                    "dual.isa": "avx512_vnni",
                    "dual.threads": 1,
                    "dual.means": [],
                    "dual.scale": 1.0,
                    "dual.zero": 128,
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC")
                s = R.add(y, bias)
                r = R.nn.relu(s)
                o = R.nn.max_pool2d(r, [2, 2], [2, 2], layout="NHWC", out_layout="NHWC")
                R.output(o)
            return o

        @R.function(private=True)
        def conv2d1(x: R.Tensor((1, 2, 2, 32), "float32"), weight: R.Tensor((16, 1, 1, 32), "float32")) -> R.Tensor(
            (1, 2, 2, 16), "float32"
        ):
            R.func_attr({"Composite": "dual.conv2d", "Primitive": True, "dual.site": "conv2d1", "dual.nonnegative": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI")
                o = R.nn.relu(y)
                R.output(o)
            return o

        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 3), "float32"),
            few: R.Tensor((16, 3, 3, 3), "float32"),
            center: R.Tensor((1, 1, 1, 16), "float32"),
            rows: R.Tensor((32, 1, 1, 16), "float32"),
            bias: R.Tensor((1, 1, 1, 32), "float32"),
            w1: R.Tensor((16, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 2, 2, 16), "float32"):
            cls = Expected
            with R.dataflow():
                z = cls.conv2d0_few(x, few, center)
                p = cls.conv2d0_spread(z, rows, bias)
                c = cls.conv2d1(p, w1)
                R.output(c)
            return c

    constants = {
        "few": LITTLE.projections[0].reshape(16, 3, 3, 3),
        "center": -LITTLE.center.reshape(1, 1, 1, -1),
        "rows": LITTLE.weight.reshape(32, 1, 1, 16),
        "bias": LITTLE.bias.reshape(1, 1, 1, -1),
        "w1": normal(16, 1, 1, 32, seed=1),
    }
    tvm.ir.assert_structural_equal(SplitLittles()(planned(model)), bound(Expected, **constants))


@pytest.mark.parametrize("precision, form", [("fp32", ("little", "dense")), ("int8", ("dense", ""))])
def test_all_else_stays(model, precision, form):
    before = planned(model, SiteForm(precision, *form, "", 1, "avx512_vnni", 0.02, 7))
    assert SplitLittles()(before).same_as(before)


def test_bytes_are_handed_on_within_and_beyond(model):
    both = planned(model, second=SiteForm("int8", "dense", "", "", 1, "avx512_vnni", 0.05, 0))
    found = {}
    for function in PassBytes()(SplitLittles()(both)).functions.values():
        attributes = function.attrs or {}
        if "dual.site" in attributes:
            result = attributes.get("dual.result")
            found[str(attributes["dual.site"])] = (
                float(attributes["dual.scale"]),
                "dual.source" in attributes,
                None if result is None else list(result),
            )
    assert found == {
        "conv2d0_few": (0.02, False, [1.0, 128]),
        "conv2d0": (1.0, True, [0.05, 0]),
        "conv2d1": (0.05, True, None),
    }


def test_what_is_computed_is_the_little_module(model, native):
    forms = {"conv2d0": replace(FORM, isa=native.name), "conv2d1": SiteForm("fp32", "dense", "", "", 1, native.name)}
    attached = AttachPlan(forms, {"conv2d0": LITTLE}, {"conv2d0": np.ones(32, "float32")}, {})(model)
    module = RewriteConv2d()(PassBytes()(SplitLittles()(attached)))
    x = np.clip(normal(1, 8, 8, 3, seed=9), -0.1, 4)
    (found,) = run_module(module, native, x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = np.stack([padded[0, i : i + 3, j : j + 3].ravel() for i in range(0, 8, 2) for j in range(0, 8, 2)])
    few = np.clip(np.rint(seen @ LITTLE.projections[0].T - LITTLE.center), -128, 127)
    y = np.maximum(few @ LITTLE.weight.T + LITTLE.bias, 0).reshape(2, 2, 2, 2, 32).max(axis=(1, 3))
    wanted = np.maximum(y @ normal(16, 1, 1, 32, seed=1).reshape(16, 32).T, 0)
    assert np.abs(found[0] - wanted).max() < 0.03 * np.abs(wanted).max()


def test_both_may_be_parts_of_a_chain(native, monkeypatch):
    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 10, 6, 3), "float32"),
            w0: R.Tensor((32, 3, 3, 3), "float32"),
            w1: R.Tensor((16, 3, 3, 32), "float32"),
        ) -> R.Tensor((1, 10, 6, 16), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                c = R.nn.relu(R.nn.conv2d(a, w1, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    weights = {"w0": normal(32, 3, 3, 3), "w1": normal(16, 3, 3, 32, seed=1)}
    first, second = replace(FORM, isa=native.name), SiteForm("int8", "dense", "", "", 1, native.name, 0.05, 0)
    module = PassBytes()(SplitLittles()(planned(MarkSites()(bound(Model, **weights)), first, second)))
    x, found = np.clip(normal(1, 10, 6, 3, seed=9), -0.1, 4), []
    for large in (1.0, 1e-7):
        monkeypatch.setattr(join_bytes, "LARGE", large)
        joined = JoinBytes()(module)
        chains = [f.attrs["dual.site"] for f in joined.functions.values() if (f.attrs or {}).get("Composite") == CHAIN]
        assert chains == (["conv2d0_few_to_conv2d1"] if large < 1 else [])
        found += run_module(RewriteConv2d()(joined), native, x)
    assert found[0].any()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "tanh", "silu", "hard_swish", None])
@pytest.mark.parametrize("residual, pooled", [(False, True), (True, False)])
def test_a_site_that_is_written_is_read_again(activation, residual, pooled):
    conv = Conv2d(1, 6, 5, 3, 16, (3, 2), (2, 1), (1, 0, 1, 1), (1, 2), activation, residual)
    pool = MaxPool2d(1, conv.out_height, conv.out_width, 16, (2, 2), (2, 1)) if pooled else None
    weight, bias = normal(16, 3, 2, 3), normal(16, seed=1)
    x = tvm.relax.Var("x", tvm.relax.TensorType([1, 6, 5, 3], "float32"))
    other = tvm.relax.Var("other", tvm.relax.TensorType([1, conv.out_height, conv.out_width, 16], "float32"))
    site = read_conv2d_of(conv, pool, weight, bias, x, other if residual else None)
    assert (site.conv, site.pool) == (conv, pool)
    np.testing.assert_array_equal(site.weight, weight)
    np.testing.assert_array_equal(site.bias, bias)
    assert site.x.same_as(x) and (site.residual.same_as(other) if residual else site.residual is None)


def read_conv2d_of(conv, pool, weight, bias, x, residual):
    """Write a site and read it."""
    from relay_passes.conv2d_site import COMPOSITE, Conv2dSite

    function = conv2d_function(Conv2dSite(conv, pool, weight, bias, x, residual)).with_attr("Composite", COMPOSITE)
    images = [residual] if residual is not None else []
    operands = [x, tvm.relax.const(weight), tvm.relax.const(bias.reshape(1, 1, 1, -1)), *images]
    call = tvm.relax.Call(tvm.ir.GlobalVar("site"), operands, ret_ty=function.ret_ty)
    return read_conv2d(function, call, layer_activation(function))
