"""Recurrent layers in the forms that PyTorch can run them in, from the weights of an ONNX node."""

from __future__ import annotations

import torch
from torch import nn

# ONNX stacks the gates of a GRU as z, r, h and of an LSTM as i, o, f, c; torch as r, z, n and i, f, g, o.
_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
KINDS = tuple(_GATES)


class CellLayer(nn.Module):
    """``nn.GRUCell`` or ``nn.LSTMCell``: one step, float32 (1, features) and states (1, hidden) to the same."""

    def __init__(self, kind: str, arrays: list[torch.Tensor]) -> None:
        """Take the W (1, gates * hidden, features), R and B of an ONNX layer."""
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = _reordered(kind, arrays)
        self.kind, self.states = kind, 2 if kind == "LSTM" else 1
        self.cell = (nn.LSTMCell if kind == "LSTM" else nn.GRUCell)(w_ih.shape[1], w_hh.shape[1])
        self.cell.weight_ih.data, self.cell.weight_hh.data = w_ih, w_hh
        self.cell.bias_ih.data, self.cell.bias_hh.data = b_ih, b_hh

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the output and the states after it."""
        after = self.cell(x, states) if self.kind == "LSTM" else (self.cell(x, states[0]),)
        return (after[0], *after)


class PairedLayer(nn.Module):
    """A layer made of two linear layers: float32 (steps, features) and states (1, hidden) to the same.

    The input's half is one product for all steps. Tracing unrolls the rest.
    """

    def __init__(self, kind: str, arrays: list[torch.Tensor]) -> None:
        """Take the W, R and B of an ONNX layer."""
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = _reordered(kind, arrays)
        self.kind, self.states, self.hidden = kind, 2 if kind == "LSTM" else 1, w_hh.shape[1]
        self.input, self.recurrent = linear(w_ih, b_ih), linear(w_hh, b_hh)

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs and the states after them."""
        step, found = self._lstm if self.kind == "LSTM" else self._gru, []
        for given in self.input(x).split(1):
            states = step(given, self.recurrent(states[0]), *states)
            found.append(states[0])
        return (found[0] if len(found) == 1 else torch.cat(found), *states)

    def _gru(self, a: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = self.hidden
        gates = torch.sigmoid(a[:, : 2 * n] + b[:, : 2 * n])
        new = torch.tanh(torch.addcmul(a[:, 2 * n :], gates[:, :n], b[:, 2 * n :]))
        return (torch.lerp(new, h, gates[:, n:]),)

    def _lstm(self, a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i, f, g, o = (a + b).split(self.hidden, dim=1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Return a linear layer with the given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.contiguous(), bias.clone()
    return layer


def _reordered(kind: str, arrays: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return W, R and the two biases with their gates in torch's order."""
    w, r = arrays[0][0], arrays[1][0]
    b = arrays[2][0] if arrays[2] is not None else torch.zeros(2 * len(w))
    found = []
    for array in (w, r, b[: len(w)], b[len(w) :]):
        blocks = array.split(r.shape[1])
        found.append(torch.cat([blocks[gate] for gate in _GATES[kind]]).contiguous())
    return found
