"""Variants of a model: forms for its sites, little modules for those forms, compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from relay_passes.site_plan import COARSE, COPIES, GATED, SiteForm
from schedules.coarse import can_be_coarse
from schedules.conv2d_int8 import Affine
from schedules.cpu import ISAS
from schedules.quantize import round_up
from tvm_dual.calibration import CalibrationData, InputStream
from tvm_dual.closed_fit import gate_table, refit_closed
from tvm_dual.compiler import Compiler
from tvm_dual.conv_littles import fit_coarse, fit_copy
from tvm_dual.copied_little import copy_levels
from tvm_dual.finetuning import can_finetune, finetune
from tvm_dual.fitting import SiteFit, fit_bytes, fit_site
from tvm_dual.gates import EFFORTS, gate_factors
from tvm_dual.library import DualLibrary
from tvm_dual.observations import Observations
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.sites import Site

#: Forms that a little module takes part in.
APPROXIMATE = GATED | {"little"}
#: Form of the input's and the state's matrix, by site.
Forms = dict[str, tuple[str, str]]
#: Forms of a convolution on bytes: exact, behind its little module alone, or gated. On bf16 the second is of floats.
BYTE_FORMS = EXACT_BYTES, LITTLE_BYTES, GATED_BYTES = ("dense", ""), ("little", "dense"), ("rows", "dense")
#: One bound for all gated sites, or one for each.
Limits = float | Mapping[str, float]


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
        """Whether a gate is tried on a site: on bytes or bf16 there are kernels of open pixels for tiles alone."""
        isa = ISAS[self.compiler.isa]
        can_gate = self.sites[name].can_gate and name not in self.options.keep_dense
        return can_gate and (isa.amx or not self.is_low(name))

    def kinds(self, name: str) -> tuple[str, ...]:
        """Return the kinds of little modules that are tried on a site under a gate."""
        site, isa = self.sites[name], ISAS[self.compiler.isa]
        if site.conv is None or not self.gates(name) or self.is_low(name):
            return ("projection",)
        may = {"projection": True, **dict.fromkeys(COPIES, isa.vnni), COARSE: can_be_coarse(site.conv)}
        return tuple(kind for kind in self.options.little_kinds if may[kind])

    def littles_on_bytes(self, name: str) -> bool:
        """Whether a site may be behind its little module alone, on bytes."""
        return self.sites[name].can_gate and name not in self.options.keep_dense and name in self.on_bytes

    def site_precision(self, name: str, form: tuple[str, str]) -> str:
        """Return the precision of a site's big module in a form."""
        if name in self.on_bytes and form in BYTE_FORMS:
            return "int8"
        if name in self.on_bf16 and form in (EXACT_BYTES, GATED_BYTES):
            return "bf16"
        return self.sites[name].precision(self.precision)


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to compute the model, compiled, whose bound can still change."""

    forms: Forms
    fits: dict[str, SiteFit]
    rule: str
    library: DualLibrary
    model: Model

    def set_limit(self, limit: Limits) -> None:
        """Gate at `limit`: of all sites, or by site."""
        self.library.set_thresholds(self.thresholds(limit))

    def thresholds(self, limit: Limits, effort: float = 1.0) -> dict[str, np.ndarray]:
        """Return what `set_limit` sets, or what it comes to at another effort: one row of thresholds by site."""
        tables, at = _tables(self.model, self.forms, self.fits, self.rule, limit), EFFORTS.index(effort)
        return {name: table[at : at + 1] for name, table in tables.items()}


class Fits:
    """Little modules, each fitted once, and the variants built from them."""

    def __init__(self, model: Model) -> None:
        """Take up what `model` knows already."""
        self._model, self._uses_tuned = model, False
        self._refits: dict[tuple, SiteFit] = {}

    @cached_property
    def _means(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Mean of each vector that a site reads."""
        return {
            name: tuple(values.mean(axis=0) for values in seen.inputs)
            for name, seen in self._model.observations.items()
        }

    def fit(self, name: str, forms: tuple[str, str]) -> SiteFit:
        """Return a site's little module.

        After `refit` it is fitted again; after `finetune` it is the trained one if there is one, else the closed form.
        """
        if (name, forms) in self._refits:
            return self._refits[name, forms]
        closed = self._closed_form(name, forms)
        return self._model.known.get(self._tuned(name, forms), closed) if self._uses_tuned else closed

    def refit(self, forms: Forms, rule: str, limits: Mapping[str, float]) -> None:
        """Fit the little modules of convolutions again to what is closed at the bounds `limits`, by site.

        Those on bytes stay as they are.
        """
        model, self._refits = self._model, {}
        isa = ISAS[model.compiler.isa]
        for name, limit in limits.items():
            site, form = model.sites[name], forms[name]
            if site.conv and APPROXIMATE & set(form) and model.site_precision(name, form) == "fp32":
                fit, observed, gate = self.fit(name, form), model.observations[name], gate_of(form)
                self._refits[name, form] = refit_closed(site, fit, observed, isa, rule, limit, gate)

    def finetune(self, forms: Forms, limit: Limits, progress: Callable[[str, int, int], None]) -> bool:
        """Train little modules around the bound `limit`, or one by site, each once; say if there are any."""
        model, steps = self._model, self._model.options.finetune_steps
        for name, form in forms.items():
            site, observed = model.sites[name], model.observations[name]
            if not steps or not trains(form) or not can_finetune(site, observed):
                continue
            if (key := self._tuned(name, form)) not in model.known:
                report = partial(progress, f"fine-tuning {name}")
                limits = limit[name] if isinstance(limit, Mapping) else limit
                limits = limits * gate_factors(site.kind, model.options.gate_factors)
                *floats, source = self._key(name, form)
                # Of a module on bytes the floats that it was made of are trained.
                closed, isa = self._closed((*floats, None)), ISAS[model.compiler.isa]
                gate = "singles" if "singles" in form else "rows"
                tuned = finetune(site, closed, observed, limits, steps, report, isa=isa, gate=gate)
                model.known[key] = tuned if source is None else fit_bytes(site, tuned, observed, source)
            self._uses_tuned = True
        return self._uses_tuned

    def forget_tuned(self) -> None:
        """Go back to the closed forms."""
        self._uses_tuned = False

    def _key(self, name: str, forms: tuple[str, str]) -> tuple:
        """Everything that the closed form of a site's little module depends on."""
        site, options, both = self._model.sites[name], self._model.options, forms[0] in APPROXIMATE
        rows = len(site.weight)
        inputs = site.n_inputs * both + site.hidden if site.hidden else site.n_inputs
        if forms[1] in COPIES:
            return name, both, 0, forms[1], COPIES[forms[1]], None
        if site.conv:
            # Directions are themselves a convolution's channels, computed in whole vectors.
            size = round_up(options.site_size(name, min(inputs, rows), rows), ISAS[self._model.compiler.isa].lanes)
            precision = self._model.site_precision(name, forms)
            source = self._model.on_bytes[name] if precision == "int8" else None
            return name, both, size, COARSE if forms[1] == COARSE else options.projection, 32, source
        return name, both, options.site_size(name, inputs, rows), options.projection, options.little_bits, None

    def _tuned(self, name: str, forms: tuple[str, str]) -> tuple:
        options = self._model.options
        under = (options.closed_share, *sorted(options.gate_factors.items()))
        return *self._key(name, forms), "tuned", options.finetune_steps, under, "singles" in forms

    def _closed_form(self, name: str, forms: tuple[str, str]) -> SiteFit:
        return self._closed(self._key(name, forms))

    def _closed(self, key: tuple) -> SiteFit:
        model = self._model
        if key not in model.known:
            name, both, size, projection, bits, source = key
            layer = model.sites[name], model.observations[name], model.sites
            options = {"both": both, "dimensions": size, "projection": projection, "bits": bits, "source": source}
            if projection in COPIES:
                model.known[key] = fit_copy(*layer, bits, self._model.copy_levels(name))
            elif projection == COARSE:
                model.known[key] = fit_coarse(*layer, size)
            else:
                model.known[key] = fit_site(*layer, **options)
        return model.known[key]

    def variant(
        self, forms: Forms, rule: str = "damage", limit: Limits | None = None, plan: Plan | None = None
    ) -> Variant:
        """Return the model in the given forms, its gates at `limit` or open; with `plan`, as a product."""
        fits = {name: self.fit(name, form) for name, form in forms.items() if set(form) & APPROXIMATE}
        return self._compiled(forms, fits, rule, limit, plan)

    def ruled(self, variant: Variant, rule: str) -> Variant:
        """Return `variant`, with the little modules that it has, under a gate rule."""
        return variant if rule == variant.rule else self._compiled(variant.forms, variant.fits, rule)

    def _compiled(
        self,
        forms: Forms,
        fits: dict[str, SiteFit],
        rule: str,
        limit: Limits | None = None,
        plan: Plan | None = None,
    ) -> Variant:
        model = self._model
        tables = {} if limit is None else _tables(model, forms, fits, rule, limit)
        library = model.compiler.compile(
            model.site_forms(forms, rule),
            {name: fit.little for name, fit in fits.items()},
            {name: fit.spread for name, fit in fits.items()},
            self._means,
            tables,
            plan=plan,
        )
        return Variant(forms, fits, rule, library, model)


