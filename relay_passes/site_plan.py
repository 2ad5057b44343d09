"""What a planned site's function carries: attributes that say how it is to be rewritten.

The IR holds all that a pass needs, so no pass imports ``tvm_dual``, and a printed module shows what
will happen to each site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.products import LittleModule
from schedules.cpu import ISAS, Isa
from schedules.quantize import corrected_bias, stored_rows

#: What is left of a matrix of int8 rows.
_EIGHT_BITS = partial(stored_rows, bits=8)
#: Forms with a gate.
GATED = frozenset({"rows", "singles"})
#: Little modules of a convolution that are copies of the layer, and the bits of their weights.
COPIES = {"copy8": 8, "copy4": 4}
#: One that predicts four pixels at a time.
COARSE = "coarse"


@dataclass(frozen=True)
class SiteForm:
    """How one site is computed.

    Attributes
    ----------
    precision : str
        Of the big module: ``fp32``, ``int8`` or, of a convolution, ``bf16``.
    input, hidden : str
        Form of each matrix: ``dense`` (every row), ``columns`` (zero inputs skipped), ``rows``
        (gated; of a convolution tiles), ``singles`` (a convolution gated output by output) or ``little`` (the little
        module alone). A dense layer has no `hidden`; of a convolution with a little module that is the form of its
        projection, or ``nonzeros``, if projection and open tiles both skip zeros, or the kind of what is no projection:
        a key of `COPIES`, or `COARSE`.
    rule : str
        Gate rule, ``damage`` or ``activation``.
    threads : int
    isa : str
        A key of `schedules.cpu.ISAS`.
    scale, zero : float, int
        Scale and zero point of the bytes that a convolution of int8 reads, or a copy that is a little module.
    """

    precision: str
    input: str
    hidden: str
    rule: str
    threads: int
    isa: str
    scale: float = 0.0
    zero: int = 0

    @property
    def gated(self) -> bool:
        """Whether a gate decides at run time."""
        return bool(GATED & {self.input, self.hidden})

    @property
    def needs_little(self) -> bool:
        """Whether a little module takes part."""
        return self.gated or "little" in (self.input, self.hidden)

    @property
    def skips_all(self) -> bool:
        """Whether a convolution's open tiles and its projection run over nonzero inputs alone."""
        return self.hidden == "nonzeros"

    def level(self) -> Isa:
        """Return the instruction set level to generate for."""
        return ISAS[self.isa]


_TEXT = ("precision", "input", "hidden", "rule", "isa")


@tvm.transform.module_pass(opt_level=0, name="AttachPlan")
class AttachPlan:
    """Write forms, little modules and error spreads into the attributes of their sites."""

    def __init__(
        self,
        forms: dict[str, SiteForm],
        littles: dict[str, LittleModule],
        spreads: dict[str, np.ndarray],
        means: dict[str, tuple[np.ndarray, ...]],
    ) -> None:
        """Attach by site name; a site without a form stays as it is.

        `spreads` is what a recurrent gate multiplies slopes by, one per row; `means` the mean of each
        vector that a site reads, for the bias of quantized weights (none: left as it is).
        """
        self._forms, self._littles, self._spreads, self._means = forms, littles, spreads, means

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with the attributes in place."""
        result = IRModule(module.functions, attrs=module.attrs)
        for target, function in module.functions.items():
            name = function.attrs.get("dual.site") if isinstance(function, relax.Function) and function.attrs else None
            form = self._forms.get(str(name)) if name else None
            if form is None:
                continue
            attributes = {f"dual.{key}": getattr(form, key) for key in _TEXT} | {"dual.threads": form.threads}
            attributes |= {"dual.scale": form.scale, "dual.zero": form.zero}
            attributes["dual.means"] = [tvm.runtime.tensor(mean) for mean in self._means.get(str(name), ())]
            if form.needs_little:
                little = self._littles[str(name)]
                attributes["dual.little.bits"] = little.bits
                for key in ("center", "weight", "bias"):
                    attributes[f"dual.little.{key}"] = tvm.runtime.tensor(getattr(little, key))
                attributes["dual.little.projections"] = [tvm.runtime.tensor(p) for p in little.projections]
                attributes["dual.spread"] = tvm.runtime.tensor(self._spreads[str(name)])
            result[target] = function.with_attrs(attributes)
        return result


def read_form(function: relax.Function) -> SiteForm | None:
    """Return the form in a site function's attributes, or None if it has none."""
    if not function.attrs or "dual.precision" not in function.attrs:
        return None
    return SiteForm(
        **{key: str(function.attrs[f"dual.{key}"]) for key in _TEXT},
        threads=int(function.attrs["dual.threads"]),
        scale=float(function.attrs["dual.scale"]),
        zero=int(function.attrs["dual.zero"]),
    )


def read_little(function: relax.Function) -> LittleModule:
    """Return the little module in a site function's attributes."""
    attributes = function.attrs
    return LittleModule(
        tuple(p.numpy() for p in attributes["dual.little.projections"]),
        *(attributes[f"dual.little.{key}"].numpy() for key in ("center", "weight", "bias")),
        int(attributes["dual.little.bits"]),
    )


def planned_bias(
    function: relax.Function,
    position: int,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stored: Callable[[np.ndarray], np.ndarray] = _EIGHT_BITS,
) -> np.ndarray:
    """Return the bias of one of a site's matrices, corrected for quantized weights.

    `position` is 0 for the matrix of the input, 1 for that of a recurrent state; `stored` gives what is left of the
    weights.
    """
    bias = np.zeros(len(weight), "float32") if bias is None else bias
    means = function.attrs["dual.means"]
    if str(function.attrs["dual.precision"]) != "int8" or not len(means):
        return bias
    return corrected_bias(weight, stored(weight), bias, means[position].numpy())
