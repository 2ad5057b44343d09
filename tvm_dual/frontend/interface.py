"""What every importer says of ``main``: names of inputs and outputs, states of a streaming model."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import IRModule, relax

from relay_passes.drop_idle_transposes import DropIdleTransposes
from tvm_dual.errors import ModelError
from tvm_dual.frontend.indices import index_limits, with_safe_indices
from tvm_dual.frontend.states import expose_states

#: TVM's importers have no error of their own: operators and forms that they lack come as any of these.
IMPORTER_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def with_interface(module: IRModule, inputs: Sequence[str], outputs: Sequence[str], streaming: bool) -> IRModule:
    """Return `module` with the attributes of ``main`` that the rest of the project reads.

    These are ``num_input`` (inputs without states), ``num_states``, ``input_names``, ``output_names`` (inputs are
    followed by states, outputs likewise), ``initial_states`` (what each state is before the first call) and
    ``index_limits`` (for inputs that select rows of a table, such as token ids, how many rows it has).

    Parameters
    ----------
    module : IRModule
    inputs, outputs : sequence of str
        Names of the parameters and results of ``main``.
    streaming : bool
        Whether recurrent states become inputs and outputs.

    Raises
    ------
    ModelError
        If an input has an axis of length 0, or as `expose_states` does.
    """
    main = with_safe_indices(module["main"])
    _refuse_empty(main, inputs)
    # Bounds of open extents would become sizes of buffers that longer sequences overrun.
    for name in ("tir_var_upper_bound", "tir_var_lower_bound"):
        if main.attrs and name in main.attrs:
            main = main.without_attr(name)
    module["main"] = main.with_attrs(
        {
            "num_input": len(inputs),
            "num_states": 0,
            "input_names": list(inputs),
            "output_names": list(outputs),
            "initial_states": [],
        }
    )
    passes = [relax.transform.DeadCodeElimination(["main"]), relax.transform.FoldConstant(), DropIdleTransposes()]
    module = tvm.transform.Sequential(passes)(module)
    module = expose_states(module) if streaming else module
    module["main"] = module["main"].with_attr("index_limits", index_limits(module["main"]))
    return module


def _refuse_empty(main: relax.Function, inputs: Sequence[str]) -> None:
    for name, parameter in zip(inputs, main.params, strict=True):
        extents = [int(extent) if isinstance(extent, tvm.tirx.IntImm) else -1 for extent in parameter.ty.shape]
        if 0 in extents:
            raise ModelError(
                f"input '{name}': shape {tuple(extents)}; accepted: extents from 1 on, or open. "
                "Export the model with a sequence of one step or more, or an image of one pixel or more"
            )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, or else its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
