"""Fine-tuning: little modules trained under the gate, starting from the closed form.

Algorithm 1 of dual-module inference (Liu et al., ICML 2020): the big module is frozen, the forward
pass is the gated one, and the little module learns by stochastic gradient descent. Three things are
different here. The loss is not the error of the pre-activations but that of the state that the
layer hands on, weighted by what the next layers make of each unit; and gradients run through time,
so that errors which would build up in the state are the ones that shrink. The rows are rounded in the
forward pass as they will be stored, which their gradients pass through. Recurrent sites are trained, since a closed
form cannot see that its own errors come back as inputs, and convolutions, since it cannot see that the nonlinearity
hides part of its errors, and the gate another; of models that run in PyTorch, convolutions are trained together instead
(`tvm_dual.joint_training`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    gate: str = "rows",
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
    gate : str
        Of a convolution: ``rows`` for gates of tiles, ``singles`` for those of outputs.

    Returns
    -------
    SiteFit
        With the same error spreads, so that a bound keeps its meaning.
    """
    import torch

    with training_threads(torch):
        start = _start_tiles if site.conv else _start_cell
        trained, loss = start(torch, site, fit, observed, limits, np.random.default_rng(seed), (isa, gate))
        follow_gradient(torch, trained.parameters, loss, steps, progress or (lambda done, total: None))
        return replace(fit, little=replace(fit.little, module=trained.module()), tuned=True)


@contextmanager
def training_threads(torch) -> Iterator[None]:
    """Let torch use all cores meanwhile, or as many threads as ``OMP_NUM_THREADS`` says, and then what it did before.

    Where other work has a core, the rest of the threads spin until the one on it is done: on two cores, one of them
    taken, a small GRU was fitted and trained for 40 steps in 172 s, and in 8 s on one thread.
    """
    threads, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    cores = available_cores()
    torch.set_num_threads(min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start_cell(torch, site, fit, observed, limits, rng, _gate):
    """Return a recurrent cell and the loss of a step."""
    cell = CELLS[site.kind](torch, site, fit)
    starts = _starts(observed)
    x, *states = (torch.from_numpy(values) for values in observed.inputs)
    weights = _scaled_weights(torch, fit)

    def loss():
        first = torch.from_numpy(rng.choice(starts, min(BATCH, len(starts)), replace=False))
        calls = first[None] + torch.arange(LENGTH)[:, None]
        found = cell.run(x[calls], [state[first] for state in states], limits * rng.choice(LIMITS))
        return (((found - states[0][calls + 1]) * weights) ** 2).mean()

    return cell, loss


def _start_tiles(torch, site, fit, observed, limits, rng, gate):
    """Return a gated convolution and the loss of a step."""
    tiles, weights, (limit,) = GatedTiles(torch, site, fit, observed, *gate), _scaled_weights(torch, fit), limits

    def loss():
        pixels = torch.from_numpy(rng.choice(tiles.pixels, min(PIXELS, tiles.pixels), replace=False))
        return ((tiles.errors(pixels, limit * rng.choice(LIMITS)) * weights) ** 2).mean()

    return tiles, loss


def _scaled_weights(torch, fit: SiteFit):
    """Return what the next layers multiply units by, one in the mean."""
    return torch.from_numpy(fit.weights / np.sqrt((fit.weights**2).mean()))


def follow_gradient(torch, parameters: list, loss: Callable, steps: int, progress: Callable[[int, int], None]) -> None:
    """Follow the gradient of `loss`, with step sizes that rise and fall."""
    rates = [RELATIVE_RATE * float(p.detach().pow(2).mean().sqrt()) for p in parameters]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 10) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        progress(step + 1, steps)


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
