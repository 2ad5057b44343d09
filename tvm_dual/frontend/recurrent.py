"""Recurrent layers in Relax: one call per layer and direction, whatever the length of the sequence.

Each call is of a private function with the attributes ``Composite``, ``dual.gru`` or ``dual.lstm``,
and ``layer``, what errors call the layer; its body is a plain kernel that defines
the layer's meaning::

    (x: (t, b, k), h0: (1, b, h) [, c0: (1, b, h)], weight, recurrence, bias)
        -> (y: (t, 1, b, h), h_t: (1, b, h) [, c_t: (1, b, h)])

A direction that runs backwards flips its sequences before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from schedules.recurrent_reference import gru_reference, lstm_reference
from schedules.registry import kernel
from tvm_dual.errors import ModelError

#: Gates of a cell, and how many states it carries.
GATES = {"gru": 3, "lstm": 4}
STATES = {"gru": 1, "lstm": 2}


@dataclass(frozen=True, eq=False)
class Cell:
    """Weights of one layer in one direction, checked, as constants of the module.

    Attributes
    ----------
    kind : str
        ``gru`` or ``lstm``.
    weight, recurrence, bias : relax.Constant, float32
        ``(g h, k)``, ``(g h, h)`` and ``(2 g h,)``, input biases first; gates in the order z, r, n or i, o, f, c.
    linear_before_reset : bool
        A GRU's form.
    """

    kind: str
    weight: relax.Expr
    recurrence: relax.Expr
    bias: relax.Expr
    linear_before_reset: bool = True

    @property
    def hidden(self) -> int:
        """Number of units."""
        return int(self.recurrence.ty.shape[1])

    @property
    def n_inputs(self) -> int:
        """Length of the input vector."""
        return int(self.weight.ty.shape[1])


def make_cell(
    label: str,
    kind: str,
    weight: np.ndarray,
    recurrence: np.ndarray,
    bias: np.ndarray | None,
    linear_before_reset: bool = True,
) -> Cell:
    """Check the weights of a layer and return its cell; see there for shapes and order.

    Raises
    ------
    ModelError
        If a dtype is not float32, shapes do not fit each other, or a value is NaN or infinite.
    """
    gates = GATES[kind]
    hidden = recurrence.shape[-1]
    bias = np.zeros(2 * gates * hidden, "float32") if bias is None else bias
    arrays = {"input weight": weight, "recurrent weight": recurrence, "bias": bias}
    wanted = {
        "input weight": (gates * hidden, weight.shape[-1]),
        "recurrent weight": (gates * hidden, hidden),
        "bias": (2 * gates * hidden,),
    }
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ModelError(f"{label}: its {name} is {array.dtype}; accepted: float32. Convert the model first")
        if array.shape != wanted[name]:
            raise ModelError(
                f"{label}: its {name} has the shape {array.shape}; accepted for {hidden} units: {wanted[name]}"
            )
        if not np.isfinite(array).all():
            raise ModelError(
                f"{label}: its {name} holds NaN or infinity; accepted: numbers. Train or load the model anew"
            )
    return Cell(kind, *(relax.const(np.ascontiguousarray(array)) for array in arrays.values()), linear_before_reset)


def emit_layer(
    builder: relax.BlockBuilder,
    label: str,
    cells: Sequence[Cell],
    reverse: Sequence[bool],
    x: relax.Expr,
    states: Sequence[relax.Expr | None],
) -> tuple[list[relax.Expr], list[list[relax.Expr]]]:
    """Emit one layer.

    Parameters
    ----------
    builder : relax.BlockBuilder
        Inside the dataflow block of ``main``.
    label : str
        What errors call the layer.
    cells : sequence of Cell
        One per direction.
    reverse : sequence of bool
        By direction, whether it runs from the last step to the first.
    x : Expr, float32, (t, b, k)
    states : sequence of Expr or None
        h0, and c0 for an LSTM, each ``(directions, b, h)``; None is zero.

    Returns
    -------
    outputs : list of Expr, (t, 1, b, h)
        By direction.
    finals : list of list of Expr, (1, b, h)
        For h and c, by direction.

    Raises
    ------
    ModelError
        If x or a state has another shape or dtype than the cells'.
    """
    x = _checked(builder, label, "input", x, (None, None, cells[0].n_inputs))
    time, batch, _ = x.ty.shape
    wanted = (len(cells), batch, cells[0].hidden)
    states = [
        state if state is None else _checked(builder, label, f"initial state {name}", state, wanted)
        for state, name in zip(states, ("h", "c"), strict=False)
    ]
    outputs, finals = [], [[] for _ in range(STATES[cells[0].kind])]
    for direction, (cell, backwards) in enumerate(zip(cells, reverse, strict=True)):
        start = [_start(builder, state, direction, len(cells), batch, cell.hidden) for state in states]
        given = builder.emit(relax.op.flip(x, 0)) if backwards else x
        y, *last = _emit_cell(builder, label, cell, given, start, (time, batch))
        outputs.append(builder.emit(relax.op.flip(y, 0)) if backwards else y)
        for final, value in zip(finals, last, strict=True):
            final.append(value)
    return outputs, finals


def join(builder: relax.BlockBuilder, values: Sequence[relax.Expr], axis: int) -> relax.Expr:
    """Return the values joined along an axis; a single one as it is."""
    return values[0] if len(values) == 1 else builder.emit(relax.op.concat(list(values), axis=axis))


def _checked(builder: relax.BlockBuilder, label: str, what: str, value: relax.Expr, wanted: Sequence) -> relax.Expr:
    """Return a value whose type says its shape; it must be float32 and match `wanted` (None is any)."""
    type_ = value.ty
    if not isinstance(type_, relax.TensorType) or type_.ndim not in (-1, len(wanted)):
        raise ModelError(f"{label}: its {what} has the type {type_}; accepted: float32 with {len(wanted)} axes")
    if type_.dtype is not None and str(type_.dtype.dtype) != "float32":
        raise ModelError(f"{label}: its {what} is {type_.dtype.dtype}; accepted: float32. Convert the model first")
    if not isinstance(type_.shape, relax.ShapeExpr):
        # Made from other shapes while the model runs: then checked while it runs.
        shape = [tvm.tirx.Var("extent", "int64") if extent is None else extent for extent in wanted]
        return builder.match_cast(value, relax.TensorType(shape, "float32"))
    for found, want in zip(type_.shape, wanted, strict=True):
        fixed = isinstance(found, tvm.tirx.IntImm) and isinstance(want, (int, tvm.tirx.IntImm))
        if fixed and int(found) != int(want):
            shown, found_shape = (", ".join(map(_extent, extents)) for extents in (wanted, type_.shape))
            raise ModelError(f"{label}: its {what} has the shape ({found_shape}); accepted: ({shown})")
    return value


def _extent(extent) -> str:
    if extent is None:
        return "any"
    return str(int(extent)) if isinstance(extent, (int, tvm.tirx.IntImm)) else str(extent)


def _start(builder, state, direction: int, directions: int, batch, hidden: int) -> relax.Expr:
    if state is None:
        return builder.emit(relax.op.zeros(relax.ShapeExpr([1, batch, hidden]), "float32"))
    if directions == 1:
        return state
    return builder.emit(relax.op.strided_slice(state, [0], [direction], [direction + 1], assume_inbound=True))


def _emit_cell(builder: relax.BlockBuilder, label: str, cell: Cell, x, start: list, extents: tuple) -> list[relax.Expr]:
    """Emit the call of one direction and return its results, ``[y, h_t]`` or ``[y, h_t, c_t]``."""
    hidden = cell.hidden
    # Open extents get variables of the function's own: they may be expressions here.
    time, batch = (
        extent if isinstance(extent, tvm.tirx.IntImm) else tvm.tirx.Var(name, "int64")
        for extent, name in zip(extents, ("time", "batch"), strict=True)
    )
    state = relax.TensorType([1, batch, hidden], "float32")
    outputs = [relax.TensorType([time, 1, batch, hidden], "float32"), *[state] * len(start)]
    names = ["x", *("h", "c")[: len(start)], "weight", "recurrence", "bias"]
    arguments = [x, *start, cell.weight, cell.recurrence, cell.bias]
    types = [relax.TensorType([time, batch, cell.n_inputs], "float32"), *[state] * len(start)]
    types += [constant.ty for constant in (cell.weight, cell.recurrence, cell.bias)]
    parameters = [relax.Var(name, type_) for name, type_ in zip(names, types, strict=True)]
    attributes = {"Composite": f"dual.{cell.kind}", "hidden_size": hidden, "layer": label}
    if cell.kind == "gru":
        attributes["linear_before_reset"] = int(cell.linear_before_reset)
        reference = kernel(gru_reference, cell.n_inputs, hidden, int(cell.linear_before_reset))
    else:
        reference = kernel(lstm_reference, cell.n_inputs, hidden)
    layer = relax.BlockBuilder()
    target = builder.add_func(reference, f"{cell.kind}_reference")
    with layer.function("layer", parameters, private=True):
        with layer.dataflow():
            result = layer.emit_output(relax.call_tir(target, parameters, outputs))
        layer.emit_func_output(result)
    function = builder.add_func(layer.get()["layer"].with_attrs(attributes), f"{cell.kind}_layer")
    called = builder.emit(relax.Call(function, arguments))
    return [builder.emit(relax.TupleGetItem(called, i)) for i in range(len(outputs))]
