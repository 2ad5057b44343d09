"""The stages of a convolution's step: exact in either form, its little module, its open tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import relax

from relay_passes.copied_littles import copied_sums
from relay_passes.products import LittleModule
from relay_passes.site_plan import COARSE, COPIES, SiteForm
from relay_passes.step import StepBuilder
from schedules.coarse import coarse_projection, coarse_spread, fine_pixels
from schedules.conv2d import conv2d, pack_conv2d
from schedules.conv2d_gate import tile_gate
from schedules.conv2d_gated import default_gated_tile, gate_size, gated_conv2d
from schedules.conv2d_gated_skip import gated_skip_conv2d, pack_gated_skip
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_single import conv2d_single
from schedules.conv2d_skip import conv2d_skip, pack_conv2d_skip
from schedules.cpu import Isa
from schedules.history import chosen_knobs
from schedules.panels import panel_size
from schedules.registry import kernel
from schedules.single_dots import pack_singles


def _pack_dense(isa: Isa, _conv: Conv2d, tile, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pack_conv2d(isa, tile, weight, bias)


#: By form: kernel and packing.
_FORMS = {"dense": (conv2d, _pack_dense), "columns": (conv2d_skip, pack_conv2d_skip)}


class Conv2dStages:
    """Emits the stages of one convolution into a step."""

    def __init__(self, step: StepBuilder, isa: Isa, conv: Conv2d, threads: int) -> None:
        """Emit for one level and number of threads."""
        self._step, self._isa, self._conv, self._threads = step, isa, conv, threads

    def exact(
        self,
        form: str,
        weight,
        bias,
        x: relax.Var,
        residual: relax.Var | None,
        reads: bool = False,
        writes: bool = False,
    ) -> relax.Var:
        """Return the convolution in the form ``dense`` or ``columns``; `residual` is added if there is one.

        Both forms can give lists, that of columns alone reads them.
        """
        lists = (writes, reads) if form == "columns" else (writes,)
        return self._exact(form, self._conv, "", weight, bias, x, residual, *lists)

    def little_sums(self, form: SiteForm, module: LittleModule, x: relax.Var, reads: bool = False) -> relax.Var:
        """Return what the little module predicts the sums to be, bias included.

        With `reads`, which projections that skip zeros alone can, x is lists.
        """
        return self._little(form, module, x, replace(self._conv, activation=None, residual=False), None, reads)

    def little(self, form: SiteForm, module: LittleModule, x: relax.Var, residual: relax.Var | None) -> relax.Var:
        """Return the little module's result in place of the convolution's."""
        return self._little(form, module, x, self._conv, residual)

    def gate(self, sums: relax.Var, residual: relax.Var | None, limits: relax.Var) -> tuple[relax.Var, relax.Var]:
        """Return which tiles are open, and how many; `limits` are what `schedules.conv2d_gate` describes."""
        isa, conv, tile = self._isa, self._conv, default_gated_tile(self._isa, self._conv)
        size = panel_size(isa, conv.outputs, tile.vectors)
        gate = kernel(
            tile_gate, isa, *gate_size(isa, conv, tile), conv.outputs, size, self._threads, residual is not None
        )
        return self._step.call("tile_gate", gate, sums, self._added("gate_", residual), limits)

    def gated(self, weight, bias, x, residual: relax.Var | None, opened: relax.Var, sums: relax.Var) -> relax.Var:
        """Return the convolution in open tiles, what `sums` come to in closed ones."""
        # Tuning leaves the panels as they are, which the gate decides on.
        tile = chosen_knobs("conv2d_gated", self._isa, self._conv.geometry, self._threads)
        packed = self._operands("", pack_conv2d(self._isa, tile, weight, bias), residual)
        stage = kernel(gated_conv2d, self._isa, self._conv, tile, self._threads)
        return self._step.call("gated_conv2d", stage, x, *packed, opened, sums)

    def gated_skip(self, reads: bool, weight, bias, x, residual, opened: relax.Var, sums: relax.Var) -> relax.Var:
        """Return what `gated` does, over nonzero inputs alone; with `reads` x is lists."""
        isa, conv = self._isa, self._conv
        packed = self._operands("", pack_gated_skip(isa, conv, weight, bias), residual)
        stage = kernel(gated_skip_conv2d, isa, conv, self._threads, reads)
        return self._step.call("gated_skip_conv2d", stage, x, *packed, opened, sums)

    def singles(
        self, weight, bias, x, residual: relax.Var | None, limits: relax.Var, sums: relax.Var
    ) -> tuple[relax.Var, relax.Var]:
        """Return the convolution in open outputs, what `sums` come to in closed ones, and how many are open."""
        isa, conv = self._isa, self._conv
        tile = chosen_knobs("conv2d_single", isa, conv.geometry, self._threads)
        operands = self._operands("", pack_singles(isa, weight, bias, conv), residual)
        stage = kernel(conv2d_single, isa, conv, tile, self._threads)
        return self._step.call("conv2d_single", stage, x, *operands, limits, sums)

    def _little(
        self, form: SiteForm, module: LittleModule, x: relax.Var, after: Conv2d, residual, reads: bool = False
    ) -> relax.Var:
        if form.hidden in COPIES:
            return copied_sums(self._step, self._isa, after, self._threads, form, module, x)
        if form.hidden == COARSE:
            return self._coarse(module, x, after, residual)
        conv, (projection,) = self._conv, module.projections
        k = len(projection)
        inner = replace(conv, outputs=k, activation=None, residual=False)
        filters = projection.reshape(k, *conv.kernel, conv.inputs)
        lists, kind = (False, True) if reads else (), "columns" if form.skips_all else form.hidden
        projected = self._exact(kind, inner, "projection_", filters, -module.center, x, None, *lists)
        # What is left is one product per pixel.
        spread = Conv2d(1, 1, inner.output_size // k, k, conv.outputs, (1, 1), activation=after.activation)
        spread = replace(spread, residual=after.residual)
        rows = module.weight.reshape(-1, 1, 1, k)
        return self._exact("dense", spread, "little_", rows, module.bias, projected, residual)

    def _coarse(self, module: LittleModule, x: relax.Var, after: Conv2d, residual: relax.Var | None) -> relax.Var:
        (projection,) = module.projections
        blocks, spread = coarse_projection(self._conv, len(projection)), coarse_spread(self._conv, len(projection))
        filters = projection.reshape(blocks.outputs, *blocks.kernel, blocks.inputs)
        projected = self._exact("dense", blocks, "projection_", filters, -module.center, x, None)
        rows = module.weight.reshape(spread.outputs, 1, 1, -1)
        four = self._exact("dense", spread, "little_", rows, module.bias, projected, None)
        stage = kernel(fine_pixels, self._isa, after, self._threads)
        return self._step.call("fine_pixels", stage, four, self._added("fine_", residual))

    def _exact(
        self, form: str, conv: Conv2d, name: str, weight, bias, x, residual: relax.Var | None, *lists: bool
    ) -> relax.Var:
        builder, pack = _FORMS[form]
        tile = chosen_knobs(builder.__name__, self._isa, conv.geometry, self._threads)
        operands = self._operands(name, pack(self._isa, conv, tile, weight, bias), residual)
        stage = kernel(builder, self._isa, conv, tile, self._threads, *lists)
        return self._step.call(f"{name}{builder.__name__}", stage, x, *operands)

    def _operands(self, name: str, packed: tuple[np.ndarray, np.ndarray], residual) -> list[relax.Var]:
        operands = [self._step.operand(f"{name}{part}", v) for part, v in zip(("weight", "bias"), packed, strict=True)]
        return [*operands, self._added(name, residual)]

    def _added(self, name: str, residual: relax.Var | None) -> relax.Var:
        """Return `residual`, or what kernels take where there is none."""
        return self._step.operand(f"{name}no_residual", np.zeros(1, "float32")) if residual is None else residual
