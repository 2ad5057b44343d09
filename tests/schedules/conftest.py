"""Compile one kernel for one instruction set and run it on NumPy arrays."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import tvm
from tvm import relax

from schedules import cpu, row_operands
from schedules.compiling import compiled

#: Shape and dtype of an operand that a kernel writes.
Output = namedtuple("Output", "shape dtype")
GUARD_BYTES = 256


@pytest.fixture(params=[cpu.ISAS[name] for name in ("amx", "avx512_vnni", "avx2")], ids=lambda level: level.name)
def byte_level(request) -> cpu.Isa:
    """Return each level that this machine runs and has its own way to multiply bytes; AVX-512 mixes others'."""
    missing = cpu.missing_flags(request.param)
    if missing:
        pytest.skip(f"{request.param.name}: this CPU lacks {', '.join(missing)}")
    return request.param


def compile_kernel(isa: cpu.Isa, prim_func, threads: int = 1):
    """Return `prim_func` compiled for `isa`, as a function of TVM tensors."""
    module = tvm.IRModule({"main": prim_func.with_attr("global_symbol", "main")})
    return compiled(module, isa, threads)["main"]


def call(kernel, *operands, threads: int = 1) -> list[np.ndarray]:
    """Run a compiled kernel and return what it wrote, checking that it wrote nothing beyond.

    An operand is an array, which must come back unchanged, or an `Output`.
    """
    if threads > 1:
        cpu.use_threads(threads)
    tensors, outputs, guards, inputs = [], [], [], []
    for operand in operands:
        shape, dtype = operand.shape, np.dtype(operand.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = cpu.aligned_empty((size + GUARD_BYTES,), "uint8")
        memory[:] = 0xA5
        array = memory[:size].view(dtype).reshape(shape)
        if isinstance(operand, Output):
            outputs.append(array)
        else:
            array[...] = operand
            inputs.append((array, operand))
        guards.append(memory[size:])
        tensors.append(tvm.runtime.from_dlpack(array))
    kernel(*tensors)
    assert all((guard == 0xA5).all() for guard in guards), "a kernel wrote behind an operand"
    assert all(np.array_equal(array, operand) for array, operand in inputs), "a kernel changed an input"
    return outputs


def run(isa: cpu.Isa, prim_func, *operands, threads: int = 1) -> list[np.ndarray]:
    """Compile and run once; see `call`."""
    return call(compile_kernel(isa, prim_func, threads), *operands, threads=threads)


def list_outputs(n: int) -> tuple[Output, Output]:
    """Return the results of a gate of `n` rows: the list and its length."""
    return Output((row_operands.list_length(n),), "int32"), Output((1,), "int32")


def gate_limits(rule: str, gates: int) -> list[np.ndarray]:
    """Return limits ``(gates, 2)`` that leave rows partly open (each gate otherwise), closed, open."""
    if rule == "damage":
        some = np.stack([np.linspace(0.02, 0.08, gates), np.zeros(gates)], axis=1)
    else:
        low = np.linspace(0.1, 0.3, gates)
        some = np.stack([low, 1 - low / 2], axis=1)
        some[-1] = -0.9, 0.8  # the candidate is a tanh
    ends = np.array([[1e9, -1e9], [-2, 2]]).repeat(gates, axis=0).reshape(2, gates, 2)
    return [limits.astype("float32") for limits in (some, *ends)]


def band_score(value: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return what is positive inside the band of one gate's limits."""
    return np.minimum(value - limits[0], limits[1] - value)


def check_against_score(rows, count, score, first):
    """Compare with the open rows, leaving aside those within rounding of the limit."""
    listed = rows[: count[0]]
    assert (np.diff(listed) > 0).all()
    is_open = np.isin(np.arange(len(score)) + first, listed)
    assert is_open.sum() == count[0], "only rows of these gates are listed"
    sure = np.abs(score) > 3e-6
    np.testing.assert_array_equal(is_open[sure], (score > 0)[sure])
    if count[0]:
        assert (rows[count[0] : count[0] + row_operands.SIDE_BY_SIDE] == listed[-1]).all()


def join(operands: dict[str, np.ndarray], stages, result: str):
    """Return one TIR function made of several kernels by Relax's ``FuseTIR``.

    Its parameters are `operands`, in order, and the result.

    Parameters
    ----------
    operands : dict of ndarray
        What the caller passes, by name.
    stages : list of tuple
        ``(prim_func, names of its operands, names of its results)``, in order of execution.
    result : str
        Name of the last stage's result that the caller wants.
    """
    builder = relax.BlockBuilder()

    def variables():
        return {k: relax.Var(k, relax.TensorType(v.shape, str(v.dtype))) for k, v in operands.items()}

    values = variables()
    with builder.function("joined", list(values.values()), attrs={"Primitive": True}, private=True):
        with builder.dataflow():
            for i, (kernel, reads, writes) in enumerate(stages):
                buffers = kernel.params[len(reads) :]
                types = [relax.TensorType([int(n) for n in b.shape], str(b.dtype)) for b in buffers]
                made = builder.emit(
                    relax.call_tir(
                        builder.add_func(kernel, f"stage{i}"),
                        [values[name] for name in reads],
                        types if len(types) > 1 else types[0],
                    )
                )
                parts = [builder.emit(made[j]) for j in range(len(types))] if len(types) > 1 else [made]
                values.update(zip(writes, parts, strict=True))
            output = builder.emit_output(values[result])
        builder.emit_func_output(output)
    arguments = list(variables().values())
    with builder.function("main", arguments):
        with builder.dataflow():
            call = relax.Call(builder.get().get_global_var("joined"), arguments)
            output = builder.emit_output(builder.emit(call))
        builder.emit_func_output(output)
    module = relax.transform.DeadCodeElimination()(relax.transform.FuseTIR()(builder.get()))
    (fused,) = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    return fused


@pytest.fixture(scope="session", params=list(cpu.ISAS))
def isa(request) -> cpu.Isa:
    """Return each instruction set level that this machine runs."""
    level = cpu.ISAS[request.param]
    missing = cpu.missing_flags(level)
    if missing:
        pytest.skip(f"{level.name}: this CPU lacks {', '.join(missing)}")
    return level


@pytest.fixture(scope="session", params=[1, 2], ids=["1thread", "2threads"])
def threads(request) -> int:
    """Return a number of threads that a kernel is generated for and runs with."""
    return request.param


#: Levels that property tests draw from; shrinking prefers the first.
RUNNABLE = [level for level in cpu.ISAS.values() if not cpu.missing_flags(level)] or list(cpu.ISAS.values())
