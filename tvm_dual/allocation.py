"""Allocation: a bound and a little module for each layer, by quality lost against time or operations saved.

One bound for all layers opens some of them needlessly, because what an error of a layer does to the result differs
from layer to layer by orders of magnitude. So each layer of a model without states is looked at by itself: every form
that it may take (exact; behind a little module of some size, alone or gated at some bound) has a cost, measured
(`tvm_dual.site_times`) or counted (`tvm_dual.site_operations`), and a loss, which is what the model's outputs are off
by. `tvm_dual.site_choices` puts the steps from form to form in order; what is judged in the whole model is how many of
them the budget allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm_dual.errors import PlanError
from tvm_dual.forms import little_alone, trains, trains_alone
from tvm_dual.gates import FAR, OPEN
from tvm_dual.measure import median_microseconds
from tvm_dual.model import Model
from tvm_dual.plan import FineTuning, Trial
from tvm_dual.quality import Quality
from tvm_dual.search import try_limit
from tvm_dual.site_choices import Choice, Step, choices_of, merged, sizes_of, steps
from tvm_dual.site_costs import SiteCosts
from tvm_dual.site_operations import count_sites
from tvm_dual.site_times import time_sites
from tvm_dual.variants import Fits, Variant

#: Layers at most whose new form is taken back if the whole model is no slower without it.
LOOKED_AT = 6


@dataclass(frozen=True, eq=False)
class Allocation:
    """What was found.

    Attributes
    ----------
    exact : Variant
        Every layer in its fastest exact form.
    variant : Variant or None
        The fastest within the budget; None if that is `exact`.
    found : Trial or None
        Of `variant`.
    fits : Fits or None
        Little modules of `variant`.
    trials : tuple of Trial
    finetuning : FineTuning or None
        None if nothing was trained.
    """

    exact: Variant
    variant: Variant | None
    found: Trial | None
    fits: Fits | None
    trials: tuple[Trial, ...]
    finetuning: FineTuning | None = None


def allocates(model: Model) -> bool:
    """Whether bounds are found layer by layer: in models without states that have convolutions with a gate."""
    sites = model.sites.values()
    return (
        model.options.closed_share is None
        and not any(site.hidden for site in sites)
        and any(site.conv and site.can_gate for site in sites)
    )


def check_countable(model: Model) -> None:
    """Check that a plan for few operations can be made of a model.

    Raises
    ------
    PlanError
        If the build is not of floats alone, or the model has one bound for all layers.
    """
    accepted = "fp32 builds of models of convolutions without states, with a quality budget"
    if model.precision != "fp32" or not allocates(model):
        found = f"precision {model.precision!r}, layers {', '.join(sorted({s.kind for s in model.sites.values()}))}"
        raise PlanError(f"options: minimize='operations' for {found}; accepted: {accepted}")


def allocate(model: Model, quality: Quality, progress: Callable[[str, int, int], None]) -> Allocation:
    """Find a bound and a little module for each layer.

    Parameters
    ----------
    model : Model
        For which `allocates` holds.
    quality : Quality
        Judges each of about ``log2(steps) + options.search_steps + LOOKED_AT`` variants.
    progress : callable
        Called with ``(phase, done, total)``.
    """
    rule = "damage" if model.options.rule == "auto" else model.options.rule
    sizes = {name: sizes_of(model, name) for name in model.sites if model.gates(name) or model.littles_on_bytes(name)}
    counts = model.options.minimize == "operations"
    costs = count_sites(model, sizes) if counts else time_sites(model, sizes, progress)
    exact = _exact(model, costs)
    if model.precision != "fp32" and not quality.accepts(quality.judge(exact.library)):
        # Layers that went back to floats, as fast as they are there, may leave what other layers' errors cancelled.
        costs = time_sites(model, sizes, progress, back_to_floats=False)
        exact = _exact(model, costs)
    choices = choices_of(model, rule, costs, progress)
    path = merged({name: steps(Choice(0, OPEN, 0.0, costs[name].exact), found) for name, found in choices.items()})
    judged = _Judged(model, quality, costs, rule, progress, math.ceil(math.log2(len(path) + 1)))
    taken, finetuning = _within_budget([], path, judged), None
    if model.options.finetune_steps and any(trains(step.choice.form) for step in taken):
        taken, finetuning = _tuned(taken, path, judged)
    taken = taken if counts else worthwhile(taken, judged)
    return Allocation(exact, *judged.held.get(_state(taken), (None,) * 3), tuple(judged.trials), finetuning)


def _exact(model: Model, costs: dict[str, SiteCosts]) -> Variant:
    """Return the model with every layer in its fastest exact form."""
    return Fits(model).variant({name: found.form for name, found in costs.items()})


class _Judged:
    """Judges lists of steps, each list once."""

    def __init__(
        self, model: Model, quality: Quality, costs: dict[str, SiteCosts], rule: str, progress, expected: int
    ) -> None:
        self._model, self._quality, self._costs, self._rule, self._progress = model, quality, costs, rule, progress
        self._expected = expected + model.options.search_steps + min(LOOKED_AT, len(costs))
        self.trials: list[Trial] = []
        #: What the budget allowed, by the layers' last steps.
        self.held: dict[tuple, tuple[Variant, Trial, Fits]] = {}
        #: Whether little modules are trained, layer by layer and then together.
        self.tuned = self.together = False

    @property
    def finetune_steps(self) -> int:
        """Steps of gradient descent of each little module."""
        return self._model.options.finetune_steps

    @property
    def search_steps(self) -> int:
        """How many single steps are tried in the end."""
        return self._model.options.search_steps

    def holds(self, taken: list[Step]) -> bool:
        """Whether the quality budget allows these steps together."""
        return self._quality.accepts(self.judge(taken).quality)

    def is_worthwhile(self, taken: list[Step], fewer: list[Step]) -> bool:
        """Whether the model is faster with the steps `taken`, which hold, than with `fewer` of them."""
        if not self.holds(fewer):
            return True
        libraries = [self.held[_state(state)][0].library for state in (taken, fewer)]
        time, time_of_fewer = median_microseconds(libraries, self._model.longest)
        return time < time_of_fewer

    def trains_together(self, taken: list[Step]) -> bool:
        """Whether any of these steps leaves a little module alone that can be trained together with others."""
        sites, last = self._model.sites, dict(_state(taken))
        return any(
            choice.limit == FAR and trains_alone(sites[name], little_alone(choice.form))
            for name, choice in last.items()
        )

    def saving(self, name: str, choice: Choice) -> float:
        """Return what a layer's form saves by itself, in microseconds or multiply-adds."""
        return self._costs[name].exact - choice.cost

    def judge(self, taken: list[Step]) -> Trial:
        """Return what becomes of the model."""
        self._progress("bounds by layer", len(self.trials), max(self._expected, len(self.trials) + 1))
        state = dict(_state(taken))
        forms = {name: found.form for name, found in self._costs.items()}
        for name, choice in state.items():
            form = choice.form
            forms[name] = little_alone(form) if choice.limit == FAR else form
        sized = self._model.sized({name: choice.size for name, choice in state.items()})
        fits, limits = Fits(sized), {name: choice.limit for name, choice in state.items()}
        if self.tuned:
            fits.finetune(forms, limits, self._progress)
        if self.together:
            fits.train_together(forms, self._progress)
        fits.refit(forms, self._rule, limits)
        variant = fits.variant(forms, self._rule)
        trial = try_limit(sized, self._quality, variant, limits)
        self.trials.append(trial)
        if self._quality.accepts(trial.quality):
            self.held[_state(taken)] = (variant, trial, fits)
        return trial


