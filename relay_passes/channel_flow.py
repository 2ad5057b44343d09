"""Which convolutions must have their channels in one order, and who reads channels in it.

Channels are followed through ``main`` by where they lie in a value's flat order: part after part (more than one part
behind a concatenation), each channel `stride` values from the next, over and over. A reshape leaves all of that as it
is. Values that are added share one order. What no rule below knows reads its channels in the order that they have, and
so do the model's outputs.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from relay_passes.channel_lanes import (
    Lanes,
    convolves_along,
    extents,
    moved_axis,
    operands,
    own_axis,
    pools_along,
    reduced_axis,
)
from relay_passes.conv2d_site import COMPOSITE
from relay_passes.elementwise import EACH, PAIRS

#: Operators that leave the flat order as it is.
_RESHAPES = {"relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims"}
_POOLS = {f"relax.nn.{name}2d" for name in ("max_pool", "avg_pool", "adaptive_avg_pool")}
_REDUCTIONS = {f"relax.{name}" for name in ("mean", "sum", "max", "min")}


class ChannelFlow:
    """The channels of every value of a module whose sites are marked.

    Attributes
    ----------
    lanes : dict of Lanes
        By variable of ``main``, for those that hold channels of convolutions.
    made : dict of int
        By site: the number of its outputs' group.
    """

    def __init__(self, module: IRModule) -> None:
        """Follow the channels from binding to binding."""
        self._module, self._parents, self._stays, self._tuples = module, [], {}, {}
        self.lanes: dict[relax.Var, Lanes] = {}
        self.made: dict[str, int] = {}
        main = module["main"]
        for block in main.body.blocks:
            for binding in block.bindings:
                found = self._follow(binding.value)
                if isinstance(binding.value, relax.Tuple):
                    self._tuples[binding.var] = binding.value
                if found is not None:
                    self.lanes[binding.var] = found
        self._stay(main.body.body, "they are an output of the model")

    def group(self, number: int) -> int:
        """Return the number that stands for a whole group."""
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def stays(self, number: int) -> str:
        """Return why a group's channels keep their order; empty if they need not."""
        return next((reason for of, reason in self._stays.items() if self.group(of) == self.group(number)), "")

    def site(self, call: relax.Expr) -> relax.Function | None:
        """Return the function of a site that is called, or None."""
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
            return None
        function = self._module[call.op]
        named = isinstance(function, relax.Function) and function.attrs and "dual.site" in function.attrs
        return function if named else None

    def axis(self, value: relax.Expr) -> int | None:
        """Return the axis that a value's channels have for themselves, or None."""
        lanes, shape = self.lanes.get(value), extents(value)
        return None if lanes is None or shape is None else own_axis(shape, lanes)

    def _follow(self, value: relax.Expr) -> Lanes | None:
        """Return where the channels of a binding's value lie; read ones stay that have no rule."""
        if isinstance(value, relax.Tuple):
            return None
        if isinstance(value, (relax.Var, relax.DataflowVar)):
            return self.lanes.get(value)
        function = self.site(value)
        if function is not None and function.attrs["Composite"] == COMPOSITE:
            return self._convolved(function, value)
        if function is not None and function.attrs["Composite"] == "dual.dense":
            lanes = self.lanes.get(value.args[0])
            if lanes is not None and int(value.args[0].ty.shape[-1]) % (lanes.count * lanes.stride):
                self._stay(value.args[0], "a dense layer reads parts of them")
            return None
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and function is None:
            return self._through(value)
        for operand in operands(value):
            self._stay(operand, "they are read by what the compiler does not know")
        return None

    def _convolved(self, function: relax.Function, call: relax.Call) -> Lanes:
        roles, (outputs, *_, inputs) = conv2d_roles(function), extents(call.args[1])
        x = call.args[roles["x"]]
        lanes = self.lanes.get(x)
        if lanes is not None and (lanes.stride, lanes.count) != (1, inputs):
            self._stay(x, f"{function.attrs['dual.site']} reads parts of them")
        name = str(function.attrs["dual.site"])
        self.made[name] = len(self._parents)
        self._parents.append(self.made[name])
        result = Lanes(((self.made[name], outputs),), 1)
        for i in roles["added"]:
            if not isinstance(call.args[i], GenericConst):
                self._join(result, call.args[i])
        return result

    def _through(self, call: relax.Call) -> Lanes | None:
        """Return where the channels of what an operator gives lie."""
        name, tracked = call.op.name, [x for x in operands(call) if x in self.lanes]
        if not tracked:
            return None
        first, shape, axis = self.lanes[tracked[0]], extents(call), self.axis(tracked[0])
        if name in _RESHAPES or name in EACH or name == "relax.astype":
            return first
        if shape is not None and axis is not None:
            if name == "relax.concat":
                return self._concatenated(call, shape)
            to = None
            if name in _REDUCTIONS:
                to = reduced_axis(call, axis, len(extents(tracked[0])))
            elif name == "relax.permute_dims":
                to = moved_axis(call, axis, len(shape))
            elif (
                (name in PAIRS and self._pairs(call, tracked, shape, axis))
                or (name in _POOLS and pools_along(call, axis))
                or (name == "relax.nn.conv2d" and convolves_along(call, tracked[0], axis, first.count))
            ):
                to = axis
            if to is not None:
                return Lanes(first.parts, math.prod(shape[to + 1 :]))
        for operand in tracked:
            self._stay(operand, f"they are read by {name}")
        return None

    def _pairs(self, call: relax.Call, tracked: list, shape: tuple[int, ...], axis: int) -> bool:
        """Whether two operands may be taken together.

        Along the channels' axis the other is one value for all, a constant that is put in order, or channels that then
        share the order.
        """
        back = axis - len(shape)
        if any(len(extents(x)) != len(shape) for x in tracked):
            return False
        if len(tracked) == len(call.args):
            same = all(self.axis(x) == axis for x in tracked)
            return same and self._join(self.lanes[tracked[0]], tracked[1], any_stride=True)
        (other,) = [x for x in call.args if x not in self.lanes]
        others = extents(other)
        if others is None:
            return False
        return isinstance(other, GenericConst) or len(others) < -back or others[back] == 1

    def _concatenated(self, call: relax.Call, shape: tuple[int, ...]) -> Lanes | None:
        values = operands(call) if not isinstance(call.args[0], relax.Var) else self._tuples[call.args[0]].fields
        along = int(call.attrs.axis) % len(shape)
        known = [self.lanes.get(x) for x in values]
        axes = {self.axis(x) for x in values if x in self.lanes}
        if axes == {along}:
            # What has no channels of convolutions keeps its order.
            parts = [
                lanes.parts if lanes else ((-1, extents(x)[along]),) for x, lanes in zip(values, known, strict=True)
            ]
            return Lanes(sum(parts, ()), math.prod(shape[along + 1 :]))
        if len(axes) == 1 and None not in axes and None not in known:
            (axis,) = axes
            joined = [self._join(known[0], x, any_stride=True) for x in values[1:]]
            if all(joined):
                return Lanes(known[0].parts, math.prod(shape[axis + 1 :]))
        for operand in values:
            self._stay(operand, "they are read by relax.concat")
        return None

    def _join(self, lanes: Lanes, other: relax.Expr, any_stride: bool = False) -> bool:
        """Let two values' channels share one order; say whether they can."""
        found = self.lanes.get(other)
        counts = [count for _, count in lanes.parts]
        fits = found is not None and [count for _, count in found.parts] == counts
        if not fits or (found.stride != lanes.stride and not any_stride):
            for part in (lanes, found):
                self._stay_parts(part, "what they are added to keeps its order")
            return False
        for (a, _), (b, _) in zip(lanes.parts, found.parts, strict=True):
            if -1 in (a, b):
                for part in (lanes, found):
                    self._stay_parts(part, "what they are added to keeps its order")
            else:
                self._parents[self.group(b)] = self.group(a)
        return True

    def _stay(self, value: relax.Expr, reason: str) -> None:
        for operand in value.fields if isinstance(value, relax.Tuple) else [value]:
            if isinstance(operand, relax.Tuple):
                self._stay(operand, reason)
            elif operand in self._tuples:
                self._stay(self._tuples[operand], reason)
            else:
                self._stay_parts(self.lanes.get(operand), reason)

    def _stay_parts(self, lanes: Lanes | None, reason: str) -> None:
        for number, _ in lanes.parts if lanes else ():
            if number >= 0:
                self._stays.setdefault(number, reason)


def conv2d_roles(function: relax.Function) -> dict:
    """Return which arguments of a convolution's site are what: ``x`` and ``weight``, and all that are ``added``."""
    places = {parameter: i for i, parameter in enumerate(function.params)}
    calls = [b.value for b in function.body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    (conv,) = [call for call in calls if call.op.name == "relax.nn.conv2d"]
    added = [places[x] for call in calls if call.op.name == "relax.add" for x in call.args if x in places]
    return {"x": places[conv.args[0]], "weight": places[conv.args[1]], "added": added}


def part_orders(flow: ChannelFlow, lanes: Lanes, orders: dict[int, np.ndarray]) -> np.ndarray | None:
    """Return the order of all channels of a value, or None if it is as before.

    `orders` are by number of a group.
    """
    found, start = [], 0
    for number, count in lanes.parts:
        order = orders.get(flow.group(number)) if number >= 0 else None
        found.append(start + (np.arange(count) if order is None else order))
        start += count
    order = np.concatenate(found)
    return None if (order == np.arange(start)).all() else order
