"""PermuteChannels: the outputs of convolutions in another order, and all that reads them in the same.

Which channels share a panel decides how many tiles a gate opens. Weights, biases and constants are put in order at
build time, so that nothing is moved at run time, and the model's outputs are what they were, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.channel_flow import ChannelFlow, conv2d_roles, part_orders
from relay_passes.channel_lanes import Lanes
from relay_passes.conv2d_site import COMPOSITE
from relay_passes.elementwise import PAIRS
from relay_passes.main_function import mutated


@dataclass(frozen=True)
class ChannelGroup:
    """Convolutions whose outputs have to be in one order.

    Attributes
    ----------
    sites : tuple of str
        In graph order.
    stays : str
        Why their channels keep their order; empty if they need not.
    """

    sites: tuple[str, ...]
    stays: str


@dataclass(frozen=True, eq=False)
class SiteOrder:
    """Which value comes at each place of what one site reads and gives; None for those that are as before.

    Attributes
    ----------
    read : ndarray, int64, or None
        Channels of a convolution's input, values of a dense layer's.
    given : ndarray, int64, or None
        Channels of a convolution's output.
    """

    read: np.ndarray | None = None
    given: np.ndarray | None = None


def channel_groups(module: IRModule) -> list[ChannelGroup]:
    """Return the groups of all convolutions of a module whose sites are marked."""
    flow, sites = ChannelFlow(module), {}
    for name, number in flow.made.items():
        sites.setdefault(flow.group(number), []).append(name)
    return [ChannelGroup(tuple(names), flow.stays(number)) for number, names in sites.items()]


@tvm.transform.module_pass(opt_level=0, name="PermuteChannels")
class PermuteChannels:
    """The pass; run it on marked sites, before they are rewritten."""

    def __init__(self, orders: Mapping[str, np.ndarray]) -> None:
        """Put channels in order by site: place i gets what was channel ``order[i]``.

        One site of each of `channel_groups` is enough; of several all orders must be the same.
        """
        self._orders = orders

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with the constants in order."""
        return mutated(_Permuter(module, self._orders), module)


def site_orders(module: IRModule, orders: Mapping[str, np.ndarray]) -> dict[str, SiteOrder]:
    """Return what `PermuteChannels` changes for each site; `module` is as before the pass."""
    flow = ChannelFlow(module)
    by_group, found = _by_group(flow, orders), {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            function = flow.site(binding.value)
            if function is None:
                continue
            is_conv = function.attrs["Composite"] == COMPOSITE
            x = binding.value.args[conv2d_roles(function)["x"] if is_conv else 0]
            read, given = _read(flow, x, by_group, is_conv), None
            if is_conv:
                given = part_orders(flow, flow.lanes[binding.var], by_group)
            found[str(function.attrs["dual.site"])] = SiteOrder(read, given)
    return found


def _read(flow: ChannelFlow, x: relax.Expr, orders, is_conv: bool) -> np.ndarray | None:
    lanes = flow.lanes.get(x)
    order = None if lanes is None else part_orders(flow, lanes, orders)
    return order if order is None or is_conv else _spread(order, lanes, int(x.ty.shape[-1]))


def _by_group(flow: ChannelFlow, orders: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for name, order in orders.items():
        if name not in flow.made:
            raise ValueError(f"no convolution {name!r} in the module; it has {', '.join(flow.made) or 'none'}")
        number = flow.group(flow.made[name])
        if flow.stays(number):
            raise ValueError(f"the channels of {name} keep their order: {flow.stays(number)}")
        if not np.array_equal(found.setdefault(number, np.asarray(order)), order):
            raise ValueError(f"{name} shares its order of channels with a convolution of another order")
    return found


@mutator
class _Permuter(PyExprMutator):
    def __init__(self, module: IRModule, orders: Mapping[str, np.ndarray]) -> None:
        super().__init__(module)
        self._flow = ChannelFlow(module)
        self._orders = _by_group(self._flow, orders)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if isinstance(value, relax.Call):
            binding = relax.VarBinding(binding.var, self._ordered(binding.var, value))
        super().visit_var_binding_(binding)

    def _ordered(self, var: relax.Var, call: relax.Call) -> relax.Call:
        """Return a call whose constants are in the order of what they meet."""
        flow, function = self._flow, self._flow.site(call)
        given = flow.lanes.get(var)
        order = None if given is None else part_orders(flow, given, self._orders)
        if function is not None and function.attrs["Composite"] == COMPOSITE:
            return self._convolution(call, conv2d_roles(function), order)
        if function is not None:
            read = _read(flow, call.args[0], self._orders, False)
            return call if read is None else _with(call, {i: _taken(a, read, 0) for i, a in _matrices(call)})
        if order is None or not isinstance(call.op, tvm.ir.Op):
            return call
        if call.op.name == "relax.nn.conv2d":
            kernel = call.args[1]
            return _with(call, {1: _taken(kernel, order, call.attrs.kernel_layout.index("O"))})
        if call.op.name not in PAIRS:
            return call
        # Constants that each value is taken together with.
        back = flow.axis(var) - len(var.ty.shape)
        changed = {
            i: _taken(a, order, back)
            for i, a in enumerate(call.args)
            if isinstance(a, GenericConst) and -back <= a.value.numpy().ndim and a.value.shape[back] == len(order)
        }
        return _with(call, changed)

    def _convolution(self, call: relax.Call, roles: dict, given: np.ndarray | None) -> relax.Call:
        read, changed = _read(self._flow, call.args[roles["x"]], self._orders, True), {}
        weight = call.args[roles["weight"]]
        if read is not None:
            weight = _taken(weight, read, 3)
        if given is not None:
            weight = _taken(weight, given, 0)
            changed = {
                i: _taken(call.args[i], given, -1) for i in roles["added"] if isinstance(call.args[i], GenericConst)
            }
        return _with(call, changed | {roles["weight"]: weight})


def _matrices(call: relax.Call) -> list[tuple[int, GenericConst]]:
    return [(i, a) for i, a in enumerate(call.args) if isinstance(a, GenericConst) and a.value.numpy().ndim == 2]


def _with(call: relax.Call, changed: dict[int, relax.Expr]) -> relax.Call:
    arguments = [changed.get(i, argument) for i, argument in enumerate(call.args)]
    return relax.Call(call.op, arguments, call.attrs, call.ty_args) if changed else call


def _taken(constant: GenericConst, order: np.ndarray, axis: int) -> GenericConst:
    return relax.const(np.ascontiguousarray(np.take(constant.value.numpy(), order, axis=axis)))


def _spread(order: np.ndarray, lanes: Lanes, length: int) -> np.ndarray:
    """Return the order of a row of `length` values whose channels are in `order`."""
    places = np.arange(length).reshape(-1, lanes.count, lanes.stride)
    return places[:, order].reshape(-1)
