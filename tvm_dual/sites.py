"""The layers of a model that could be rewritten, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from relay_passes.conv2d_site import read_conv2d
from relay_passes.mark_sites import layer_activation
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS

#: 32-bit lanes of the widest vector of any level.
MOST_LANES = max(isa.lanes for isa in ISAS.values())


@dataclass(frozen=True, eq=False)
class Site:
    """One layer that could be rewritten.

    Attributes
    ----------
    name : str
        Kind and number in graph order, such as ``gru0``.
    kind : str
        ``dense``, ``conv2d``, ``gru`` or ``lstm``.
    weight : ndarray, float32, (n, k)
        Rows of the input's matrix; a GRU stacks z, r and n, an LSTM i, o, f and c. A convolution's multiply what one
        pixel of the output sees.
    bias : ndarray, float32, (n,)
    recurrence : ndarray, float32, (n, h), or None
        Rows of the state's matrix.
    recurrent_bias : ndarray, float32, (n,), or None
    activation : str or None
        The nonlinearity of a dense layer or convolution: relu, relu6, sigmoid, tanh, silu, hard_swish or None.
    nonnegative : bool
        Whether the input cannot be negative, so that its zeros can be skipped.
    rows_per_call : int or None
        How many vectors one call sees, for a convolution pixels of its output; None if that is open.
    consumers : tuple of str
        Sites that read this one's result.
    linear_before_reset : bool
        A GRU's form; true for all other layers.
    conv : Conv2d or None
        Geometry of a convolution.
    """

    name: str
    kind: str
    weight: np.ndarray
    bias: np.ndarray
    recurrence: np.ndarray | None
    recurrent_bias: np.ndarray | None
    activation: str | None
    nonnegative: bool
    rows_per_call: int | None
    consumers: tuple[str, ...]
    linear_before_reset: bool
    conv: Conv2d | None = None

    @property
    def n_inputs(self) -> int:
        """Length of the input vector."""
        return self.weight.shape[1]

    @property
    def hidden(self) -> int:
        """Length of a recurrent state (0 for a dense layer)."""
        return 0 if self.recurrence is None else self.recurrence.shape[1]

    @property
    def can_rewrite(self) -> bool:
        """Whether kernels of ours apply: one vector per call, any sequences of a recurrent layer, images."""
        return self.rows_per_call == 1 or self.hidden > 0 or self.kind == "conv2d"

    @property
    def can_gate(self) -> bool:
        """Whether gated kernels apply: can be rewritten, not a GRU that resets before its product.

        A convolution of fewer channels than a vector has lanes has no tiles to gate.
        """
        return self.can_rewrite and self.linear_before_reset and (self.conv is None or self.conv.outputs >= MOST_LANES)

    def precision(self, wanted: str) -> str:
        """Return the precision of the big module in a build of `wanted`; of a convolution that is not on bytes or bf16.

        All other layers read so few vectors a call that tiles of bf16 do not help; in a build of it they stay fp32.
        """
        return "fp32" if self.kind == "conv2d" or wanted == "bf16" else wanted

    @property
    def weight_count(self) -> int:
        """Number of weights in the layer's matrices."""
        return self.weight.size + (0 if self.recurrence is None else self.recurrence.size)


def find_sites(module: IRModule) -> list[Site]:
    """Return the sites of a module that `relay_passes` has marked, in graph order."""
    calls = list(_site_calls(module))
    consumers = _consumers(module, {name for name, *_ in calls})
    return [_site(name, function, call, consumers[name]) for name, function, call in calls]


def _site_calls(module: IRModule):
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                function = module[call.op]
                if isinstance(function, relax.Function) and function.attrs and "dual.site" in function.attrs:
                    yield str(function.attrs["dual.site"]), function, call


def _consumers(module: IRModule, names: set[str]) -> dict[str, tuple[str, ...]]:
    """Follow each site's result through operators that only move values."""
    moves = ("relax.squeeze", "relax.reshape", "relax.permute_dims", "relax.expand_dims", "relax.flatten")
    source: dict = {}
    found: dict[str, list[str]] = {name: [] for name in names}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem):
                source[binding.var] = source.get(value.tuple_value)
            elif isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and value.op.name in moves:
                source[binding.var] = source.get(value.args[0])
            elif isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
                function = module[value.op]
                name = function.attrs.get("dual.site") if function.attrs else None
                if name is None:
                    continue
                if source.get(value.args[0]) is not None:
                    found[source[value.args[0]]].append(str(name))
                source[binding.var] = str(name)
    return {name: tuple(consumers) for name, consumers in found.items()}


def _site(name: str, function: relax.Function, call: relax.Call, consumers: tuple[str, ...]) -> Site:
    kind, conv = str(function.attrs["Composite"]).removeprefix("dual."), None
    arrays = [a.value.numpy() for a in call.args if isinstance(a, GenericConst)]
    extents = list(call.args[0].ty.shape)[:-1]
    fixed = all(isinstance(extent, tvm.tirx.IntImm) for extent in extents)
    rows = int(np.prod([int(extent) for extent in extents])) if fixed else None
    if kind in ("gru", "lstm"):
        # The last three: the state before them may be a constant too.
        weight, recurrence, bias = arrays[-3:]
        n = weight.shape[0]
        bias, recurrent_bias = bias[:n], bias[n:]
        late_reset = bool(int(function.attrs.get("linear_before_reset", 1)))
    elif kind == "conv2d":
        found = read_conv2d(function, call, layer_activation(function))
        weight, bias = found.weight.reshape(len(found.weight), -1), found.bias
        conv = found.conv
        rows = conv.output_size // conv.outputs
        recurrence = recurrent_bias = None
        late_reset = True
    else:
        weight = next(a for a in arrays if a.ndim == 2).T
        bias = next((a for a in arrays if a.ndim == 1), np.zeros(weight.shape[0], "float32"))
        recurrence = recurrent_bias = None
        late_reset = True
    return Site(
        name=name,
        kind=kind,
        weight=weight,
        bias=bias,
        recurrence=recurrence,
        recurrent_bias=recurrent_bias,
        activation=layer_activation(function),
        nonnegative=bool(function.attrs["dual.nonnegative"]),
        rows_per_call=rows,
        consumers=consumers,
        linear_before_reset=late_reset,
        conv=conv,
    )


def same_layers(sites: dict[str, Site], others: dict[str, Site]) -> bool:
    """Whether two models, perhaps for calls of different shapes, have the same layers by the same names."""
    return sites.keys() == others.keys() and all(
        site.kind == others[name].kind and np.array_equal(site.weight, others[name].weight)
        for name, site in sites.items()
    )
