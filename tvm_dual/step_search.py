"""How many steps the quality budget allows, and which of them are worth taking in the whole model.

Steps come in the order of `tvm_dual.site_choices`; each list of them that is judged is compiled, its little modules
fitted, and with fine-tuning trained.
"""

from __future__ import annotations

from dataclasses import replace

from tvm_dual.forms import Forms, little_alone
from tvm_dual.gates import FAR
from tvm_dual.measure import median_microseconds
from tvm_dual.model import Model
from tvm_dual.plan import FineTuning, Trial
from tvm_dual.quality import Quality
from tvm_dual.search import try_limit
from tvm_dual.site_choices import Choice, Step
from tvm_dual.site_costs import SiteCosts
from tvm_dual.variants import Fits, Variant

#: Layers at most whose new form is taken back if the whole model is no slower without it.
LOOKED_AT = 6


class Judged:
    """Judges lists of steps, each list once."""

    def __init__(
        self, model: Model, quality: Quality, costs: dict[str, SiteCosts], rule: str, progress, expected: int
    ) -> None:
        self._model, self._quality, self._costs, self._rule, self._progress = model, quality, costs, rule, progress
        self._expected = expected + model.options.search_steps + min(LOOKED_AT, len(costs))
        self.trials: list[Trial] = []
        #: What the budget allowed, by the layers' last steps.
        self.held: dict[tuple, tuple[Variant, Trial, Fits]] = {}
        #: Whether little modules are trained.
        self.tuned = False

    @property
    def finetune_steps(self) -> int:
        """Steps of gradient descent of each little module."""
        return self._model.options.finetune_steps

    @property
    def search_steps(self) -> int:
        """How many single steps are tried in the end."""
        return self._model.options.search_steps

    def accepts(self, trial: Trial) -> bool:
        """Whether the quality budget allows what became of the model."""
        return self._quality.accepts(trial.quality)

    def holds(self, taken: list[Step]) -> bool:
        """Whether the quality budget allows these steps together."""
        return self.accepts(self.judge(taken))

    def is_worthwhile(self, taken: list[Step], fewer: list[Step]) -> bool:
        """Whether the steps `taken`, which hold, make the model faster than `fewer` of them, or these do not hold."""
        variant, _, fits = self.held[state_of(taken)]
        # Little modules take as long whatever they were trained to: so these are not trained and judged before.
        other = fits.variant(self._forms(fewer), self._rule)
        other.set_limit({name: choice.limit for name, choice in state_of(fewer)})
        time, time_of_fewer = median_microseconds([variant.library, other.library], self._model.longest)
        return time < time_of_fewer or not self.holds(fewer)

    def saving(self, name: str, choice: Choice) -> float:
        """Return what a layer's form saves by itself, in microseconds or multiply-adds."""
        return self._costs[name].exact - choice.cost

    def _forms(self, taken: list[Step]) -> Forms:
        forms = {name: found.form for name, found in self._costs.items()}
        for name, choice in state_of(taken):
            forms[name] = little_alone(choice.form) if choice.limit == FAR else choice.form
        return forms

    def judge(self, taken: list[Step]) -> Trial:
        """Return what becomes of the model."""
        self._progress("bounds by layer", len(self.trials), max(self._expected, len(self.trials) + 1))
        state, forms = dict(state_of(taken)), self._forms(taken)
        sized = self._model.sized({name: choice.size for name, choice in state.items()})
        fits, limits = Fits(sized), {name: choice.limit for name, choice in state.items()}
        if self.tuned:
            fits.finetune(forms, limits, self._progress)
        fits.refit(forms, self._rule, limits)
        variant = fits.variant(forms, self._rule)
        trial = try_limit(sized, self._quality, variant, limits)
        self.trials.append(trial)
        if self.accepts(trial):
            self.held[state_of(taken)] = (variant, trial, fits)
        return trial


def state_of(taken: list[Step]) -> tuple[tuple[str, Choice], ...]:
    """Return the last form of each layer."""
    return tuple(sorted({step.name: step.choice for step in taken}.items(), key=lambda item: item[0]))


def within_budget(taken: list[Step], path: list[Step], judged: Judged) -> list[Step]:
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


def tuned(taken: list[Step], path: list[Step], judged: Judged) -> tuple[list[Step], FineTuning]:
    """Go on with trained little modules, if these judge better or go further; return the steps that the budget allows.

    How they judge at few steps is mostly chance: what is lost there is next to nothing, trained or not.
    """
    before, further = judged.held[state_of(taken)], taken
    judged.tuned = True
    trained = judged.judge(taken)
    if judged.accepts(trained):
        further = within_budget(taken, [step for step in path if step not in taken], judged)
    found = FineTuning(judged.finetune_steps, before[1], trained)
    if further == taken and not found.kept:
        judged.held[state_of(taken)], judged.tuned = before, False
        return taken, found
    in_budget = judged.held[state_of(further)][1]
    return further, replace(found, closed_form_in_budget=found.closed_form, tuned_in_budget=in_budget)


def worthwhile(taken: list[Step], judged: Judged) -> list[Step]:
    """Return `taken` without the layers whose new form does not make the whole model faster.

    Alone it was measured to be; beside others it may need a layout, or bytes, that its neighbours do not have anyway.
    Layers that save least are looked at first, `LOOKED_AT` of them.
    """
    least = sorted(state_of(taken), key=lambda item: judged.saving(*item))[:LOOKED_AT]
    for name, _ in least:
        fewer = [step for step in taken if step.name != name]
        if fewer and not judged.is_worthwhile(taken, fewer):
            taken = fewer
    return taken
