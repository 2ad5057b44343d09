"""The matrix-vector products of a site, in the form its plan asks for, as stages of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.step import StepBuilder
from schedules import columns, dense, epilogue, little, nonzeros, quantize, row_operands, row_pairs
from schedules.cpu import Isa
from schedules.history import chosen_knobs
from schedules.registry import kernel

#: Bytes of weights read from which on a kernel is divided between threads. A launch takes 1.5 to 3
#: microseconds, in which one thread reads 35 to 70 kB from L3, and more where the other thread fell asleep.
PARALLEL_BYTES = 256 << 10
#: What share of a matrix gated rows and zero skipping are taken to read. At a quarter, an int8 step with
#: gates was a third slower on two threads than on one.
_SPARSE_SHARE = 0.125


@dataclass(frozen=True)
class LittleModule:
    """The operands of a little module: ``y = weight (projection x - projection mean) + bias``.

    Attributes
    ----------
    projections : tuple of ndarray, float32, (k, n_inputs)
        One per input vector of the site; their products are summed.
    center : ndarray, float32, (k,)
        What is subtracted from the projected input, so that its bytes spend no range on the mean.
    weight : ndarray, float32, (n, k)
    bias : ndarray, float32, (n,)
    bits : int
        Precision of `weight`: 8, 4 or 2; or 32, float32 as everything else of the module then.
    """

    projections: tuple[np.ndarray, ...]
    center: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    bits: int

    @property
    def projection_precision(self) -> str:
        """``fp32`` where the rows are, else ``int8``."""
        return "fp32" if self.bits == 32 else "int8"


class Products:
    """Emits products into a step, quantizing each input vector once."""

    def __init__(self, step: StepBuilder, isa: Isa, precision: str, threads: int) -> None:
        """Emit for `precision` ``fp32`` or ``int8`` of the big module."""
        self._step, self._isa, self._precision, self._threads = step, isa, precision, threads
        self._quantized: dict[tuple[relax.Var, bool], tuple[relax.Var, relax.Var]] = {}
        self._packed: dict[str, tuple[list[relax.Var], int]] = {}
        self._every_row: dict[int, tuple[relax.Var, relax.Var, relax.Var]] = {}

    def know_bytes(self, q: relax.Var, affine: relax.Var) -> None:
        """Take `q`, with its scale and zero point, for a vector that is quantized already."""
        self._quantized[q, True] = self._quantized[q, False] = q, affine

    def _bytes(self, x: relax.Var, nonnegative: bool) -> tuple[relax.Var, relax.Var]:
        key = (x, nonnegative)
        if key not in self._quantized:
            stage = kernel(quantize.quantize_vector, self._isa, _length(x), nonnegative)
            self._quantized[key] = self._step.call("quantize", stage, x)
        return self._quantized[key]

    def _tasks(self, nbytes: int, share: float = 1.0) -> int:
        """Return the threads for a kernel that reads `share` of `nbytes` of packed weights."""
        return self._threads if nbytes * share >= PARALLEL_BYTES else 1

    def gated(
        self, name, x, weight, bias, rows, count, closed, *, nonnegative=False, precision=None, every=False
    ) -> relax.Var:
        """``weight x + bias`` for the open rows, `closed` for the others; one `name`, one matrix.

        `weight` is ``float32 (n, k)``, `bias` ``float32 (n,)`` or None; `rows`, `count`, `closed`
        are what `schedules.dense` describes; `every` says that all rows are open.
        """
        (n, k), isa = weight.shape, self._isa
        int8 = (precision or self._precision) == "int8"
        if name not in self._packed:
            pack = row_operands.pack_rows_int8 if int8 else row_operands.pack_rows_fp32
            self._packed[name] = self._operands(name, pack(isa, weight, bias), 1.0 if every else _SPARSE_SHARE)
        matrix, tasks = self._packed[name]
        knobs = chosen_knobs("rows_int8" if int8 else "rows_fp32", isa, (n, k, int(every)), tasks)
        stage = kernel(dense.gated_rows_int8 if int8 else dense.gated_rows_fp32, isa, n, k, tasks, knobs)
        inputs = self._bytes(x, nonnegative) if int8 else (x,)
        operands = (*inputs, *matrix, rows, count, closed)
        return self._step.call("gated_rows", stage, *operands)

    def gated_pairs(self, name, input_, state, rows, count, closed) -> tuple[relax.Var, relax.Var]:
        """Both products of a recurrent layer for the open rows.

        `input_` is ``(x, nonnegative, weight, bias)``, `state` ``(h, weight, bias)``, `closed` the
        values of closed rows of both.
        """
        (x, nonnegative, *big), (h, *recurrent) = input_, state
        if self._precision != "int8":
            return (
                self.gated(f"{name}_input", x, *big, rows, count, closed[0]),
                self.gated(f"{name}_hidden", h, *recurrent, rows, count, closed[1]),
            )
        (n, k), hidden = big[0].shape, recurrent[0].shape[1]
        if name not in self._packed:
            packed = row_pairs.pack_pairs_int8(self._isa, tuple(big), tuple(recurrent))
            self._packed[name] = self._operands(name, packed, _SPARSE_SHARE)
        matrix, tasks = self._packed[name]
        knobs = chosen_knobs("row_pairs_int8", self._isa, (n, k, hidden), tasks)
        stage = kernel(row_pairs.row_pairs_int8, self._isa, n, k, hidden, tasks, knobs)
        inputs = (*self._bytes(x, nonnegative), *self._bytes(h, False))
        return self._step.call("row_pairs", stage, *inputs, *matrix, rows, count, *closed)

    def _operands(self, name: str, packed: dict[str, np.ndarray], share: float) -> tuple[list[relax.Var], int]:
        """Declare the operands of a packed matrix, and say how many threads are worth it."""
        operands = [self._step.operand(f"{name}_{part}", value) for part, value in packed.items()]
        return operands, self._tasks(packed["weight"].nbytes, share)

    def dense(self, name, x, weight, bias, *, nonnegative=False, precision=None) -> relax.Var:
        """``weight x + bias``: gated rows with every gate open."""
        n = weight.shape[0]
        if n not in self._every_row:
            self._every_row[n] = (
                self._step.operand(f"every_row_{n}", row_operands.every_row(n)),
                self._step.operand(f"count_{n}", np.array([n], "int32")),
                self._step.operand(f"nothing_{n}", np.zeros(n, "float32")),
            )
        opened = self._every_row[n]
        return self.gated(name, x, weight, bias, *opened, nonnegative=nonnegative, precision=precision, every=True)

    def columns(self, name, x, weight, bias) -> relax.Var:
        """``weight x + bias`` over the nonzero inputs alone; `x` must not be negative."""
        (n, k), isa = weight.shape, self._isa
        if self._precision == "int8":
            q, affine = self._bytes(x, True)
            listed = self._step.call("nonzeros", kernel(nonzeros.nonzero_bytes, isa, k), q)
            packed, meta = columns.pack_columns_int8(isa, weight, bias)
            family, builder, operands = "columns_int8", columns.columns_int8, [*listed, affine]
        else:
            listed = self._step.call("nonzeros", kernel(nonzeros.nonzero_floats, isa, k), x)
            packed, meta = columns.pack_columns_fp32(isa, weight, bias)
            family, builder, operands = "columns_fp32", columns.columns_fp32, list(listed)
        operands += [self._step.operand(f"{name}_weight", packed), self._step.operand(f"{name}_meta", meta)]
        tasks = self._tasks(packed.nbytes, _SPARSE_SHARE)
        knobs = chosen_knobs(family, isa, (n, k), tasks)
        return self._step.call("columns", kernel(builder, isa, n, k, tasks, knobs), *operands)

    def exact(self, form, name, x, weight, bias, *, nonnegative) -> relax.Var:
        """Return the product in the exact form ``dense`` or ``columns``."""
        if form == "columns":
            return self.columns(name, x, weight, bias)
        return self.dense(name, x, weight, bias, nonnegative=nonnegative)

    def little(
        self, module: LittleModule, inputs: list[tuple[relax.Var, bool]], projected: relax.Var | None = None
    ) -> relax.Var:
        """Return the little module's prediction for `inputs`, pairs of a vector and whether it is nonnegative.

        `projected` is what the vectors before those come to, less the mean, if there are any.
        """
        for i, ((x, nonnegative), projection) in enumerate(
            zip(inputs, module.projections[-len(inputs) :], strict=True)
        ):
            bias = -module.center if projected is None else None
            part = self.dense(
                f"projection{i}", x, projection, bias, nonnegative=nonnegative, precision=module.projection_precision
            )
            k = projection.shape[0]
            projected = part if projected is None else self._step.call("add", kernel(epilogue.add, k), projected, part)
        if module.bits == 32:
            return self.dense("little", projected, module.weight, module.bias, precision="fp32")
        n, k = module.weight.shape
        stage = kernel(little.quantize_projection, self._isa, k, module.bits)
        q, affine = self._step.call("quantize_projection", stage, projected)
        tasks = self._tasks(little.packed_size(self._isa, n, k, module.bits))
        knobs = chosen_knobs("little", self._isa, (n, k, module.bits), tasks)
        packed, meta = little.pack_little(self._isa, module.weight, module.bias, module.bits, knobs)
        return self._step.call(
            "little",
            kernel(little.little_rows, self._isa, n, k, module.bits, tasks, knobs),
            q,
            affine,
            self._step.operand("little_weight", packed),
            self._step.operand("little_meta", meta),
        )


def _length(x: relax.Var) -> int:
    return int(x.ty.shape[0])
