"""CompiledApart: the same results as of one module, and each kernel compiled once."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from schedules import compiled_apart
from schedules.compiled_apart import CompiledApart
from schedules.compiling import compiled
from schedules.cpu import ISAS

AVX2 = ISAS["avx2"]


def model(*factors: float, extent=5) -> tvm.IRModule:
    """Return ``x -> (x * a + x * b, x * a)`` for factors a, b, with a kernel for each operator."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([3, extent], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            parts = [builder.emit(relax.op.multiply(x, relax.const(factor, "float32"))) for factor in factors]
            both = builder.emit(relax.op.add(*parts))
            split = builder.emit(relax.op.split(both, 3, axis=0))
            result = builder.emit_output(relax.Tuple([relax.TupleGetItem(split, 1), parts[0]]))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


def results(executable, x: np.ndarray) -> list[np.ndarray]:
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    return [value.numpy() for value in found]


@pytest.mark.parametrize("extent", [5, tvm.tirx.Var("n", "int64")], ids=["fixed", "open"])
def test_results_are_those_of_one_module(extent):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    found = results(CompiledApart()(model(2.0, 3.0, extent=extent), AVX2), x)
    for value, wanted in zip(found, results(compiled(model(2.0, 3.0, extent=extent), AVX2), x), strict=True):
        np.testing.assert_array_equal(value, wanted)
    np.testing.assert_allclose(found[0], 5 * x[1:2], rtol=1e-6)


def test_each_kernel_is_compiled_once(monkeypatch):
    seen = []

    def noted(module, isa, threads=1):
        seen.append([target.name_hint for target in module.functions])
        return compiled(module, isa, threads)

    monkeypatch.setattr(compiled_apart, "compiled", noted)
    compile_, x = CompiledApart(), np.ones((3, 5), "float32")
    compile_(model(2.0, 3.0), AVX2)
    # Two products of a factor each, a sum and a division; then what calls them.
    assert seen == [["kernel"]] * 4 + [["main"]]
    seen.clear()
    found = results(compile_(model(2.0, 7.0), AVX2), x)
    assert seen == [["kernel"], ["main"]]
    np.testing.assert_allclose(found[0], np.full((1, 5), 9.0))
