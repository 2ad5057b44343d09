"""A gated convolution on bytes or bf16 becomes few channels and one kernel for all else, and is no part of a chain."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import join_bytes
from relay_passes.join_bytes import JoinBytes
from relay_passes.mark_sites import MarkSites
from relay_passes.pass_bytes import PassBytes
from relay_passes.products import LittleModule
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from relay_passes.split_littles import SplitLittles
from tests.relay_passes.conftest import bound, normal

LITTLE = LittleModule((np.rint(20 * normal(16, 288)),), normal(16), normal(32, 16, seed=1) / 40, normal(32), 8)


@pytest.fixture(scope="module")
def model():
    """Two convolutions in a row."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 6, 5, 32), "float32"),
            w0: R.Tensor((32, 3, 3, 32), "float32"),
            w1: R.Tensor((32, 3, 3, 32), "float32"),
        ) -> R.Tensor((1, 6, 5, 32), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                c = R.nn.relu(R.nn.conv2d(a, w1, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    return MarkSites()(bound(Model, **{f"w{i}": normal(32, 3, 3, 32, seed=i) for i in range(2)}))


def planned(model, precision: str):
    forms = {
        "conv2d0": SiteForm(precision, "dense", "", "", 1, "amx", 0.02, 7),
        "conv2d1": SiteForm(precision, "rows", "dense", "damage", 1, "amx", 0.05, 0),
    }
    module = AttachPlan(forms, {"conv2d1": LITTLE}, {"conv2d1": np.ones(32, "float32")}, {})(model)
    return PassBytes()(SplitLittles()(module))


@pytest.mark.parametrize("precision, kind", [("int8", "uint8"), ("bf16", "uint16")])
def test_a_gated_site_is_few_channels_and_one_kernel(model, precision, kind):
    module = RewriteConv2d()(planned(model, precision))
    main = module["main"]
    assert list(main.attrs["dual.thresholds"]) == list(main.attrs["dual.counts"]) == ["conv2d1"]
    kernels = {t.name_hint: f for t, f in module.functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
    few, gated = (kernels[f"conv2d1_{part}_conv2d_{precision}"] for part in ("few", "gated"))
    assert len(kernels) == 3, "the exact site is one kernel"
    sizes = [[int(n) for n in b.shape] for b in few.params]
    assert sizes[0] == [6 * 5 * 32] and sizes[-1] == [6 * 5 * 16]
    types = [str(b.dtype) for b in gated.params]
    assert types[:2] == [kind] * 2 and types[-2:] == ["float32", "int32"], (
        "images in are those that the first site gives"
    )
    step = module["conv2d1_step"]
    assert [list(map(int, t.shape)) for t in step.ret_ty.fields] == [[6 * 5 * 32], [1]]


def test_gated_sites_are_no_parts_of_chains(model, monkeypatch):
    monkeypatch.setattr(join_bytes, "LARGE", 1e-7)
    module = planned(model, "int8")
    assert JoinBytes()(module).same_as(module)
