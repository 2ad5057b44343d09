"""Open extents of ONNX models of images, and what a model computes of its extents: fixed before the import.

Exporters leave the batch open, and often rows and columns, and compute shapes from them; kernels are made for one size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import onnx
import onnx.version_converter

from tvm_dual.calibration import call_shapes
from tvm_dual.errors import ModelError
from tvm_dual.frontend.images import reads_images
from tvm_dual.frontend.interface import first_line
from tvm_dual.frontend.onnx_refusals import graph_inputs
from tvm_dual.metadata import Tensor

#: TVM reads operators of this version and later ones; those of earlier ones have operands as attributes.
_OLDEST, _CURRENT = 11, 13
#: What onnxslim shall not do: our passes find layers by their form, and errors name them as the model does.
_LEFT_TO_PASSES = ["graph_fusion", "weight_tying"]


def with_fixed_images(model: onnx.ModelProto, calibration: Iterable | None) -> onnx.ModelProto:
    """Return the model with images of one size, and all that follows from extents and constants computed.

    Parameters
    ----------
    model : onnx.ModelProto
        It is not changed.
    calibration : iterable, optional
        See `tvm_dual.calibration.check_calibration`. Where a model reads images, extents that it leaves open are those
        of the data, if all calls agree on them.

    Raises
    ------
    ModelError
        If its graph cannot be computed.
    """
    found = _converted(model)
    _open_negative(found.graph)
    if calibration is not None and reads_images(found.graph):
        _fix(found.graph, call_shapes(calibration, tuple(map(_described, graph_inputs(found.graph)))))
    return _folded(found)


def with_one_step(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every open extent 1, which makes batch and time 1; errors as `with_fixed_images`."""
    inputs = graph_inputs(model.graph)
    if all(extent.dim_value for value in inputs for extent in _extents(value)):
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    _fix(found.graph, {value.name: (1,) * len(_extents(value)) for value in inputs})
    return _folded(found)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model, in operators that TVM reads."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), _CURRENT)
    if version < _OLDEST:
        try:
            return onnx.version_converter.convert_version(model, _CURRENT)
        except RuntimeError as error:
            raise ModelError(
                f"model: of ONNX operators {version}, which cannot be converted ({first_line(error)}); accepted: "
                f"{_OLDEST} or later. Export the model anew"
            ) from error
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def _extents(value: onnx.ValueInfoProto):
    return value.type.tensor_type.shape.dim


def _open_negative(graph: onnx.GraphProto) -> None:
    """Clear extents below zero, which is how some exporters write open ones."""
    for value in (*graph.input, *graph.output):
        for extent in _extents(value):
            if extent.dim_value < 0:
                extent.Clear()


def _described(value: onnx.ValueInfoProto) -> Tensor:
    return Tensor(value.name, tuple(extent.dim_value or -1 for extent in _extents(value)))


def _fix(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give open extents of inputs those of `shapes`, and forget what the file says of others."""
    for value in graph.input:
        for extent, fixed in zip(_extents(value), shapes.get(value.name, ()), strict=False):
            if not extent.dim_value and fixed > 0:
                extent.dim_value = fixed
    del graph.value_info[:]


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without what hangs on constants and known extents alone, branches among it."""
    import onnxslim  # half a second, for those alone who have ONNX models

    level = logging.getLogger("onnxslim").level
    try:
        return onnxslim.slim(model, skip_optimizations=_LEFT_TO_PASSES)
    except Exception as error:
        raise ModelError(f"model: onnxslim cannot compute its shapes: {first_line(error)}") from error
    finally:
        logging.getLogger("onnxslim").setLevel(level)
