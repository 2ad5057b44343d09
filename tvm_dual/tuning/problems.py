"""The problems of all families: operands as calibration showed them, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedules import columns, little, matmul, nonzeros, row_operands, row_pairs
from schedules.families import Workload
from schedules.quantize import quantize_rows, round_up
from tvm_dual.tuning.conv_problems import byte_conv_problem, conv_problem
from tvm_dual.tuning.copies import stacked
from tvm_dual.tuning.gate_problems import gated_byte_conv_problem, single_conv_problem
from tvm_dual.tuning.problem import Problem, Usage, copies_of, normal


def make_problem(workload: Workload, usage: Usage, seed: int) -> Problem:
    """Return the problem of a workload, the same for the same seed."""
    return _MAKERS[workload.family](workload, usage, np.random.default_rng(seed))


@dataclass(frozen=True, eq=False)
class _Vector:
    """A quantized vector: its bytes, padded, scale and zero point."""

    q: np.ndarray
    affine: np.ndarray

    def times(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the product with the matrix's bytes, exact but for the last rounding."""
        rows, (scale, zero) = quantize_rows(weight), self.affine.astype("float64")
        inputs = self.q[..., : weight.shape[1]].astype("float64") - zero
        return (scale * rows.scale * (inputs @ rows.values.astype("float64").T) + bias).astype("float32")


def _vector(workload: Workload, rng: np.random.Generator, k: int, zero: int) -> _Vector:
    level = workload.level
    q = np.zeros(round_up(k, level.row_bytes), "uint8")
    q[:k] = rng.integers(0, level.activation_levels + 1, k)
    return _Vector(q, np.array([0.02, zero], "float32"))


def _lists(rng: np.random.Generator, copies: int, n: int, density: float, every: bool) -> list[np.ndarray]:
    """Return the open rows of each copy, in ascending order."""
    count = n if every else max(1, round(density * n))
    return [np.sort(rng.choice(n, count, replace=False)).astype("int32") for _ in range(copies)]


def _gate_operands(opened: list[np.ndarray], n: int) -> list[np.ndarray]:
    """Return the stacked operands ``rows`` and ``count`` of gated kernels."""
    rows = np.zeros((len(opened), row_operands.list_length(n)), "int32")
    for row, listed in zip(rows, opened, strict=True):
        row[: len(listed)], row[len(listed) : len(listed) + row_operands.SIDE_BY_SIDE] = listed, listed[-1]
    return [stacked(rows), stacked([np.array([len(listed)], "int32") for listed in opened])]


def _opened(opened: list[np.ndarray], exact: np.ndarray, closed: np.ndarray) -> np.ndarray:
    """Return what gated kernels give for each copy."""
    results = np.repeat(closed[None], len(opened), axis=0)
    for result, listed in zip(results, opened, strict=True):
        result[listed] = exact[listed]
    return results


