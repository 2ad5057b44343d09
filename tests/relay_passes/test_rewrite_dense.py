"""RewriteDense: a planned dense site becomes a step of kernels with explicit operands."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes import products
from relay_passes.products import LittleModule
from relay_passes.rewrite_dense import RewriteDense
from relay_passes.site_plan import AttachPlan, SiteForm
from schedules import columns, dense, epilogue, gate, little, nonzeros, quantize, row_operands
from schedules.cpu import ISAS

ISA = ISAS["avx2"]


def planned(tools, weight, bias, form, little_module=None, mean=None):
    littles = {"dense0": little_module} if little_module else {}
    spreads = {"dense0": np.ones(len(weight), "float32")}
    means = {"dense0": (mean,)} if mean is not None else {}
    return AttachPlan({"dense0": form}, littles, spreads, means)(tools.dense_relu(weight, bias))


def tensor(*shape: int, dtype: str = "float32") -> relax.TensorType:
    return relax.TensorType(list(shape), dtype)


def expected(step_inputs, operands, stages, results, thresholds=None) -> tvm.IRModule:
    """Return the module that a rewrite should give.

    `stages` are ``(kernel's name, kernel, names of operands, names of results, their types)``.
    """
    builder = relax.BlockBuilder()
    values = {name: relax.Var(name, type_) for name, type_ in step_inputs.items()}
    values |= {name: relax.Var(name, tensor(*v.shape, dtype=str(v.dtype))) for name, v in operands.items()}
    attributes = {"Primitive": True, "dual.site": "dense0"}
    added: dict = {}
    for name, kernel, *_ in stages:
        if name not in added:
            added[name] = builder.add_func(kernel, f"dense0_{name}")
    with builder.function("dense0_step", list(values.values()), attrs=attributes, private=True):
        with builder.dataflow():
            for name, _, reads, writes, types in stages:
                made = relax.call_tir(added[name], [values[r] for r in reads], types if len(types) > 1 else types[0])
                made = builder.emit(made)
                several = range(len(types) if len(types) > 1 else 0)
                parts = [builder.emit(relax.TupleGetItem(made, i)) for i in several] or [made]
                values |= dict(zip(writes, parts, strict=True))
            output = builder.emit_output(relax.Tuple([values[name] for name in results]))
        builder.emit_func_output(output)
    step = builder.get().get_global_var("dense0_step")
    x = relax.Var("x", tensor(1, 4))
    parameters = [x]
    if thresholds:
        parameters.append(relax.Var("dense0_thresholds", tensor(*thresholds)))
    counts = ["dense0"] * (len(results) - 1)
    attributes = {"dual.counts": counts, "dual.thresholds": ["dense0"] if thresholds else []}
    with builder.function("main", parameters, attrs=attributes):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (4,)))
            arguments = [flat, *parameters[1:], *(relax.const(v) for v in operands.values())]
            result = builder.emit(relax.Call(step, arguments))
            parts = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(results))]
            opened = [builder.emit_output(part) for part in parts[1:]]
            shaped = builder.emit(relax.op.reshape(parts[0], (1, 6)))
            output = builder.emit_output(shaped)
        builder.emit_func_output(builder.emit(relax.Tuple([output, *opened])))
    return builder.get()


def test_exact_form_with_every_row(tools):
    weight, bias = tools.normal(6, 4), tools.normal(6, seed=1)
    before = planned(tools, weight, bias, SiteForm("fp32", "dense", "", "", 1, "avx2"))
    packed = row_operands.pack_rows_fp32(ISA, weight, bias)
    operands = {
        "every_row_6": row_operands.every_row(6),
        "count_6": np.array([6], "int32"),
        "nothing_6": np.zeros(6, "float32"),
        "big_weight": packed["weight"],
        "big_bias": packed["bias"],
    }
    reads = ["x", "big_weight", "big_bias", "every_row_6", "count_6", "nothing_6"]
    stages = [
        ("gated_rows", dense.gated_rows_fp32(ISA, 6, 4, 1), reads, ["y"], [tensor(6)]),
        ("epilogue", epilogue.activation(6, "relu"), ["y"], ["result"], [tensor(6)]),
    ]
    tvm.ir.assert_structural_equal(RewriteDense()(before), expected({"x": tensor(4)}, operands, stages, ["result"]))


@pytest.mark.parametrize(("limit", "tasks"), [(1, 2), (1 << 20, 1)])
def test_kernels_that_read_little_stay_on_one_thread(tools, monkeypatch, limit, tasks):
    monkeypatch.setattr(products, "PARALLEL_BYTES", limit)
    weight, bias = tools.normal(6, 4), tools.normal(6, seed=1)
    module = RewriteDense()(planned(tools, weight, bias, SiteForm("fp32", "dense", "", "", 2, "avx2")))
    (found,) = [f for v, f in module.functions.items() if v.name_hint == "dense0_gated_rows"]
    tvm.ir.assert_structural_equal(found, dense.gated_rows_fp32(ISA, 6, 4, tasks), map_free_vars=True)


def test_exact_form_over_nonzero_inputs(tools):
    weight, bias = tools.normal(6, 4), tools.normal(6, seed=1)
    before = planned(tools, weight, bias, SiteForm("fp32", "columns", "", "", 1, "avx2"))
    packed, meta = columns.pack_columns_fp32(ISA, weight, bias)
    knobs = columns.default_columns(ISA, 6, 4)
    listing, product = nonzeros.nonzero_floats(ISA, 4), columns.columns_fp32(ISA, 6, 4, 1, knobs)
    listed = [tensor(*map(int, b.shape), dtype=str(b.dtype)) for b in listing.params[1:]]
    found = [f"listed{i}" for i in range(len(listed))]
    stages = [
        ("nonzeros", listing, ["x"], found, listed),
        ("columns", product, [*found, "big_weight", "big_meta"], ["y"], [tensor(6)]),
        ("epilogue", epilogue.activation(6, "relu"), ["y"], ["result"], [tensor(6)]),
    ]
    operands = {"big_weight": packed, "big_meta": meta}
    tvm.ir.assert_structural_equal(RewriteDense()(before), expected({"x": tensor(4)}, operands, stages, ["result"]))


def test_dual_form(tools):
    """Project, little, gate, gated rows, epilogue; thresholds come in, the number of open rows goes out."""
    weight, bias, k = tools.normal(6, 4), tools.normal(6, seed=1), 3
    module = LittleModule((tools.normal(k, 4),), tools.normal(k), tools.normal(6, k), tools.normal(6), 8)
    mean = tools.normal(4, seed=5)
    before = planned(tools, weight, bias, SiteForm("int8", "rows", "", "damage", 1, "avx2"), module, mean)
    projection = row_operands.pack_rows_int8(ISA, module.projections[0], -module.center)
    small = little.pack_little(ISA, module.weight, module.bias, 8)
    corrected = quantize.corrected_bias(weight, quantize.stored_rows(weight, 8), bias, mean)
    big = row_operands.pack_rows_int8(ISA, weight, corrected)
    operands = {
        "every_row_3": row_operands.every_row(k),
        "count_3": np.array([k], "int32"),
        "nothing_3": np.zeros(k, "float32"),
        "projection0_weight": projection["weight"],
        "little_weight": small[0],
        "little_meta": small[1],
        "big_weight": big["weight"],
    }

    def results(kernel, inputs: int):
        return [tensor(*map(int, b.shape), dtype=str(b.dtype)) for b in kernel.params[inputs:]]

    to_bytes, project = quantize.quantize_vector(ISA, 4, False), dense.gated_rows_int8(ISA, k, 4, 1)
    to_small, predict = little.quantize_projection(ISA, k, 8), little.little_rows(ISA, 6, k, 8, 1)
    choose, compute = gate.band_gate(ISA, 6), dense.gated_rows_int8(ISA, 6, 4, 1)
    every = ["every_row_3", "count_3", "nothing_3"]
    stages = [
        ("quantize", to_bytes, ["x"], ["q", "affine"], results(to_bytes, 1)),
        ("gated_rows", project, ["q", "affine", "projection0_weight", *every], ["z"], [tensor(k)]),
        ("quantize_projection", to_small, ["z"], ["zq", "zaffine"], results(to_small, 1)),
        ("little", predict, ["zq", "zaffine", "little_weight", "little_meta"], ["predicted"], [tensor(6)]),
        ("gate", choose, ["predicted", "band"], ["rows", "count"], results(choose, 2)),
        (
            "gated_rows1",
            compute,
            ["q", "affine", "big_weight", "rows", "count", "predicted"],
            ["y"],
            [tensor(6)],
        ),
        ("epilogue", epilogue.activation(6, "relu"), ["y"], ["result"], [tensor(6)]),
    ]
    wanted = expected({"x": tensor(4), "band": tensor(2, 6)}, operands, stages, ["result", "count"], (2, 6))
    tvm.ir.assert_structural_equal(RewriteDense()(before), wanted)


def test_little_module_alone(tools):
    weight, bias = tools.normal(6, 4), tools.normal(6, seed=1)
    module = LittleModule((tools.normal(3, 4),), tools.normal(3), tools.normal(6, 3), tools.normal(6), 4)
    after = RewriteDense()(planned(tools, weight, bias, SiteForm("fp32", "little", "", "", 1, "avx2"), module))
    kernels = [name for name, _ in tools.step_calls(after, "dense0")]
    assert kernels == ["quantize", "gated_rows", "quantize_projection", "little", "epilogue"]
    assert len(after["main"].params) == 1


def test_an_unplanned_site_stays(tools):
    module = tools.dense_relu(tools.normal(6, 4), tools.normal(6))
    tvm.ir.assert_structural_equal(RewriteDense()(module), module)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("int8", 0.03)])
@pytest.mark.parametrize("form", ["dense", "columns", "rows"])
def test_values(tools, native, precision, tolerance, form):
    """With every gate open, each form gives the layer's values; with every gate closed, the little module's."""
    weight, bias = tools.normal(6, 4), tools.normal(6, seed=1)
    exact = LittleModule((np.eye(4, dtype="float32"),), np.zeros(4, "float32"), -weight, -bias, 8)
    before = planned(tools, weight, bias, SiteForm(precision, form, "", "damage", 1, native.name), exact)
    module = RewriteDense()(before)
    x = np.abs(tools.normal(1, 4, seed=2))
    x[0, 2] = 0
    y = np.maximum(x @ weight.T + bias, 0)
    if form != "rows":
        (found,) = tools.run(module, native, x)
        np.testing.assert_allclose(found, y, atol=tolerance)
        return
    band = np.stack([np.full(6, -1e30), np.full(6, 1e30)]).astype("float32")
    found, count = tools.run(module, native, x, band)
    assert count == [6]
    np.testing.assert_allclose(found, y, atol=tolerance)
    found, count = tools.run(module, native, x, -band)
    assert count == [0]
    np.testing.assert_allclose(found, np.maximum(-(x @ weight.T + bias), 0), atol=0.03)
