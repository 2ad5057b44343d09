"""Fine-tuning: little modules trained under the gate, starting from the closed form.

Algorithm 1 of dual-module inference (Liu et al., ICML 2020): the big module is frozen, the forward
pass is the gated one, and the little module learns by stochastic gradient descent. Three things are
different here. The loss is not the error of the pre-activations but that of the state that the
layer hands on, weighted by what the next layers make of each unit; and gradients run through time,
so that errors which would build up in the state are the ones that shrink. The rows are rounded in the
forward pass as they will be stored, which their gradients pass through. Recurrent sites are trained, since a closed
form cannot see that its own errors come back as inputs, and convolutions, since it cannot see that the nonlinearity
hides part of its errors, and the gate another.

A part of the data is held back. Now and then the loss on it is looked at, and the modules of the step where that was
least are the result: of few data too many steps make modules worse than those that training starts from.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from schedules.cpu import Isa, available_cores
from tvm_dual.errors import DataError, PlanError, SetupError
from tvm_dual.fitting import SiteFit
from tvm_dual.gated_cells import CELLS
from tvm_dual.gated_tiles import GatedTiles
from tvm_dual.observations import Observations
from tvm_dual.sites import Site

#: Sequences per step, and calls per sequence.
BATCH, LENGTH = 48, 48
#: Pixels of a convolution per step.
PIXELS = 1024
#: Of the data, one part in how many is held back, and how often the loss on it is looked at.
HELD_BACK, LOOKS = 8, 20
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
    isa: Isa | None = None,
) -> SiteFit:
    """Train the little module of a site.

    Parameters
    ----------
    site : Site
        A GRU with ``linear_before_reset``, an LSTM, or a convolution.
    fit : SiteFit
        The closed form, for the state alone or for input and state.
    observed : Observations
        What the site read in the exact model; of a recurrent one with at least one run that is long enough.
    limits : ndarray, (gates,)
        Bounds of the damage rule to train around; see `LIMITS`. A convolution has one gate.
    steps : int
        Steps of gradient descent.
    progress : callable, optional
        Called with ``(steps done, steps)``.
    seed : int
        Of the choice of sequences or pixels.
    isa : Isa, optional
        Level that a convolution's gate is generated for.

    Returns
    -------
    SiteFit
        With the same error spreads, so that a bound keeps its meaning.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        start = _start_tiles if site.conv else _start_cell
        trained, loss, held_loss = start(torch, site, fit, observed, limits, np.random.default_rng(seed), isa)
        _train(torch, trained.parameters, loss, held_loss, steps, progress or (lambda done, total: None))
        return replace(fit, little=replace(fit.little, module=trained.module()), tuned=True)
    finally:
        torch.set_num_threads(threads)


def _start_cell(torch, site, fit, observed, limits, rng, _isa):
    """Return a recurrent cell, the loss of a step, and that on what is held back."""
    cell = CELLS[site.kind](torch, site, fit)
    starts, held = _parted(_starts(observed), LENGTH)
    x, *states = (torch.from_numpy(values) for values in observed.inputs)
    weights = _scaled_weights(torch, fit)

    def error(some, limits):
        first = torch.from_numpy(some)
        calls = first[None] + torch.arange(LENGTH)[:, None]
        found = cell.run(x[calls], [state[first] for state in states], limits)
        return (((found - states[0][calls + 1]) * weights) ** 2).mean()

    def loss():
        return error(rng.choice(starts, min(BATCH, len(starts)), replace=False), limits * rng.choice(LIMITS))

    return cell, loss, lambda: error(_spread_out(held, BATCH), limits)


def _start_tiles(torch, site, fit, observed, limits, rng, isa):
    """Return a gated convolution, the loss of a step, and that on what is held back."""
    tiles, weights, (limit,) = GatedTiles(torch, site, fit, observed, isa), _scaled_weights(torch, fit), limits
    pixels, held = _parted(np.arange(tiles.pixels), 0)

    def error(some, limit):
        return ((tiles.errors(torch.from_numpy(some), limit) * weights) ** 2).mean()

    def loss():
        return error(rng.choice(pixels, min(PIXELS, len(pixels)), replace=False), limit * rng.choice(LIMITS))

    return tiles, loss, lambda: error(_spread_out(held, HELD_BACK * PIXELS), limit)


def _parted(items: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Return items to train on and those held back, the last ones; too few for both are used for both.

    An item reaches `reach` further: of the first ones those are left out that would reach the others.
    """
    held = items[-max(1, len(items) // HELD_BACK) :]
    trained = items[items + reach < held[0]]
    return (trained, held) if len(trained) else (items, items)


def _spread_out(items: np.ndarray, count: int) -> np.ndarray:
    """Return `count` items at most, from all over an array."""
    return items[np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def _scaled_weights(torch, fit: SiteFit):
    """Return what the next layers multiply units by, one in the mean."""
    return torch.from_numpy(fit.weights / np.sqrt((fit.weights**2).mean()))


def _train(
    torch, parameters: list, loss: Callable, held_loss: Callable, steps: int, progress: Callable[[int, int], None]
) -> None:
    """Follow the gradient of `loss`, with step sizes that rise and fall, to where `held_loss` is least."""

    def looked() -> tuple[float, list]:
        with torch.no_grad():
            return float(held_loss()), [p.detach().clone() for p in parameters]

    rates = [RELATIVE_RATE * float(p.detach().pow(2).mean().sqrt()) for p in parameters]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    best, looks = looked(), {steps * (look + 1) // LOOKS for look in range(LOOKS)}
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 10) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        if step + 1 in looks:
            best = min(best, looked(), key=lambda each: each[0])
        progress(step + 1, steps)
    with torch.no_grad():
        for parameter, value in zip(parameters, best[1], strict=True):
            parameter.copy_(value)


def _starts(observed: Observations) -> np.ndarray:
    """Return the calls that `LENGTH` calls and the state after them follow without a gap."""
    ends = [*observed.runs[1:], len(observed.inputs[0])]
    found = [np.arange(start, end - LENGTH) for start, end in zip(observed.runs, ends, strict=True)]
    return np.concatenate(found)


def can_finetune(site: Site, observed: Observations) -> bool:
    """Whether a site can be trained: a convolution, or a recurrent layer and data with runs that are long enough."""
    return site.can_gate and (site.conv is not None or (_has_cell(site) and len(_starts(observed)) > 0))


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
    trainable = [name for name, site in sites.items() if _has_cell(site) or (site.conv and site.can_gate)]
    if not trainable:
        raise PlanError(
            f"fine-tuning: found the layers {', '.join(sites) or 'none'}, none of which can be trained; accepted: a "
            "model with an LSTM or a convolution that may be gated, or a GRU that resets after its product. Build "
            "without fine-tuning"
        )
    if not any(can_finetune(sites[name], observations[name]) for name in trainable):
        longest = max(int(np.diff([*seen.runs, len(seen.inputs[0])]).max()) for seen in observations.values())
        raise DataError(
            f"fine-tuning: the longest run of consecutive calls in the calibration data is {longest}; accepted: at "
            f"least {LENGTH + 1}. Calibrate on longer streams, or build without fine-tuning"
        )


def _has_cell(site: Site) -> bool:
    return site.kind in CELLS and site.can_gate