def _rows(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    n, k, every = workload.shape
    level, int8 = workload.level, workload.family == "rows_int8"
    weight, bias, closed = normal(rng, n, k), normal(rng, n), normal(rng, n)
    packed = (row_operands.pack_rows_int8 if int8 else row_operands.pack_rows_fp32)(level, weight, bias)
    copies = copies_of(packed["weight"].nbytes, usage.density)
    opened = _lists(rng, copies, n, usage.density, bool(every))
    if int8:
        vector = _vector(workload, rng, k, level.activation_levels // 2)
        inputs, exact = [vector.q, vector.affine], vector.times(weight, bias)
    else:
        x = normal(rng, k)
        inputs, exact = [x], weight @ x + bias
    return Problem(
        copies,
        1,
        [stacked([array] * copies) for array in inputs],
        [*_gate_operands(opened, n), stacked([closed] * copies)],
        lambda _: list(packed.values()),
        [_opened(opened, exact, closed)],
    )


def _row_pairs(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    n, k, h = workload.shape
    halves = [(normal(rng, n, size), normal(rng, n)) for size in (k, h)]
    packed = row_pairs.pack_pairs_int8(workload.level, *halves)
    vectors = [_vector(workload, rng, size, workload.level.activation_levels // 2) for size in (k, h)]
    copies = copies_of(packed["weight"].nbytes, usage.density)
    opened = _lists(rng, copies, n, usage.density, False)
    closed = [normal(rng, n) for _ in halves]
    return Problem(
        copies,
        1,
        [stacked([array] * copies) for vector in vectors for array in (vector.q, vector.affine)],
        [*_gate_operands(opened, n), *(stacked([values] * copies) for values in closed)],
        lambda _: list(packed.values()),
        [_opened(opened, v.times(*half), given) for v, half, given in zip(vectors, halves, closed, strict=True)],
    )


def _columns(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    n, k = workload.shape
    level, int8 = workload.level, workload.family == "columns_int8"
    weight, bias = normal(rng, n, k), normal(rng, n)
    packed = (columns.pack_columns_int8 if int8 else columns.pack_columns_fp32)(level, weight, bias)
    copies = copies_of(packed[0].nbytes, usage.density)
    affine = np.array([0.02, 0], "float32")
    listed = np.zeros((copies, nonzeros.list_length(k)), "int32")
    values = np.zeros(listed.shape, "uint8" if int8 else "float32")
    counts, results = [], []
    for copy, nonzero in enumerate(_lists(rng, copies, k, usage.density, False)):
        count = len(nonzero)
        found = rng.integers(1, level.activation_levels + 1, count) if int8 else np.abs(normal(rng, count)) + 0.01
        listed[copy, :count], values[copy, :count] = nonzero, found
        counts.append(np.array([count], "int32"))
        full = np.zeros(k, values.dtype)
        full[nonzero] = found
        results.append(_Vector(full, affine).times(weight, bias) if int8 else weight @ full + bias)
    before = [stacked(listed), stacked(values), stacked(counts)]
    if int8:
        before.append(stacked([affine] * copies))
    return Problem(copies, 1, before, [], lambda _: list(packed), [np.stack(results)])


def _little(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    n, k, bits = workload.shape
    level = workload.level
    weight, bias = normal(rng, n, k), normal(rng, n)
    copies = copies_of(little.packed_size(level, n, k, bits))
    q = np.zeros(little.padded_inputs(k), "uint8")
    if bits in little.CODES:
        # Weights are codes, and the input is the signed operand: meta[1] is multiplied by the sum of its bytes.
        signed = rng.integers(-100, 101, k).astype("int8")
        q[:k] = signed.view("uint8")
        affine, inputs = np.array([0.02, signed.sum(dtype="int64")], "float32"), signed.astype("float64")
    else:
        zero = level.activation_levels // 2
        q[:k] = rng.integers(0, 2 * zero + 1, k)
        affine, inputs = np.array([0.02, zero], "float32"), q[:k].astype("float64") - zero
    rows = quantize_rows(weight, bits)
    exact = float(affine[0]) * rows.scale * (rows.values.astype("float64") @ inputs) + bias
    return Problem(
        copies,
        1,
        [stacked([q] * copies), stacked([affine] * copies)],
        [],
        lambda knobs: list(little.pack_little(level, weight, bias, bits, knobs)),
        [np.repeat(exact.astype("float32")[None], copies, axis=0)],
        ("loads",),
    )


def _matmul(workload: Workload, usage: Usage, rng: np.random.Generator) -> Problem:
    n, k = workload.shape
    level, int8 = workload.level, workload.family == "matmul_int8"
    weight, bias = normal(rng, n, k), normal(rng, n)
    pack = matmul.pack_matmul_int8 if int8 else matmul.pack_matmul_fp32
    copies = copies_of(weight.size * (1 if int8 else 4))
    if int8:
        vector = [_vector(workload, rng, k, level.activation_levels // 2) for _ in range(usage.vectors)]
        inputs = [np.stack([v.q for v in vector]), np.stack([v.affine for v in vector])]
        exact = _Vector(inputs[0], vector[0].affine).times(weight, bias)
    else:
        inputs = [normal(rng, usage.vectors, k)]
        exact = inputs[0] @ weight.T + bias
    return Problem(
        copies,
        usage.vectors,
        [stacked([array] * copies) for array in inputs],
        [],
        lambda knobs: list(pack(level, weight, bias, knobs)),
        [np.repeat(exact[None], copies, axis=0)],
        ("vectors",),
    )


_MAKERS = {
    "rows_int8": _rows,
    "rows_fp32": _rows,
    "row_pairs_int8": _row_pairs,
    "columns_int8": _columns,
    "columns_fp32": _columns,
    "little": _little,
    "matmul_int8": _matmul,
    "matmul_fp32": _matmul,
    "conv2d": conv_problem,
    "conv2d_gated": conv_problem,
    "conv2d_gated_int8": gated_byte_conv_problem,
    "conv2d_int8": byte_conv_problem,
    "conv2d_single": single_conv_problem,
    "conv2d_skip": conv_problem,
}
