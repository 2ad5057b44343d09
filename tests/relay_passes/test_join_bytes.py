"""JoinBytes: which convolutions become a chain, and that it gives the same."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import join_bytes
from relay_passes.join_bytes import CHAIN, JoinBytes
from relay_passes.mark_sites import MarkSites
from relay_passes.pass_bytes import PassBytes
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.cpu import ISAS
from tests.relay_passes.conftest import bound, normal, run_module

LEVEL2 = ISAS["avx512_vnni"].second_level


@pytest.fixture(scope="module")
def model():
    """Three convolutions in a row, the second one pooled."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 10, 6, 3), "float32"),
            w0: R.Tensor((32, 3, 3, 3), "float32"),
            w1: R.Tensor((16, 3, 3, 32), "float32"),
            w2: R.Tensor((16, 1, 1, 16), "float32"),
        ) -> R.Tensor((1, 5, 3, 16), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                b = R.nn.relu(R.nn.conv2d(a, w1, padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"))
                p = R.nn.max_pool2d(b, [2, 2], [2, 2], layout="NHWC")
                c = R.nn.relu(R.nn.conv2d(p, w2, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    shapes = [(32, 3, 3, 3), (16, 3, 3, 32), (16, 1, 1, 16)]
    return MarkSites()(bound(Model, **{f"w{i}": normal(*shape, seed=i) for i, shape in enumerate(shapes)}))


def planned(module, precisions=("int8",) * 3, threads=(1,) * 3, level="avx512_vnni"):
    forms = {
        f"conv2d{i}": SiteForm(precision, "dense", "", "", count, level, 0.02 * (i + 1), 3)
        for i, (precision, count) in enumerate(zip(precisions, threads, strict=True))
    }
    return PassBytes()(AttachPlan(forms, {}, {}, {})(module))


def chained(module) -> list[str]:
    """Return the sites of the only chain, in order."""
    found = [f for f in module.functions.values() if (f.attrs or {}).get("Composite") == CHAIN]
    if not found:
        return []
    (chain,) = found
    calls = [b.value for b in chain.body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    return [str(module[call.op].attrs["dual.site"]) for call in calls]


def test_a_chain_ends_with_its_pooling(model, monkeypatch):
    monkeypatch.setattr(join_bytes, "LARGE", 10 * 6 * 32 / LEVEL2)
    joined = JoinBytes()(planned(model))
    assert chained(joined) == ["conv2d0", "conv2d1"]
    calls = [b.value for block in joined["main"].body.blocks for b in block.bindings]
    names = [str(joined[call.op].attrs["dual.site"]) for call in calls if isinstance(call, relax.Call)]
    assert names == ["conv2d0_to_conv2d1", "conv2d2"]


@pytest.mark.parametrize(
    "large, precisions, threads",
    [
        (10 * 6 * 32 + 1, ("int8",) * 3, (1,) * 3),
        (1, ("int8", "fp32", "int8"), (1,) * 3),
        (1, ("int8",) * 3, (1, 2, 1)),
    ],
    ids=["small image", "floats", "threads"],
)
def test_what_stays_apart(model, monkeypatch, large, precisions, threads):
    monkeypatch.setattr(join_bytes, "LARGE", large / LEVEL2)
    module = planned(model, precisions, threads)
    assert chained(JoinBytes()(module)) == []


def test_a_chain_gives_the_same(model, native, monkeypatch):
    x = np.random.default_rng(5).standard_normal((1, 10, 6, 3)).astype("float32")
    apart = run_module(RewriteConv2d()(planned(model, level=native.name)), native, x)
    monkeypatch.setattr(join_bytes, "LARGE", 1 / LEVEL2)
    module = JoinBytes()(planned(model, level=native.name))
    assert chained(module)
    together = run_module(RewriteConv2d()(module), native, x)
    assert np.count_nonzero(apart[0]) > apart[0].size // 4
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-6)
