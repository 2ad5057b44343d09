"""Joint fine-tuning: little modules of several layers trained together, inside of the whole model.

Layer by layer (`tvm_dual.finetuning`) each little module learns what its own layer gives, from what the exact model
reads there. In the whole model it reads what other little modules give, and most of what a layer is off by does not
reach the outputs. So here the model is run with all little modules in place, behind their gates, and what is followed
down is the error of its outputs on the calibration data, labels not needed (the outputs of the exact model are the
targets: Hinton et al., 2015; of squared error: Ba and Caruana, 2014). The big modules are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from tvm import IRModule

from schedules.cpu import Isa
from tvm_dual.calibration import InputStream
from tvm_dual.cost import all_operations
from tvm_dual.finetuning import LIMITS, follow_gradient, training_threads
from tvm_dual.fitting import SiteFit
from tvm_dual.gates import FAR
from tvm_dual.sites import Site
from tvm_dual.torch_gates import ConvGate
from tvm_dual.torch_model import TorchModel, convolved

#: Calls that are run at once at most, and multiply-adds of them that the exact model would take.
CALLS, OPERATIONS = 64, 4e9


@dataclass(frozen=True, eq=False)
class Start:
    """A convolution's little module before training, and its gate.

    Attributes
    ----------
    fit : SiteFit
        Of float32 and of a projection.
    limit : float
        Bound of the damage rule; `tvm_dual.gates.FAR` without a gate.
    gate : str
        ``rows`` for gates of tiles, ``singles`` for those of outputs.
    """

    fit: SiteFit
    limit: float = FAR
    gate: str = "rows"


def train_together(
    module: IRModule,
    sites: Mapping[str, Site],
    starts: Mapping[str, Start],
    streams: tuple[InputStream, ...],
    isa: Isa,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> dict[str, SiteFit]:
    """Train the little modules of a model's convolutions.

    Parameters
    ----------
    module : IRModule
        The marked model; `tvm_dual.torch_model.translatable`.
    sites : mapping of str to Site
    starts : mapping of str to Start
        By site.
    streams : tuple of InputStream
        Inputs to train on.
    isa : Isa
        Level that gates are generated for.
    steps : int
        Steps of gradient descent.
    progress : callable, optional
        Called with ``(steps done, steps)``.
    seed : int
        Of the choice of calls.

    Returns
    -------
    dict of SiteFit
        By the sites in `starts`.
    """
    import torch

    with training_threads(torch):
        model, random = TorchModel(torch, module), np.random.default_rng(seed)
        by_input = zip(*(stream.arrays for stream in streams), strict=True)
        inputs = [torch.from_numpy(np.concatenate(arrays)) for arrays in by_input]
        calls = len(inputs[0])
        batch = max(1, min(CALLS, calls, int(OPERATIONS / sum(map(all_operations, sites.values())))))
        wanted = _exact(torch, model, inputs, batch)
        scale = [1 / (y - y.mean(0)).square().mean().clamp_min(1e-30) for y in wanted]
        littles = {name: _Little(torch, model, sites[name], start, isa) for name, start in starts.items()}

        def loss():
            some, times = torch.from_numpy(random.choice(calls, batch, replace=False)), random.choice(LIMITS)
            for little in littles.values():
                little.times = times
            found = model.run([x[some] for x in inputs], littles)
            return sum((s * (y - w[some]).square()).mean() for y, w, s in zip(found, wanted, scale, strict=True))

        parameters = [parameter for little in littles.values() for parameter in little.parameters]
        follow_gradient(torch, parameters, loss, steps, progress or (lambda done, total: None))
        return {name: littles[name].fit() for name in starts}


def _exact(torch, model: TorchModel, inputs: list, batch: int) -> list:
    """Return the exact model's outputs, ``(calls, ...)``, of so many calls at once."""
    with torch.no_grad():
        parts = [model.run(some) for some in zip(*(x.split(batch) for x in inputs), strict=True)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


class _Little:
    """A convolution's little module behind its gate; called as `tvm_dual.torch_model.Sums`.

    Attributes
    ----------
    parameters : list of torch.Tensor
        Projection, rows, bias.
    times : float
        What the bound is multiplied by.
    """

    def __init__(self, torch, model: TorchModel, site: Site, start: Start, isa: Isa) -> None:
        little = start.fit.little.module
        self._torch, self._start, self._conv = torch, start, model.convs[site.name]
        self._center, self.times = torch.from_numpy(little.center), 1.0
        arrays = (*little.projections, little.weight, little.bias)
        self.parameters = [torch.tensor(array, requires_grad=True) for array in arrays]
        self._gate = None if start.limit == FAR else ConvGate(torch, site, start.fit, isa, start.gate)

    def __call__(self, images, added, exact):
        torch, (projection, rows, bias) = self._torch, self.parameters
        kernels = projection.reshape(len(projection), *self._conv.weight.shape[1:])
        few = convolved(torch, self._conv, images, kernels) - self._center
        rough = torch.nn.functional.linear(few, rows, bias)
        rough = rough if added is None else rough + added
        if self._gate is None:
            return rough
        return torch.where(self._gate.opened(rough.detach(), self._start.limit * self.times), exact(), rough)

    def fit(self) -> SiteFit:
        """Return the little module as it is now."""
        projection, rows, bias = (parameter.detach().numpy() for parameter in self.parameters)
        little = self._start.fit.little
        module = replace(little.module, projections=(projection,), weight=rows, bias=bias)
        return replace(self._start.fit, little=replace(little, module=module), tuned=True)