def _state(taken: list[Step]) -> tuple[tuple[str, Choice], ...]:
    """Return the last form of each layer."""
    return tuple(sorted({step.name: step.choice for step in taken}.items(), key=lambda item: item[0]))


def _within_budget(taken: list[Step], path: list[Step], judged: _Judged) -> list[Step]:
    """Return `taken` with as many of the steps of `path` as the budget allows, and then some single ones."""
    held, failed = 0, len(path) + 1
    while failed - held > 1:
        middle = (held + failed) // 2
        if judged.holds([*taken, *path[:middle]]):
            held = middle
        else:
            failed = middle
    taken, rest = [*taken, *path[:held]], path[held:]
    # The next step is too much; those of other layers may not be.
    refused = {step.name for step in rest[:1]}
    for _ in range(judged.search_steps):
        step = next((step for step in rest if step not in taken and step.name not in refused), None)
        if step is None:
            break
        if judged.holds([*taken, step]):
            taken = [*taken, step]
        else:
            refused.add(step.name)
    return taken


def _tuned(taken: list[Step], path: list[Step], judged: _Judged) -> tuple[list[Step], FineTuning]:
    """Go on with trained little modules if they judge better; return the steps that the budget allows."""
    state, before = _state(taken), judged.held[_state(taken)]
    judged.tuned = True
    found = FineTuning(judged.finetune_steps, before[1], judged.judge(taken))
    if found.kept:
        before = judged.held[state]
    judged.held[state], judged.tuned = before, found.kept
    judged.together = True
    if judged.trains_together(taken):
        found = replace(found, together=judged.judge(taken))
    if not found.kept_together:
        judged.held[state], judged.together = before, False
    if not found.kept and not found.kept_together:
        return taken, found
    taken = _within_budget(taken, [step for step in path if step not in taken], judged)
    return taken, replace(found, closed_form_in_budget=found.closed_form, tuned_in_budget=judged.held[_state(taken)][1])


def worthwhile(taken: list[Step], judged: _Judged) -> list[Step]:
    """Return `taken` without the layers whose new form does not make the whole model faster.

    Alone it was measured to be; beside others it may need a layout, or bytes, that its neighbours do not have anyway.
    Layers that save least are looked at first, `LOOKED_AT` of them.
    """
    least = sorted(_state(taken), key=lambda item: judged.saving(*item))[:LOOKED_AT]
    for name, _ in least:
        fewer = [step for step in taken if step.name != name]
        if fewer and not judged.is_worthwhile(taken, fewer):
            taken = fewer
    return taken
