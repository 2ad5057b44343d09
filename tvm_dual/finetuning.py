"""Fine-tuning: little modules trained under the gate, starting from the closed form.

Algorithm 1 of dual-module inference (Liu et al., ICML 2020): the big module is frozen, the forward
pass is the gated one, and the little module learns by stochastic gradient descent. Three things are
different here. The loss is not the error of the pre-activations but that of the state that the
layer hands on, weighted by what the next layers make of each unit; and gradients run through time,
so that errors which would build up in the state are the ones that shrink. The rows are rounded in the
forward pass as they will be stored, which their gradients pass through. Only recurrent sites are
trained: a closed form cannot see that its own errors come back as inputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from schedules.cpu import available_cores
from tvm_dual.errors import DataError, PlanError, SetupError
from tvm_dual.fitting import SiteFit
from tvm_dual.gated_cells import CELLS
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

#: Sequences per step, and calls per sequence.
BATCH, LENGTH = 48, 48
#: Adam's step size, as a share of the root mean square of what it changes.
RELATIVE_RATE = 0.01
#: Bounds to train under, as multiples of the one that is expected: it is not known yet, and the effort may
#: change at run time.
LIMITS = (0.5, 1.0, 2.0)


def finetune(
    site: Site,
    fit: SiteFit,
    observed: Observations,
    limits: np.ndarray,
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
    limits : ndarray, (gates,)
        Bounds of the damage rule to train around; see `LIMITS`.
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
        return _trained(torch, site, fit, observed, limits, steps, progress or (lambda done, total: None), seed)
    finally:
        torch.set_num_threads(threads)


def _trained(torch, site, fit, observed, limits, steps, progress, seed) -> SiteFit:
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
        found = cell.run(x[calls], [state[first] for state in states], limits * rng.choice(LIMITS))
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
    return _has_cell(site) and len(_starts(observed)) > 0


def check_torch() -> None:
    """Raise a SetupError if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise SetupError("fine-tuning: torch is not installed; accepted: torch beside this package, or no fine-tuning")


def check_trainable(sites: Mapping[str, Site], observations: Mapping[str, Observations]) -> None:
    """Check that there is something to train and something to train on.

    Raises
    ------
    PlanError
        If none of the sites can be trained.
    DataError
        If all runs of consecutive calls are too short.
    """
    trainable = [name for name, site in sites.items() if _has_cell(site)]
    if not trainable:
        raise PlanError(
            f"fine-tuning: found the layers {', '.join(sites) or 'none'}, none of which can be trained; accepted: a "
            "model with an LSTM that may be gated, or a GRU that resets after its product. Build without fine-tuning"
        )
    if not any(can_finetune(sites[name], observations[name]) for name in trainable):
        longest = max(int(np.diff([*seen.runs, len(seen.inputs[0])]).max()) for seen in observations.values())
        raise DataError(
            f"fine-tuning: the longest run of consecutive calls in the calibration data is {longest}; accepted: at "
            f"least {LENGTH + 1}. Calibrate on longer streams, or build without fine-tuning"
        )


def _has_cell(site: Site) -> bool:
    return site.kind in CELLS and site.can_gate
