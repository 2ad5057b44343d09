"""Variants of a model: little modules for the forms of its sites, compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from relay_passes.site_plan import COARSE, COPIES, GATED
from schedules.cpu import ISAS, Isa
from schedules.quantize import round_up
from tvm_dual.closed_fit import gate_table, refit_closed
from tvm_dual.conv_littles import fit_coarse, fit_copy
from tvm_dual.finetuning import can_finetune, finetune
from tvm_dual.fitting import SiteFit, fit_bytes, fit_site
from tvm_dual.forms import APPROXIMATE, Forms, gate_of, trains
from tvm_dual.gates import EFFORTS, FAR, gate_factors
from tvm_dual.joint_training import Start, train_together
from tvm_dual.library import DualLibrary
from tvm_dual.model import Model
from tvm_dual.plan import Plan
from tvm_dual.torch_model import translatable

#: One bound for all gated sites, or one for each.
Limits = float | Mapping[str, float]


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
        self._together: dict[tuple, SiteFit] = {}

    @cached_property
    def _means(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Mean of each vector that a site reads."""
        return {
            name: tuple(values.mean(axis=0) for values in seen.inputs)
            for name, seen in self._model.observations.items()
        }

    @property
    def _isa(self) -> Isa:
        return ISAS[self._model.compiler.isa]

    def fit(self, name: str, forms: tuple[str, str]) -> SiteFit:
        """Return a site's little module.

        After `refit` it is fitted again; after `finetune` it is the trained one if there is one, else the closed form.
        """
        for found in (self._together, self._refits):
            if (name, forms) in found:
                return found[name, forms]
        closed = self._closed_form(name, forms)
        return self._model.known.get(self._tuned(name, forms), closed) if self._uses_tuned else closed

    def refit(self, forms: Forms, rule: str, limits: Mapping[str, float]) -> None:
        """Fit the little modules of convolutions again to what is closed at the bounds `limits`, by site.

        Those on bytes stay as they are, and those that were trained together.
        """
        model, self._refits = self._model, {}
        isa = ISAS[model.compiler.isa]
        for name, limit in limits.items():
            site, form = model.sites[name], forms[name]
            if (name, form) in self._together:
                continue
            if site.conv and APPROXIMATE & set(form) and model.site_precision(name, form) == "fp32":
                fit, observed, gate = self.fit(name, form), model.observations[name], gate_of(form)
                self._refits[name, form] = refit_closed(site, fit, observed, isa, rule, limit, gate)

    def finetune(self, forms: Forms, limit: Limits, progress: Callable[[str, int, int], None]) -> bool:
        """Train little modules around the bound `limit`, or one by site, each once; say if there are any.

        Those of convolutions are trained together, each set of them once, in models that run in PyTorch.
        """
        model, steps = self._model, self._model.options.finetune_steps
        trained = {
            name: form
            for name, form in forms.items()
            if steps and trains(form) and can_finetune(model.sites[name], model.observations[name])
        }
        together = {name: form for name, form in trained.items() if model.sites[name].conv}
        if together and not translatable(model.compiler.module):
            together = {}
        for name, form in trained.items():
            key = self._tuned(name, form)
            if name not in together and key not in model.known:
                site, observed = model.sites[name], model.observations[name]
                report = partial(progress, f"fine-tuning {name}")
                limits = limit[name] if isinstance(limit, Mapping) else limit
                limits = limits * gate_factors(site.kind, model.options.gate_factors)
                start, isa = self._of_floats(name, form), ISAS[model.compiler.isa]
                tuned = finetune(site, start, observed, limits, steps, report, isa=isa, gate=gate_of(form))
                model.known[key] = self._as_stored(name, form, tuned)
        if together:
            self._train_together(together, limit, progress)
        self._uses_tuned = self._uses_tuned or bool(trained)
        return self._uses_tuned

    def _train_together(self, forms: Forms, limit: Limits, progress: Callable[[str, int, int], None]) -> None:
        model, limits = self._model, {name: _limit_of(limit, name, form) for name, form in forms.items()}
        key = ("together", *((self._tuned(name, form), form, limits[name]) for name, form in forms.items()))
        if key not in model.known:
            starts = {n: Start(self._of_floats(n, form), limits[n], gate_of(form)) for n, form in forms.items()}
            report = partial(progress, f"fine-tuning {len(forms)} layers together")
            isa, steps = ISAS[model.compiler.isa], model.options.finetune_steps
            given = model.compiler.module, model.sites, starts, model.data.streams, isa
            trained = train_together(*given, steps, report)
            model.known[key] = {name: self._as_stored(name, forms[name], fit) for name, fit in trained.items()}
        self._together = {(name, forms[name]): fit for name, fit in model.known[key].items()}

    def _of_floats(self, name: str, forms: tuple[str, str]) -> SiteFit:
        """Return the closed form in floats, of which one on bytes is made."""
        *floats, _ = self._key(name, forms)
        return self._closed((*floats, None))

    def _as_stored(self, name: str, forms: tuple[str, str], tuned: SiteFit) -> SiteFit:
        """Return a trained little module at the precision of a form."""
        source = self._key(name, forms)[-1]
        site, observed = self._model.sites[name], self._model.observations[name]
        return tuned if source is None else fit_bytes(site, tuned, observed, source, self._isa)

    def forget_tuned(self) -> None:
        """Go back to the closed forms."""
        self._uses_tuned, self._together = False, {}

    def _key(self, name: str, forms: tuple[str, str]) -> tuple:
        """Everything that the closed form of a site's little module depends on."""
        site, options, both = self._model.sites[name], self._model.options, forms[0] in APPROXIMATE
        rows = len(site.weight)
        inputs = site.n_inputs * both + site.hidden if site.hidden else site.n_inputs
        if forms[1] in COPIES:
            return name, both, 0, forms[1], COPIES[forms[1]], None
        if site.conv:
            size = round_up(options.site_size(name, min(inputs, rows), rows), self._model.direction_vector(name))
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
                model.known[key] = fit_copy(*layer, bits, self._model.copy_levels(name), self._isa)
            elif projection == COARSE:
                model.known[key] = fit_coarse(*layer, size)
            else:
                model.known[key] = fit_site(*layer, **options, isa=self._isa)
        return model.known[key]

    def variant(
        self, forms: Forms, rule: str = "damage", limit: Limits | None = None, plan: Plan | None = None
    ) -> Variant:
        """Return the model in the given forms, its gates at `limit` or open; with `plan`, as a product."""
        fits = {name: self.fit(name, form) for name, form in forms.items() if set(form) & APPROXIMATE}
        return self._compiled(forms, fits, rule, limit, plan)

    def judged(self, forms: Forms) -> DualLibrary:
        """Return the model in the given forms, its gates open, to be judged and not to be timed."""
        fits = {name: self.fit(name, form) for name, form in forms.items() if set(form) & APPROXIMATE}
        return self._compiled(forms, fits, "damage", apart=True).library

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
        *,
        apart: bool = False,
    ) -> Variant:
        model = self._model
        tables = {} if limit is None else _tables(model, forms, fits, rule, limit)
        library = model.compiler.compile(
            model.site_forms(forms, rule),
            {name: fit.little for name, fit in fits.items()},
            {name: fit.spread for name, fit in fits.items()},
            self._means,
            tables,
            apart=apart,
            plan=plan,
        )
        return Variant(forms, fits, rule, library, model)


def _limit_of(limit: Limits, name: str, form: tuple[str, str]) -> float:
    """Return the bound of a site; little modules alone have none."""
    if not GATED & set(form):
        return FAR
    return limit[name] if isinstance(limit, Mapping) else limit


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