def gate_of(form: tuple[str, str]) -> str:
    """Return what a form's gate decides on: ``singles``, of a convolution, or ``rows``."""
    return "singles" if "singles" in form else "rows"


def trains(form: tuple[str, str]) -> bool:
    """Whether a form has a little module that can be trained: one with a projection."""
    return bool(APPROXIMATE & set(form)) and form[1] not in (*COPIES, COARSE)


def exact_form(site: Site, skip: bool) -> tuple[str, str]:
    """Return the form that computes every row; with `skip`, of the columns of nonzero inputs alone."""
    return ("columns" if skip else "dense", "dense" if site.hidden else "")


def mode_form(site: Site, mode: str) -> tuple[str, str]:
    """Return the form of a site where no choice is left: every row, zero skipping, or the little module."""
    if mode == "little" and site.conv and site.can_gate:
        return ("little", "columns" if site.nonnegative else "dense")
    if mode == "little" and site.can_gate:
        return ("columns", "little") if site.hidden and site.nonnegative else _little_form(site)
    return exact_form(site, mode != "dense" and site.nonnegative)


def _little_form(site: Site) -> tuple[str, str]:
    if site.nonnegative:
        return ("columns", "")
    return ("little", "little" if site.hidden else "")


def little_alone(form: tuple[str, str]) -> tuple[str, str]:
    """Return a form with the little module in place of gated rows."""
    return tuple("little" if part in GATED else {"nonzeros": "columns"}.get(part, part) for part in form)


