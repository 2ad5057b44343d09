"""Convolutions under the gate, in PyTorch: what fine-tuning runs, pixel by pixel what the kernels compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relay_passes.products import LittleModule
from schedules.cpu import Isa
from tvm_dual.fitting import SiteFit
from tvm_dual.observations import Observations
from tvm_dual.sites import Site
from tvm_dual.torch_gates import ConvGate
from tvm_dual.torch_model import activated


class GatedTiles:
    """A convolution whose big module is frozen, whose little module can be trained, gated by the damage rule.

    Attributes
    ----------
    parameters : list of torch.Tensor
        Of the little module: projection, rows, bias.
    """

    def __init__(self, torch, site: Site, fit: SiteFit, observed: Observations, isa: Isa, gate: str = "rows") -> None:
        """Take the weights of `site`, what it read, and its closed form to start from; `gate` as in `closed_loss`."""
        self._torch, self._activation, self._little = torch, site.activation, fit.little.module
        (x,) = observed.inputs
        added = np.zeros((len(x), 1), "float32") if observed.residual is None else observed.residual
        self._x, self._added = torch.from_numpy(x), torch.from_numpy(added)
        self._exact = torch.from_numpy(x @ site.weight.T + site.bias + added)
        self._center = torch.from_numpy(self._little.center)
        self._gate = ConvGate(torch, site, fit, isa, gate)
        arrays = (*self._little.projections, self._little.weight, self._little.bias)
        self.parameters = [torch.tensor(array, requires_grad=True) for array in arrays]

    @property
    def pixels(self) -> int:
        """Number of observed pixels."""
        return len(self._x)

    def module(self) -> LittleModule:
        """Return the little module as it is now."""
        projection, rows, bias = (parameter.detach().numpy() for parameter in self.parameters)
        return replace(self._little, projections=(projection,), weight=rows, bias=bias)

    def errors(self, pixels, limit: float):
        """Return what the layer is off by behind the gate.

        Parameters
        ----------
        pixels : torch.Tensor, int64, (n,)
            Which of the observed ones.
        limit : float
            Bound of the damage rule.

        Returns
        -------
        torch.Tensor, float32, (n, channels)
        """
        torch, linear = self._torch, self._torch.nn.functional.linear
        projection, rows, bias = self.parameters
        exact, added = self._exact[pixels], self._added[pixels]
        rough = linear(linear(self._x[pixels], projection) - self._center, rows, bias) + added
        opened = self._gate.opened(rough.detach(), limit)
        return self._after(torch.where(opened, exact, rough)) - self._after(exact)

    def _after(self, sums):
        return activated(self._torch, self._activation, sums)
