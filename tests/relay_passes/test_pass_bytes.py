"""PassBytes: which images between convolutions are bytes, and which bf16."""

from __future__ import annotations

from relay_passes.pass_bytes import PassBytes
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.bf16_vectors import BF16


def attributes(module, sites: dict[str, tuple[str, float, int]]) -> dict[str, dict]:
    """Return what the pass adds to each site, after plans of ``(precision, scale, zero)``."""
    forms = {n: SiteForm(p, "dense", "", "", 1, "avx512_vnni", scale, zero) for n, (p, scale, zero) in sites.items()}
    planned = AttachPlan(forms, {}, {}, {})(module)
    found = {}
    for function in PassBytes()(planned).functions.values():
        if "dual.site" in (function.attrs or {}):
            values = {key: function.attrs.get(f"dual.{key}") for key in ("result", "residual", "source")}
            kept = {key: str(v) if isinstance(v, str) else list(v) for key, v in values.items() if v is not None}
            found[str(function.attrs["dual.site"])] = kept | {"scale": float(function.attrs["dual.scale"])}
    return found


def test_convolutions_of_bytes_hand_bytes_on(added_chain):
    sites = {f"conv2d{i}": ("int8", 0.5 + i, 3 * i) for i in range(3)}
    assert attributes(added_chain, sites) == {
        "conv2d0": {"scale": 0.5, "result": [1.5, 3]},
        "conv2d1": {"scale": 1.5, "source": "uint8", "residual": [1.5, 3], "result": [2.5, 6]},
        "conv2d2": {"scale": 2.5, "source": "uint8"},
    }


def test_what_floats_read_stays_floats(added_chain):
    sites = {"conv2d0": ("int8", 0.5, 0), "conv2d1": ("fp32", 0.0, 0), "conv2d2": ("int8", 2.5, 0)}
    assert attributes(added_chain, sites) == {
        "conv2d0": {"scale": 0.5},
        "conv2d1": {"scale": 0.0},
        "conv2d2": {"scale": 2.5},
    }


def test_what_a_convolution_of_bf16_reads_is_bf16(added_chain):
    sites = {"conv2d0": ("int8", 0.5, 0), "conv2d1": ("bf16", 0.0, 0), "conv2d2": ("int8", 2.5, 4)}
    assert attributes(added_chain, sites) == {
        "conv2d0": {"scale": 0.5, "result": BF16},
        "conv2d1": {"scale": 0.0, "source": BF16, "residual": BF16, "result": [2.5, 4]},
        "conv2d2": {"scale": 2.5, "source": "uint8"},
    }