def gated_form(site: Site, exact: tuple[str, str], gate: str = "rows") -> tuple[str, str]:
    """Return the form with a gate wherever `exact` computes every row; a convolution is gated in any case.

    `gate` is that of a convolution: ``rows``, of tiles, or ``singles``.
    """
    if site.conv:
        return (gate, exact[0])
    return tuple("rows" if part == "dense" else part for part in exact)


def singles_form(form: tuple[str, str]) -> tuple[str, str]:
    """Return a convolution's form with a gate for each output in place of each tile; dot products skip no zeros."""
    return ("singles", {"nonzeros": "columns"}.get(form[1], form[1]))


def forms_beside(site: Site, form: tuple[str, str], exact: tuple[str, str]) -> list[tuple[str, str]]:
    """Return forms that differ from `form` in one matrix: exact instead of gated, gated instead of skipping."""
    if site.conv:
        others = [part for part in ("dense", "columns", "nonzeros") if part != form[1]] if site.nonnegative else []
        # Open outputs are dot products, which skip nothing.
        return [exact, *((form[0], part) for part in others if part != "nonzeros" or form[0] == "rows")]
    found = []
    for part, value in enumerate(form):
        other = exact[part] if value == "rows" else "rows" if value == "columns" else None
        changed = (*form[:part], other, *form[part + 1 :])
        # A recurrent layer's little module predicts the state's half: it is gated if the input's is.
        if other is not None and (not site.hidden or changed != ("rows", "dense")):
            found.append(changed)
    return found


def _tables(model: Model, forms: Forms, fits: dict[str, SiteFit], rule: str, limit: Limits) -> dict[str, np.ndarray]:
    """Return the thresholds of all gated sites, for all efforts."""
    gated = [name for name in fits if GATED & set(forms[name])]
    bounds = limit if isinstance(limit, Mapping) else dict.fromkeys(gated, limit)
    factors = model.options.gate_factors
    return {
        name: gate_table(
            model.sites[name],
            rule,
            bounds[name],
            fits[name],
            factors,
            gate_of(forms[name]),
        )
        for name in gated
    }
