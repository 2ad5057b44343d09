"""Fine-tuning: little modules trained under the gate, starting from the closed form.

Algorithm 1 of dual-module inference (Liu et al., ICML 2020): the big module is frozen, the forward
pass is the gated one, and the little module learns by stochastic gradient descent. Two things are
different here. The loss is not the error of the pre-activations but that of the state that the
layer hands on, weighted by what the next layers make of each unit; and gradients run through time,
so that errors which would build up in the state are the ones that shrink. Only recurrent sites are
trained: a closed form cannot see that its own errors come back as inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedules.cpu import available_cores
from tvm_dual.calibration import Observations
from tvm_dual.fitting import SiteFit
from tvm_dual.sites import Site

#: Sequences per step, and calls per sequence.
BATCH, LENGTH = 48, 48
#: Adam's step size, as a share of the root mean square of what it changes.
RELATIVE_RATE = 0.01
#: Bounds to train under, as multiples of the one that suits the closed form: trained modules need fewer open
#: rows, and the effort may change at run time.
LIMITS = (2.0, 4.0, 8.0)


def finetune(
    site: Site,
    fit: SiteFit,
    observed: Observations,
    limit: float,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> SiteFit:
    """Train the little module of a GRU site.

    Parameters
    ----------
    site : Site
        Of kind ``gru`` with ``linear_before_reset``.
    fit : SiteFit
        The closed form, for the state alone or for input and state.
    observed : Observations
        What the site read in the exact model, with at least one run of two calls.
    limit : float
        Bound of the damage rule to train under; see `LIMITS`.
    steps : int
        Steps of gradient descent.
    progress : callable, optional
        Called with ``(steps done, steps)``.
    seed : int
        Of the choice of sequences.

    Returns
    -------
    SiteFit
        With the same error spreads, so that a bound keeps its meaning.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        return _trained(torch, site, fit, observed, limit, steps, progress or (lambda done, total: None), seed)
    finally:
        torch.set_num_threads(threads)


def _trained(torch, site, fit, observed, limit, steps, progress, seed) -> SiteFit:
    cell = _GatedCell(torch, site, fit)
    starts = _starts(observed)
    x, h = (torch.from_numpy(values) for values in observed.inputs)
    weights = torch.from_numpy(fit.weights / np.sqrt((fit.weights**2).mean()))
    rates = [RELATIVE_RATE * float(p.detach().pow(2).mean().sqrt()) for p in cell.parameters]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(cell.parameters, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 10) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        first = torch.from_numpy(rng.choice(starts, min(BATCH, len(starts)), replace=False))
        calls = first[None] + torch.arange(LENGTH)[:, None]
        found = cell.run(x[calls], h[first], limit * float(rng.choice(LIMITS)))
        loss = (((found - h[calls + 1]) * weights) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step + 1, steps)
    return replace(fit, little=replace(fit.little, module=cell.module()), tuned=True)


def _starts(observed: Observations) -> np.ndarray:
    """Return the calls that `LENGTH` calls and the state after them follow without a gap."""
    ends = [*observed.runs[1:], len(observed.inputs[0])]
    found = [np.arange(start, end - LENGTH) for start, end in zip(observed.runs, ends, strict=True)]
    return np.concatenate(found)


def can_finetune(site: Site, observed: Observations) -> bool:
    """Whether a site can be trained: a GRU that can be gated, and data with runs that are long enough."""
    return site.kind == "gru" and site.can_gate and len(_starts(observed)) > 0


class _GatedCell:
    """A GRU cell with a trainable little module, gated by the damage rule as `schedules.gate` does."""

    def __init__(self, torch, site: Site, fit: SiteFit) -> None:
        little = fit.little.module
        self._torch, self._little, self._h = torch, little, site.hidden
        arrays = (site.weight, site.bias, site.recurrence, site.recurrent_bias, fit.spread, little.center)
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        self._weight, self._bias, self._recurrence, self._recurrent_bias, self._spread, self._center = tensors
        self._projections = [torch.tensor(p, requires_grad=True) for p in little.projections]
        self._rows, self._offset = (torch.tensor(a, requires_grad=True) for a in (little.weight, little.bias))
        self.parameters = [*self._projections, self._rows, self._offset]

    def module(self):
        """Return the little module as it is now."""
        projections = tuple(p.detach().numpy() for p in self._projections)
        return replace(
            self._little,
            projections=projections,
            weight=self._rows.detach().numpy(),
            bias=self._offset.detach().numpy(),
        )

    def run(self, x, h, limit: float):
        """Return the states after each of the inputs ``x (calls, batch, k)``, from the state ``h (batch, h)``."""
        torch, linear = self._torch, self._torch.nn.functional.linear
        given = linear(x, self._weight, self._bias)
        *of_input, of_state = self._projections
        projected = linear(x, of_input[0]) - self._center if of_input else -self._center.expand(len(x), 1, -1)
        states = []
        for given_now, projected_now in zip(given, projected, strict=True):
            predicted = linear(projected_now + linear(h, of_state), self._rows, self._offset)
            if not of_input:
                predicted = self._both(given_now, predicted)
            # What open rows hand back to the state before is left out: they are few, and it is a fifth of the time.
            with torch.no_grad():
                exact = self._both(given_now, linear(h, self._recurrence, self._recurrent_bias))
                open_ = self._open(predicted, exact, h, limit)
            z, r, candidate, state = torch.where(open_, exact, predicted).split(self._h, dim=1)
            n = torch.tanh(candidate + torch.sigmoid(r) * state)
            h = n + torch.sigmoid(z) * (h - n)
            states.append(h)
        return torch.stack(states)

    def _both(self, given, hidden):
        """Return ``(z, r, candidate's input half, its state half)`` from the two products."""
        n = self._h
        return self._torch.cat([given[:, : 2 * n] + hidden[:, : 2 * n], given[:, 2 * n :], hidden[:, 2 * n :]], dim=1)

    def _open(self, predicted, exact, h, limit: float):
        """Return which of the values of `_both` the gate opens: the update gate decides first."""
        torch, n = self._torch, self._h
        spread_z, spread_r, spread_n = self._spread.split(n)
        z, r, candidate, state = predicted.split(n, dim=1)
        r = torch.sigmoid(r)
        new = torch.tanh(candidate + r * state)
        kept = torch.sigmoid(z)
        open_z = kept * (1 - kept) * (h - new).abs() * spread_z > limit
        kept = torch.sigmoid(torch.where(open_z, exact[:, :n], z))
        slope = (1 - kept) * (1 - new * new)
        open_r = slope * r * (1 - r) * state.abs() * spread_r > limit
        open_n = slope * spread_n > limit
        return torch.cat([open_z, open_r, open_n, open_n], dim=1)
