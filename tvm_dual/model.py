"""A model to plan: its sites, what they were observed to read, its compiler, and what was decided of them so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from relay_passes.site_plan import COARSE, COPIES, SiteForm
from schedules.coarse import can_be_coarse
from schedules.conv2d_byte_tile import LANES
from schedules.conv2d_gated_tiles import can_gate_bytes
from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS
from tvm_dual.calibration import CalibrationData, InputStream
from tvm_dual.compiler import Compiler
from tvm_dual.copied_little import copy_levels
from tvm_dual.fitting import SiteFit
from tvm_dual.forms import BYTE_FORMS, EXACT_BYTES, GATED_BYTES, Forms
from tvm_dual.observations import Observations
from tvm_dual.options import AdvancedOptions
from tvm_dual.sites import Site


@dataclass(frozen=True)
class ChannelOrder:
    """The order of a convolution's channels.

    Attributes
    ----------
    places : tuple of int
        Which channel of the model comes at each place; empty if they stay as they are.
    reason : str
    """

    places: tuple[int, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Model:
    """What planning works on.

    Attributes
    ----------
    sites : dict of Site
    observations : dict of Observations
    data : CalibrationData
    compiler : Compiler
    precision : str
    options : AdvancedOptions
    left : tuple of Site
        Sites that no kernel of ours applies to; TVM compiles them.
    on_bytes : dict of Affine
        Convolutions that are computed on bytes in their dense form, and the scale and zero point of their inputs.
    on_bf16 : frozenset of str
        Those that are computed on bf16 in their dense form.
    on_floats : frozenset of str
        Layers without states, other than convolutions, that an int8 build computes in fp32.
    known : dict of SiteFit
        Little modules fitted so far, which builds of one model share; those of a model whose channels are in another
        order are in a dict of their own, which is one of its values.
    orders : dict of ChannelOrder
        By convolution, of those that the order of channels was chosen for (`tvm_dual.permuting`).
    """

    sites: dict[str, Site]
    observations: dict[str, Observations]
    data: CalibrationData
    compiler: Compiler
    precision: str
    options: AdvancedOptions
    left: tuple[Site, ...] = ()
    known: dict[tuple, SiteFit | dict] = field(default_factory=dict)
    on_bytes: dict[str, Affine] = field(default_factory=dict)
    on_bf16: frozenset[str] = frozenset()
    on_floats: frozenset[str] = frozenset()
    orders: dict[str, ChannelOrder] = field(default_factory=dict)

    @property
    def longest(self) -> InputStream:
        """The longest stream, for timing."""
        return max(self.data.streams, key=len)

    def sized(self, sizes: Mapping[str, int]) -> Model:
        """Return the model with little modules of some sites of other sizes; 0 are those that have none."""
        dimensions = self.options.site_dimensions | {name: size for name, size in sizes.items() if size}
        return replace(self, options=replace(self.options, site_dimensions=dimensions))

    def site_forms(self, forms: Forms, rule: str = "") -> dict[str, SiteForm]:
        """Return what the compiler takes for `forms`."""
        found = {}
        for name, form in forms.items():
            found[name] = self.compiler.form(self.site_precision(name, form), *form, rule)
            if name in self.on_bytes and found[name].precision == "int8":
                levels = self.on_bytes[name]
                found[name] = replace(found[name], scale=levels.scale, zero=levels.zero)
            elif form[1] in COPIES:
                levels = self.copy_levels(name)
                found[name] = replace(found[name], scale=levels.scale, zero=levels.zero)
        return found

    def read_levels(self, name: str) -> Affine:
        """Return the scale and zero point of the bytes that a site reads, in place of its floats or for its copy."""
        return self.on_bytes[name] if name in self.on_bytes else self.copy_levels(name)

    def copy_levels(self, name: str) -> Affine:
        """Return the scale and zero point of what a site's copy reads."""
        key = (name, "copy levels")
        if key not in self.known:
            self.known[key] = copy_levels(self.observations[name].inputs[0])
        return self.known[key]

    def is_low(self, name: str) -> bool:
        """Whether a site is a convolution on bytes or on bf16."""
        return name in self.on_bytes or name in self.on_bf16

    def gates(self, name: str) -> bool:
        """Whether a gate is tried on a site."""
        site = self.sites[name]
        can_gate = site.can_gate and name not in self.options.keep_dense
        return can_gate and (not self.is_low(name) or can_gate_bytes(ISAS[self.compiler.isa], site.conv))

    def direction_vector(self, name: str) -> int:
        """Return what numbers of a convolution's directions are multiples of.

        They are channels themselves, computed in whole vectors; those of bytes have 16 outputs at every level.
        """
        return LANES if name in self.on_bytes else ISAS[self.compiler.isa].lanes

    def kinds(self, name: str) -> tuple[str, ...]:
        """Return the kinds of little modules that are tried on a site under a gate."""
        site = self.sites[name]
        if site.conv is None or not self.gates(name) or self.is_low(name):
            return ("projection",)
        may_not = set() if can_be_coarse(site.conv) else {COARSE}
        return tuple(kind for kind in self.options.little_kinds if kind not in may_not)

    def littles_on_bytes(self, name: str) -> bool:
        """Whether a site may be behind its little module alone, on bytes."""
        return self.sites[name].can_gate and name not in self.options.keep_dense and name in self.on_bytes

    def site_precision(self, name: str, form: tuple[str, str]) -> str:
        """Return the precision of a site's big module in a form."""
        if name in self.on_bytes and form in BYTE_FORMS:
            return "int8"
        if name in self.on_bf16 and form in (EXACT_BYTES, GATED_BYTES):
            return "bf16"
        return "fp32" if name in self.on_floats else self.sites[name].precision(self.precision)
