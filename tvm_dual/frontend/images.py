"""What layers of images may not read, in ONNX models: open extents, none at all, padding of unknown kinds.

TVM's importer takes such models and gives wrong results, or fails where nothing names the layer.
"""

from __future__ import annotations

import onnx
from onnx import helper

from tvm_dual.errors import ModelError

#: What errors say of images whose rows or columns are open.
FIXED = (
    "accepted: fixed rows and columns. Give calibration data of one size, or export the model for it; for several "
    "sizes build one each"
)
_CONVOLUTIONS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
#: Axes of a batch of images.
_IMAGE = 4
_PADDING = ("constant", "reflect", "edge")


def reads_images(graph: onnx.GraphProto) -> bool:
    """Whether a model has layers of images, or of signals, which are images of one row."""
    return any(node.op_type in _CONVOLUTIONS for node in graph.node)


def refuse_empty_images(graph: onnx.GraphProto) -> None:
    """Name the first input of images without pixels.

    Raises
    ------
    ModelError
    """
    for value in graph.input:
        extents = value.type.tensor_type.shape.dim
        # Of other inputs 0 is what some exporters write for an open extent.
        if len(extents) >= _IMAGE and any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in extents):
            raise ModelError(
                f"input '{value.name}': shape {_shown(extents)}; accepted: extents from 1 on, or open. "
                "Export the model with images of one pixel or more"
            )


def refuse_images(model: onnx.ModelProto) -> None:
    """Name the first layer whose image has open extents or odd padding, or is smaller than its kernel.

    Raises
    ------
    ModelError
    """
    graph = model.graph
    for node in graph.node:
        mode = next((helper.get_attribute_value(a).decode() for a in node.attribute if a.name == "mode"), "constant")
        if node.op_type == "Pad" and mode not in _PADDING:
            label = f"layer '{node.name or node.output[0]}' (Pad)"
            raise ModelError(f"{label}: mode {mode!r}; accepted: {', '.join(_PADDING)}. Pad the image before the model")
    if reads_images(graph):
        _refuse_extents(onnx.shape_inference.infer_shapes(_without_weights(model)).graph)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with shapes in place of its float weights, which shape inference does not read."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    known = {value.name for value in found.graph.input}
    for tensor in list(found.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            if tensor.name not in known:
                found.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            found.graph.initializer.remove(tensor)
    return found


def _refuse_extents(graph: onnx.GraphProto) -> None:
    """Name the first layer that reads an image of open extents, or one smaller than its kernel."""
    shapes = {
        value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for node in graph.node:
        if node.op_type not in _CONVOLUTIONS:
            continue
        label = f"layer '{node.name or node.output[0]}' ({node.op_type})"
        # What inference cannot follow has no extents, and is left to the importer.
        image, result = (list(shapes.get(name, ())) for name in (node.input[0], node.output[0]))
        if any(not dim.dim_value for dim in image[2:]):
            raise ModelError(f"{label}: reads an image of the shape {_shown(image)}; {FIXED}")
        if any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in result[2:]):
            raise ModelError(
                f"{label}: reads an image of the shape {_shown(image)}, which is smaller than its kernel; accepted: "
                "images that one output fits in. Export the model for larger ones"
            )


def _shown(extents) -> str:
    return f"({', '.join(str(d.dim_value) if d.HasField('dim_value') else d.dim_param or '?' for d in extents)})"
