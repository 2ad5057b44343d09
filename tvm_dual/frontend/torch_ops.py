"""Recurrent layers of PyTorch as operators that stay whole.

``torch.export`` evaluates ``aten.lstm`` and ``aten.gru`` by unrolling them over time, which takes
minutes for long sequences and fixes their length. While a program is traced, the same calls go to
operators of our own, of which only the results' shapes are known.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tvm_dual.errors import ModelError

ACCEPTED = "LSTM and GRU, and cells of any kind in loops"
PACKED = (
    "packed sequences are not supported; accepted: plain tensors of one length. "
    "Call the layer without pack_padded_sequence, one length at a time"
)


@lru_cache(maxsize=1)
def whole_operators() -> dict:
    """Return the operators that stand for ``aten.lstm.input`` and ``aten.gru.input``, by these.

    Arguments and results are the same. They are registered with PyTorch when first asked for.
    """

    @torch.library.custom_op("tvm_dual::lstm", mutates_args=())
    def lstm(
        input: Tensor,
        hx: list[Tensor],
        params: list[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.lstm.input(
            input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
        )

    @torch.library.custom_op("tvm_dual::gru", mutates_args=())
    def gru(
        input: Tensor,
        hx: Tensor,
        params: list[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.gru.input(
            input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
        )

    @lstm.register_fake
    def _(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        shape = (*input.shape[:2], hx[0].shape[-1] * (1 + bidirectional))
        return input.new_empty(shape), torch.empty_like(hx[0]), torch.empty_like(hx[1])

    @gru.register_fake
    def _(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        return input.new_empty((*input.shape[:2], hx.shape[-1] * (1 + bidirectional))), torch.empty_like(hx)

    return {
        torch.ops.aten.lstm.input: torch.ops.tvm_dual.lstm.default,
        torch.ops.aten.gru.input: torch.ops.tvm_dual.gru.default,
    }


class KeepRecurrent(TorchFunctionMode):
    """While active, calls of recurrent layers go to `whole_operators`."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        """Redirect one call."""
        if function is torch._VF._pack_padded_sequence:
            raise ModelError(f"model: {PACKED}")
        if function in (torch.rnn_tanh, torch.rnn_relu):
            raise ModelError(f"model: calls torch.{function.__name__}; accepted recurrent layers: {ACCEPTED}")
        if function is torch.lstm:
            return self._lstm(*arguments, **(keywords or {}))
        if function is torch.gru:
            return self._gru(*arguments, **(keywords or {}))
        return function(*arguments, **(keywords or {}))

    @staticmethod
    def _lstm(sequence, states, weights, *settings, **more):
        # Of a packed sequence the second argument are its batch sizes.
        if isinstance(states, Tensor):
            raise ModelError(f"model: {PACKED}")
        return whole_operators()[torch.ops.aten.lstm.input](sequence, list(states), list(weights), *settings, **more)

    @staticmethod
    def _gru(sequence, state, weights, *settings, **more):
        if isinstance(weights, Tensor):
            raise ModelError(f"model: {PACKED}")
        return whole_operators()[torch.ops.aten.gru.input](sequence, state, list(weights), *settings, **more)
