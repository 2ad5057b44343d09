"""A convolution with a gate becomes project, little, gate, gated tiles; or outputs, or its little module alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.mark_sites import MarkSites
from relay_passes.products import LittleModule
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules.conv2d import conv2d, default_tile, pack_conv2d
from schedules.conv2d_gate import tile_gate
from schedules.conv2d_gated import default_gated_tile, gated_conv2d
from schedules.conv2d_gated_skip import gated_skip_conv2d, pack_gated_skip
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_single import conv2d_single, default_single_tile
from schedules.conv2d_skip import conv2d_skip, default_skip_tile, pack_conv2d_skip
from schedules.cpu import ISAS
from schedules.families import Workload
from schedules.history import Recorder, apply_history
from schedules.pool import MaxPool2d, max_pool2d
from schedules.single_dots import pack_singles
from tests.schedules.conv2d_reference import after, operands, reference

CONV = Conv2d(1, 6, 5, 3, 24, (3, 3), padding=(1, 1, 1, 1), activation="relu")
K, ISA = 8, ISAS["avx2"]
INNER = replace(CONV, outputs=K, activation=None)
NOTHING = np.zeros(1, "float32")


FORMS = [(form, projection) for form in ("rows", "singles", "little") for projection in ("dense", "columns")]
FORMS.append(("rows", "nonzeros"))


def little_module() -> LittleModule:
    rng = np.random.default_rng(3)
    shapes = ((K, CONV.taps), (K,), (24, K), (24,))
    projection, center, weight, bias = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    return LittleModule((projection / 5,), center, weight, bias, 32)


def planned(form: str, projection: str, residual: bool = False, pooled: bool = False):
    """Return a marked and planned module."""
    _, weight, bias, _ = operands(CONV)
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 6, 5, 3], "float32"))
    other = relax.Var("other", relax.TensorType([1, 6, 5, 24], "float32"))
    with builder.function("main", [x, other] if residual else [x]):
        with builder.dataflow():
            layout = {"padding": CONV.padding, "data_layout": "NHWC", "kernel_layout": "OHWI"}
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight), **layout))
            y = builder.emit(relax.op.add(y, relax.const(bias.reshape(1, 1, 1, -1))))
            if residual:
                y = builder.emit(relax.op.add(y, other))
            y = builder.emit(relax.op.nn.relu(y))
            if pooled:
                y = builder.emit(relax.op.nn.max_pool2d(y, pool_size=[2, 2], strides=[2, 2], layout="NHWC"))
            output = builder.emit_output(y)
        builder.emit_func_output(output)
    forms = {"conv2d0": SiteForm("fp32", form, projection, "damage", 1, "avx2")}
    spread = {"conv2d0": np.ones(24, "float32")}
    return AttachPlan(forms, {"conv2d0": little_module()}, spread, {})(MarkSites()(builder.get())), weight, bias


def stages(form: str, projection: str, weight, bias, pool: MaxPool2d) -> list[tuple]:
    """Return name, kernel, names of what it reads, its constants, and names of what it gives, by stage."""
    little, tile = little_module(), default_gated_tile(ISA, CONV)
    skips = projection == "nonzeros"
    projection = "columns" if skips else projection
    builder, choose, pack = {
        "dense": (conv2d, default_tile, pack_conv2d),
        "columns": (conv2d_skip, default_skip_tile, pack_conv2d_skip),
    }[projection]
    filters = little.projections[0].reshape(K, 3, 3, 3)
    first = builder(ISA, INNER, choose(ISA, INNER), 1)
    shape = [INNER] if projection == "columns" else []
    packed = pack(ISA, *shape, choose(ISA, INNER), filters, -little.center)
    spread = Conv2d(1, 1, 30, K, 24, (1, 1), activation="relu" if form == "little" else None)
    second, rows = conv2d(ISA, spread, default_tile(ISA, spread), 1), little.weight.reshape(-1, 1, 1, K)
    found = [
        (f"projection_{builder.__name__}", first, ["x"], [*packed, NOTHING], ["z"]),
        (
            "little_conv2d",
            second,
            ["z"],
            [*pack_conv2d(ISA, default_tile(ISA, spread), rows, little.bias), NOTHING],
            ["s"],
        ),
    ]
    if form == "rows":
        name, gated, packed = "gated_conv2d", gated_conv2d(ISA, CONV, tile, 1), pack_conv2d(ISA, tile, weight, bias)
        if skips:
            name, gated = "gated_skip_conv2d", gated_skip_conv2d(ISA, CONV, 1)
            packed = pack_gated_skip(ISA, CONV, weight, bias)
        found += [
            ("tile_gate", tile_gate(ISA, 2, 30, 24, 16, 1), ["s", "limits"], [NOTHING], ["opened", "count"]),
            (name, gated, ["x", "opened", "s"], [*packed, NOTHING], ["s"]),
        ]
    if form == "singles":
        single = conv2d_single(ISA, CONV, default_single_tile(ISA, CONV), 1)
        constants = [*pack_singles(ISA, weight, bias, CONV), NOTHING]
        found.append(("conv2d_single", single, ["x", "limits", "s"], constants, ["s", "count"]))
    return [*found, ("max_pool2d", max_pool2d(ISA, pool, 1), ["s"], [], ["y"])]


@pytest.mark.parametrize(("form", "projection"), FORMS)
def test_a_planned_site_becomes_stages(form, projection):
    before, weight, bias = planned(form, projection, pooled=True)
    pool, gated = MaxPool2d(1, 6, 5, 24, (2, 2), (2, 2)), form != "little"

    def variable(name, shape, dtype="float32"):
        return relax.Var(name, relax.TensorType([int(n) for n in shape], dtype))

    builder, constants, calls = relax.BlockBuilder(), [], []
    given = {"x": variable("x", [90])} | ({"limits": variable("limits", [3, 24])} if gated else {})
    for name, kernel, reads, values, gives in stages(form, projection, weight, bias, pool):
        new = [variable("c", value.shape) for value in values]
        constants += zip(new, values, strict=True)
        calls.append((builder.add_func(kernel, f"conv2d0_{name}"), kernel, reads, new, gives))
    parameters = [*given.values(), *(v for v, _ in constants)]
    with builder.function("conv2d0_step", parameters, attrs={"Primitive": True, "dual.site": "conv2d0"}, private=True):
        with builder.dataflow():
            for target, kernel, reads, new, gives in calls:
                # Constants stand behind the first operand.
                operands_ = [given[reads[0]], *new, *(given[name] for name in reads[1:])]
                types = [
                    relax.TensorType([int(n) for n in b.shape], str(b.dtype)) for b in kernel.params[len(operands_) :]
                ]
                result = builder.emit(relax.call_tir(target, operands_, types if len(types) > 1 else types[0]))
                several = range(len(types)) if len(types) > 1 else ()
                parts = [builder.emit(relax.TupleGetItem(result, i)) for i in several] or [result]
                given |= dict(zip(gives, parts, strict=True))
            results = [given["y"], given["count"]] if gated else [given["y"]]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    step = builder.get().get_global_var("conv2d0_step")
    x, limits = variable("x", [1, 6, 5, 3]), variable("conv2d0_thresholds", [3, 24])
    names = ["conv2d0"] if gated else []
    attributes = {"dual.counts": names, "dual.thresholds": names}
    with builder.function("main", [x, limits] if gated else [x], attrs=attributes):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (90,)))
            arguments = [flat, *([limits] if gated else []), *(relax.const(value) for _, value in constants)]
            result = builder.emit(relax.Call(step, arguments))
            parts = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(results))]
            counts = [builder.emit_output(part) for part in parts[1:]]
            image = builder.emit_output(builder.emit(relax.op.reshape(parts[0], (1, 3, 2, 24))))
        builder.emit_func_output(builder.emit(relax.Tuple([image, *counts])))
    tidy = relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(tidy(RewriteConv2d()(before)), tidy(builder.get()))


@pytest.mark.parametrize(("form", "family"), [("rows", "conv2d_gated"), ("singles", "conv2d_single")])
def test_a_gate_asks_tuning_for_its_tile(form, family):
    recorder = Recorder()
    with apply_history(recorder):
        RewriteConv2d()(planned(form, "dense")[0])
    assert Workload(family, CONV.geometry, "avx2", 1) in recorder.workloads


@pytest.mark.parametrize(("form", "projection"), FORMS)
def test_a_rewritten_site_computes_what_its_gate_leaves_open(tools, native, form, projection):
    conv, little = replace(CONV, residual=True), little_module()
    x, *_, residual = operands(conv)
    before, weight, bias = planned(form, projection, residual=True)
    z = reference(replace(INNER), x, little.projections[0].reshape(K, 3, 3, 3), -little.center, np.zeros((1, 6, 5, K)))
    approximate = after(conv, z @ little.weight.T + little.bias, residual)
    exact = reference(conv, x, weight, bias, residual)
    module = RewriteConv2d()(before)
    if form == "little":
        (y,) = tools.run(module, native, x, residual)
        np.testing.assert_allclose(y, approximate, rtol=1e-4, atol=1e-4)
        return
    for harm, wanted, units in ((0.0, approximate, 0), (2.0, exact, 60 if form == "rows" else 720)):
        limits = np.stack([np.zeros(24), np.ones(24), np.full(24, harm)]).astype("float32")
        y, count = tools.run(module, native, x, residual, limits)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
        assert count[0] == units
