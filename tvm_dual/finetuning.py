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
from tvm_dual.fitting import SiteFit
from tvm_dual.gated_cells import CELLS
from tvm_dual.observations import Observations
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
    """Train the little module of a recurrent site.

    Parameters
    ----------
    site : Site
        A GRU with ``linear_before_reset``, or an LSTM.
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
    cell = CELLS[site.kind](torch, site, fit)
    starts = _starts(observed)
    x, *states = (torch.from_numpy(values) for values in observed.inputs)
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
        found = cell.run(x[calls], [state[first] for state in states], limit * float(rng.choice(LIMITS)))
        loss = (((found - states[0][calls + 1]) * weights) ** 2).mean()
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
    """Whether a site can be trained: a recurrent one that can be gated, and data with runs that are long enough."""
    return site.kind in CELLS and site.can_gate and len(_starts(observed)) > 0
