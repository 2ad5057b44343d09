"""Recurrent cells under the gate, in PyTorch: what fine-tuning runs, step for step what the kernels compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from relay_passes.products import LittleModule
from schedules.quantize import stored_rows
from tvm_dual.fitting import SiteFit
from tvm_dual.sites import Site


class GatedCell(ABC):
    """A cell whose big module is frozen, whose little module can be trained, gated by the damage rule.

    Attributes
    ----------
    parameters : list of torch.Tensor
        Of the little module: projections, rows, biases.
    """

    def __init__(self, torch, site: Site, fit: SiteFit) -> None:
        """Take the weights of `site`, and those of its closed form to start from."""
        little = fit.little.module
        self._torch, self._little, self._h = torch, little, site.hidden
        arrays = (site.weight, site.bias, site.recurrence, site.recurrent_bias, fit.spread, little.center)
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        self._weight, self._bias, self._recurrence, self._recurrent_bias, self._spread, self._center = tensors
        self._projections = [torch.tensor(p, requires_grad=True) for p in little.projections]
        self._rows, self._offset = (torch.tensor(a, requires_grad=True) for a in (little.weight, little.bias))
        self.parameters = [*self._projections, self._rows, self._offset]

    def module(self) -> LittleModule:
        """Return the little module as it is now."""
        projections = tuple(p.detach().numpy() for p in self._projections)
        return replace(
            self._little,
            projections=projections,
            weight=self._rows.detach().numpy(),
            bias=self._offset.detach().numpy(),
        )

    def run(self, x, states: list, limits: Sequence[float]):
        """Return the states h after each step.

        Parameters
        ----------
        x : torch.Tensor, float32, (steps, batch, k)
        states : list of torch.Tensor, float32, (batch, h)
            Before the first step: h, and c of an LSTM.
        limits : sequence of float
            Bound of the damage rule, for each gate.
        """
        torch, linear = self._torch, self._torch.nn.functional.linear
        given = linear(x, self._weight, self._bias)
        *of_input, of_state = self._projections
        rows = self._stored_rows()
        projected = linear(x, of_input[0]) - self._center if of_input else -self._center.expand(len(x), 1, -1)
        found = []
        for given_now, projected_now in zip(given, projected, strict=True):
            h = states[0]
            predicted = linear(projected_now + linear(h, of_state), rows, self._offset)
            if not of_input:
                predicted = self._join(given_now, predicted)
            # What open rows hand back to the state before is left out: they are few, and it is a fifth of the time.
            with torch.no_grad():
                exact = self._join(given_now, linear(h, self._recurrence, self._recurrent_bias))
                open_ = self._open(predicted, exact, states, limits)
            states = self._update(torch.where(open_, exact, predicted), states)
            found.append(states[0])
        return torch.stack(found)

    def _stored_rows(self):
        """Return the rows at the precision that they will be stored with; gradients pass through the rounding."""
        stored = self._torch.from_numpy(stored_rows(self._rows.detach().numpy(), self._little.bits))
        return self._rows + (stored - self._rows).detach()

    @abstractmethod
    def _join(self, given, hidden):
        """Return the pre-activations that the little module predicts, from the two exact products."""

    @abstractmethod
    def _open(self, predicted, exact, states: list, limits: Sequence[float]):
        """Return which of the values of `_join` the gate opens."""

    @abstractmethod
    def _update(self, values, states: list) -> list:
        """Return the states after a step with the pre-activations `values`."""


class GatedGru(GatedCell):
    """The GRU of `schedules.gate`; pre-activations are ``(z, r, candidate's input half, its state half)``."""

    def _join(self, given, hidden):
        n = self._h
        return self._torch.cat([given[:, : 2 * n] + hidden[:, : 2 * n], given[:, 2 * n :], hidden[:, 2 * n :]], dim=1)

    def _open(self, predicted, exact, states, limits):
        """The update gate decides first."""
        torch, n, (h,) = self._torch, self._h, states
        limit_z, limit_r, limit_n = limits
        spread_z, spread_r, spread_n = self._spread.split(n)
        z, r, candidate, state = predicted.split(n, dim=1)
        r = torch.sigmoid(r)
        new = torch.tanh(candidate + r * state)
        kept = torch.sigmoid(z)
        open_z = kept * (1 - kept) * (h - new).abs() * spread_z > limit_z
        kept = torch.sigmoid(torch.where(open_z, exact[:, :n], z))
        slope = (1 - kept) * (1 - new * new)
        open_r = slope * r * (1 - r) * state.abs() * spread_r > limit_r
        open_n = slope * spread_n > limit_n
        return torch.cat([open_z, open_r, open_n, open_n], dim=1)

    def _update(self, values, states):
        torch, (h,) = self._torch, states
        z, r, candidate, state = values.split(self._h, dim=1)
        n = torch.tanh(candidate + torch.sigmoid(r) * state)
        return [n + torch.sigmoid(z) * (h - n)]


class GatedLstm(GatedCell):
    """The LSTM of `schedules.lstm_gate`; pre-activations are those of i, o, f and g."""

    def _join(self, given, hidden):
        return given + hidden

    def _gates(self, values) -> list:
        torch = self._torch
        i, o, f, g = values.split(self._h, dim=1)
        return [torch.sigmoid(i), torch.sigmoid(o), torch.sigmoid(f), torch.tanh(g)]

    def _open(self, predicted, exact, states, limits):
        torch, (_, c) = self._torch, states
        i, o, f, g = self._gates(predicted)
        shown = torch.tanh(f * c + i * g)
        through = o * (1 - shown * shown)
        slopes = [
            through * i * (1 - i) * g.abs(),
            o * (1 - o) * shown.abs(),
            through * f * (1 - f) * c.abs(),
            through * i * (1 - g * g),
        ]
        spreads = self._spread.split(self._h)
        return torch.cat([s * spread > limit for s, spread, limit in zip(slopes, spreads, limits, strict=True)], dim=1)

    def _update(self, values, states):
        i, o, f, g = self._gates(values)
        c = f * states[1] + i * g
        return [o * self._torch.tanh(c), c]


#: Cells by kind of site.
CELLS = {"gru": GatedGru, "lstm": GatedLstm}
