"""From any model that can be built to a Relax module."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tvm import IRModule

from tvm_dual.errors import ModelError


def import_model(
    model,
    example_inputs: Sequence | None = None,
    *,
    dynamic_shapes=None,
    streaming: bool = False,
    calibration: Iterable | None = None,
) -> IRModule:
    """Import a model.

    Parameters
    ----------
    model : path, onnx.ModelProto, torch.nn.Module or torch.export.ExportedProgram
    example_inputs : sequence of torch.Tensor, optional
        What a ``torch.nn.Module`` can be called with; needed for one, refused otherwise.
    dynamic_shapes : optional
        Open extents of the inputs of a ``torch.nn.Module``, as ``torch.export.export`` takes them.
    streaming : bool
        Fix batch and time at 1 and make every recurrent state an input and an output of ``main``.
    calibration : iterable, optional
        Fixes what an ONNX model of images leaves open; see `tvm_dual.frontend.extents.with_fixed_images`.

    Returns
    -------
    IRModule
        ``main`` with the attributes that `tvm_dual.frontend.interface.with_interface` names.

    Raises
    ------
    ModelError
        If the model cannot be read, or a layer has a form that is not supported.
    """
    # Whoever has a torch model has imported torch; nobody else pays for it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from tvm_dual.frontend.torch import import_torch_module

        if example_inputs is None:
            raise ModelError(
                f"model {type(model).__name__}: a torch.nn.Module says nothing of its inputs; "
                "pass example_inputs, a tuple of tensors that it can be called with"
            )
        return import_torch_module(model, example_inputs, dynamic_shapes=dynamic_shapes, streaming=streaming)
    if example_inputs is not None or dynamic_shapes is not None:
        raise ModelError(
            f"example_inputs, dynamic_shapes: given with a {type(model).__name__}; accepted: with a torch.nn.Module, "
            "whose inputs are not known without them"
        )
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        from tvm_dual.frontend.torch import import_exported_program

        return import_exported_program(model, streaming=streaming)
    from tvm_dual.frontend.onnx import import_onnx

    return import_onnx(model, streaming=streaming, calibration=calibration)
