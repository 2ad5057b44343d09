"""CopyLittles: a convolution behind its copy alone is a convolution of bytes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.copied_littles import CopyLittles
from relay_passes.mark_sites import MarkSites
from relay_passes.pass_bytes import PassBytes
from relay_passes.products import LittleModule
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.cpu import ISAS, missing_flags
from schedules.words import stored_taps
from tests.relay_passes.conftest import bound, normal, run_module

LITTLE = LittleModule((), np.zeros(1, "float32"), normal(32, 27, seed=3), normal(32, seed=6), 8)
FORM = SiteForm("fp32", "little", "copy8", "", 1, "avx512_vnni", 0.02, 7)


@pytest.fixture(scope="module")
def model():
    """A convolution with ReLU and maximum that has no bias, and one that reads it."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 3), "float32"),
            w0: R.Tensor((32, 3, 3, 3), "float32"),
            w1: R.Tensor((16, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 4, 4, 16), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                p = R.nn.max_pool2d(a, [2, 2], [2, 2], layout="NHWC")
                c = R.nn.relu(R.nn.conv2d(p, w1, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    shapes = [(32, 3, 3, 3), (16, 1, 1, 32)]
    return MarkSites()(bound(Model, **{f"w{i}": normal(*shape, seed=i) for i, shape in enumerate(shapes)}))


def planned(model, first: SiteForm = FORM, second: SiteForm | None = None):
    forms = {"conv2d0": first} | ({"conv2d1": second} if second else {})
    return AttachPlan(forms, {"conv2d0": LITTLE}, {"conv2d0": np.ones(32, "float32")}, {})(model)


def test_the_copy_is_a_site_on_bytes(model):
    @I.ir_module
    class Expected:
        @R.function(private=True)
        def conv2d0_copy(
            x: R.Tensor((1, 8, 8, 3), "float32"),
            weight: R.Tensor((32, 3, 3, 3), "float32"),
            bias: R.Tensor((1, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 4, 4, 32), "float32"):
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
                    "dual.scale": 0.02,
                    "dual.zero": 7,
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(
                    x,
                    weight,
                    padding=[1, 1, 1, 1],
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_layout="NHWC",
                )
                s = R.add(y, bias)
                r = R.nn.relu(s)
                o = R.nn.max_pool2d(r, [2, 2], [2, 2], layout="NHWC", out_layout="NHWC")
                R.output(o)
            return o

        @R.function(private=True)
        def conv2d1(x: R.Tensor((1, 4, 4, 32), "float32"), weight: R.Tensor((16, 1, 1, 32), "float32")) -> R.Tensor(
            (1, 4, 4, 16), "float32"
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
            w0: R.Tensor((32, 3, 3, 3), "float32"),
            bias: R.Tensor((1, 1, 1, 32), "float32"),
            w1: R.Tensor((16, 1, 1, 32), "float32"),
        ) -> R.Tensor((1, 4, 4, 16), "float32"):
            cls = Expected
            with R.dataflow():
                p = cls.conv2d0_copy(x, w0, bias)
                c = cls.conv2d1(p, w1)
                R.output(c)
            return c

    constants = {
        "w0": LITTLE.weight.reshape(32, 3, 3, 3),
        "bias": LITTLE.bias.reshape(1, 1, 1, -1),
        "w1": normal(16, 1, 1, 32, seed=1),
    }
    tvm.ir.assert_structural_equal(CopyLittles()(planned(model)), bound(Expected, **constants))


@pytest.mark.parametrize("form", [("little", "dense"), ("rows", "copy8"), ("dense", "")])
def test_all_else_stays(model, form):
    before = planned(model, SiteForm("fp32", *form, "", 1, "avx512_vnni", 0.02, 7))
    assert CopyLittles()(before).same_as(before)


def test_copies_hand_bytes_on(model):
    both = planned(model, second=SiteForm("int8", "dense", "", "", 1, "avx512_vnni", 0.05, 0))
    found = PassBytes()(CopyLittles()(both))
    (copy,) = (f for f in found.functions.values() if (f.attrs or {}).get("dual.site") == "conv2d0")
    assert [float(copy.attrs["dual.result"][0]), int(copy.attrs["dual.result"][1])] == [0.05, 0]


@pytest.mark.parametrize("form", ["little", "rows"])
@pytest.mark.parametrize("level", ISAS.values(), ids=lambda isa: isa.name)
def test_what_is_computed_is_the_copy(model, form, level):
    if missing_flags(level):
        pytest.skip(f"this CPU lacks {', '.join(missing_flags(level))}")
    plan = SiteForm("fp32", form, "copy8", "damage", 1, level.name, 0.02, 7)
    module = CopyLittles()(planned(model, plan, SiteForm("fp32", "dense", "", "", 1, level.name)))
    module = RewriteConv2d()(PassBytes()(module))
    x = np.clip(normal(1, 8, 8, 3, seed=9), -0.1, 4)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = np.stack([padded[0, i : i + 3, j : j + 3].ravel() for i in range(8) for j in range(8)])
    seen = (np.clip(np.rint(exact / 0.02) + 7, 0, 255) - 7) * 0.02

    def after(sums):
        y = np.maximum(sums, 0).reshape(4, 2, 4, 2, 32).max(axis=(1, 3))
        return np.maximum(y @ normal(16, 1, 1, 32, seed=1).reshape(16, 32).T, 0)

    copied = after(seen @ stored_taps(level, LITTLE.weight, 9).T + LITTLE.bias)
    # Closed, then open: the big module has other weights.
    wanted = [copied, after(exact @ normal(32, 3, 3, 3, seed=0).reshape(32, -1).T)][: 1 + (form == "rows")]
    assert np.abs(wanted[0] - wanted[-1]).max() > 1 or form == "little"
    for harm, y in zip((0.0, 2.0), wanted, strict=False):
        limits = [np.stack([np.zeros(32), np.ones(32), np.full(32, harm)]).astype("float32")]
        found, *_ = run_module(module, level, x, *(limits if form == "rows" else []))
        np.testing.assert_allclose(found.reshape(y.shape), y, atol=2e-3 * np.abs(y).max())
