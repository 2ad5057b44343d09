"""PassLists: which images between convolutions are lists."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.mark_sites import MarkSites
from relay_passes.pass_lists import READS, WRITES, PassLists
from relay_passes.products import LittleModule
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.cpu import ISAS
from tests.relay_passes.conftest import bound, normal, run_module


def attributes(module, sites: dict[str, tuple[str, str]]) -> dict[str, tuple[bool, bool]]:
    """Return whether each site reads and writes lists, after plans of ``(precision, form)``."""
    forms = {n: SiteForm(precision, form, "", "", 1, "avx2") for n, (precision, form) in sites.items()}
    passed = PassLists()(AttachPlan(forms, {}, {}, {})(module))
    marked = [function.attrs for function in passed.functions.values() if "dual.site" in (function.attrs or {})]
    return {str(attrs["dual.site"]): (READS in attrs, WRITES in attrs) for attrs in marked}


@pytest.fixture(scope="module")
def chain():
    """Three convolutions in a row, then one whose result is pooled, and one that reads it."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 4, 4, 8), "float32"),
            w0: R.Tensor((8, 1, 1, 8), "float32"),
            w1: R.Tensor((8, 1, 1, 8), "float32"),
            w2: R.Tensor((8, 1, 1, 8), "float32"),
            w3: R.Tensor((8, 1, 1, 8), "float32"),
        ) -> R.Tensor((1, 2, 2, 8), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, data_layout="NHWC", kernel_layout="OHWI"))
                b = R.nn.relu(R.nn.conv2d(a, w1, data_layout="NHWC", kernel_layout="OHWI"))
                c = R.nn.relu(R.nn.conv2d(b, w2, data_layout="NHWC", kernel_layout="OHWI"))
                d = R.nn.max_pool2d(c, pool_size=[2, 2], strides=[2, 2], layout="NHWC")
                e = R.nn.relu(R.nn.conv2d(d, w3, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(e)
            return e

    return MarkSites()(bound(Model, **{f"w{i}": np.asarray(normal(8, 1, 1, 8, seed=i)) for i in range(4)}))


def given(module, x: np.ndarray, forms: list[str]) -> np.ndarray:
    """Return what a module of planned convolutions gives."""
    plan = {f"conv2d{i}": SiteForm("fp32", form, "", "", 1, "avx2") for i, form in enumerate(forms)}
    passed = PassLists()(AttachPlan(plan, {}, {}, {})(module))
    (result,) = run_module(RewriteConv2d()(passed), ISAS["avx2"], x)
    return result


def test_convolutions_that_skip_zeros_get_lists_unless_pooling_comes_between(chain):
    plan = {"conv2d0": ("fp32", "dense"), **{f"conv2d{i}": ("fp32", "columns") for i in range(1, 4)}}
    assert attributes(chain, plan) == {
        "conv2d0": (False, True),
        "conv2d1": (True, True),
        "conv2d2": (True, False),
        "conv2d3": (False, False),
    }


@pytest.mark.parametrize(("precision", "form"), [("fp32", "dense"), ("int8", "dense")])
def test_others_read_images(chain, precision, form):
    plan = {f"conv2d{i}": ("fp32", "columns") for i in range(4)} | {"conv2d1": (precision, form)}
    found = attributes(chain, plan)
    assert found["conv2d0"] == (False, False)
    assert found["conv2d1"] == (False, precision == "fp32")


@pytest.mark.parametrize("first", ["dense", "columns"])
def test_what_comes_out_is_the_same(chain, first):
    x = normal(1, 4, 4, 8, seed=9)
    wanted = given(chain, x, ["dense"] * 4)
    np.testing.assert_allclose(given(chain, x, [first, "columns", "columns", "columns"]), wanted, rtol=1e-5, atol=1e-6)
    assert np.count_nonzero(wanted)


def test_images_that_are_added_or_added_to_stay_images(added_chain):
    plan = {f"conv2d{i}": ("fp32", "columns") for i in range(3)}
    assert attributes(added_chain, plan) == dict.fromkeys(plan, (False, False))


def test_gated_convolutions_that_skip_zeros_read_lists(chain):
    rng = np.random.default_rng(0)
    shapes = ((8, 8), (8,), (8, 8), (8,))
    projection, center, weight, bias = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    little, found = LittleModule((projection,), center, weight, bias, 32), []
    for hidden in ("columns", "nonzeros"):
        plan = {f"conv2d{i}": SiteForm("fp32", "dense", "", "", 1, "avx2") for i in range(4)}
        plan["conv2d1"] = SiteForm("fp32", "rows", hidden, "damage", 1, "avx2")
        planned = AttachPlan(plan, {"conv2d1": little}, {"conv2d1": np.ones(8, "float32")}, {})(chain)
        passed = PassLists()(planned)
        assert (WRITES in passed["conv2d0"].attrs) == (READS in passed["conv2d1"].attrs) == (hidden == "nonzeros")
        assert WRITES not in passed["conv2d1"].attrs
        # What the little module predicts decides, so that some tiles are open.
        limits = np.stack([np.ones(8), np.zeros(8), np.full(8, 0.42)]).astype("float32")
        found.append(run_module(RewriteConv2d()(passed), ISAS["avx2"], normal(1, 4, 4, 8, seed=9), limits))
    (image, count), (wanted, wanted_count) = found[1], found[0]
    np.testing.assert_allclose(image, wanted, rtol=1e-5, atol=1e-6)
    assert count[0] == wanted_count[0] and 0 < count[0] < 16
