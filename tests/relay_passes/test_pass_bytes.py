"""PassBytes: which images between convolutions are bytes."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.mark_sites import MarkSites
from relay_passes.pass_bytes import PassBytes
from relay_passes.site_plan import AttachPlan, SiteForm
from tests.relay_passes.conftest import bound, normal


def attributes(module, sites: dict[str, tuple[str, float, int]]) -> dict[str, dict]:
    """Return what the pass adds to each site, after plans of ``(precision, scale, zero)``."""
    forms = {n: SiteForm(p, "dense", "", "", 1, "avx512_vnni", scale, zero) for n, (p, scale, zero) in sites.items()}
    planned = AttachPlan(forms, {}, {}, {})(module)
    found = {}
    for function in PassBytes()(planned).functions.values():
        if "dual.site" in (function.attrs or {}):
            values = {key: function.attrs.get(f"dual.{key}") for key in ("result", "residual", "source")}
            kept = {key: list(v) if key != "source" else int(v) for key, v in values.items() if v is not None}
            found[str(function.attrs["dual.site"])] = kept | {"scale": float(function.attrs["dual.scale"])}
    return found


@pytest.fixture(scope="module")
def chain():
    """Two convolutions in a row, of which the second adds what the first read, and one that reads the result."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 4, 4, 8), "float32"),
            w0: R.Tensor((8, 1, 1, 8), "float32"),
            w1: R.Tensor((8, 1, 1, 8), "float32"),
            w2: R.Tensor((8, 1, 1, 8), "float32"),
        ) -> R.Tensor((1, 4, 4, 8), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, data_layout="NHWC", kernel_layout="OHWI"))
                b = R.nn.relu(R.add(R.nn.conv2d(a, w1, data_layout="NHWC", kernel_layout="OHWI"), a))
                c = R.nn.relu(R.nn.conv2d(b, w2, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    return MarkSites()(bound(Model, **{f"w{i}": np.asarray(normal(8, 1, 1, 8, seed=i)) for i in range(3)}))


def test_convolutions_of_bytes_hand_bytes_on(chain):
    sites = {f"conv2d{i}": ("int8", 0.5 + i, 3 * i) for i in range(3)}
    assert attributes(chain, sites) == {
        "conv2d0": {"scale": 0.5, "result": [1.5, 3]},
        "conv2d1": {"scale": 1.5, "source": 1, "residual": [1.5, 3], "result": [2.5, 6]},
        "conv2d2": {"scale": 2.5, "source": 1},
    }


def test_what_floats_read_stays_floats(chain):
    sites = {"conv2d0": ("int8", 0.5, 0), "conv2d1": ("fp32", 0.0, 0), "conv2d2": ("int8", 2.5, 0)}
    assert attributes(chain, sites) == {"conv2d0": {"scale": 0.5}, "conv2d1": {"scale": 0.0}, "conv2d2": {"scale": 2.5}}
