"""Images that no library can be built for are refused, and whose axes lie differently in memory are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvm_dual.builder import Builder
from tvm_dual.errors import DataError, ModelError
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.options import AdvancedOptions

EXACT = AdvancedOptions(mode="dense")


def onnx_model(shape, *before, **attributes) -> onnx.ModelProto:
    """Return one convolution of kernel 3 x 3, from 3 to 4 channels, on the last result of the nodes `before`."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32")
    source = before[-1].output[0] if before else "x"
    graph = helper.make_graph(
        [*before, helper.make_node("Conv", [source, "w"], ["y"], name="first", **attributes)],
        "images",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0, 0, 1, 1] * 2), "pads")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", [["n", 3, "h", "w"], [1, 3, 8, None]], ids=str)
def test_open_images_are_refused(shape, streaming):
    relu = helper.make_node("Relu", ["x"], ["r"])
    with pytest.raises(ModelError, match=r"'first' \(Conv\).*\(.*, 3, .*\).*fixed rows and columns.*one each"):
        import_model(onnx_model(shape, relu), streaming=streaming)


def test_open_images_of_a_module_are_refused():
    with pytest.raises(ModelError, match=r"CONV.*fixed rows and columns"):
        import_model(
            nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)),
            (torch.zeros(1, 3, 8, 7),),
            dynamic_shapes=({2: torch.export.Dim("height", min=4, max=64)},),
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_an_open_batch_is_fine(streaming):
    assert import_model(onnx_model(["n", 3, 8, 7]), streaming=streaming)["main"] is not None


def test_images_without_pixels_are_refused():
    with pytest.raises(ModelError, match=r"input 'x': shape \(1, 3, 0, 8\).*from 1 on.*one pixel"):
        import_model(onnx_model([1, 3, 0, 8]))
    with pytest.raises(ModelError, match=r"shape \(1, 3, 0, 7\).*from 1 on.*one pixel"):
        import_model(nn.ReLU(), (torch.zeros(1, 3, 0, 7),))
    with pytest.raises(ModelError, match=r"torch\.export refuses.*\(1, 3, 0, 7\)"):
        import_model(nn.Conv2d(3, 4, 3, padding=1), (torch.zeros(1, 3, 0, 7),))


@pytest.mark.parametrize("streaming", [False, True])
def test_images_smaller_than_the_kernel_are_refused(streaming):
    with pytest.raises(ModelError, match=r"'first' .*\(1, 3, 2, 8\), which is smaller than its kernel"):
        import_model(onnx_model([1, 3, 2, 8]), streaming=streaming)
    with pytest.raises(ModelError, match=r"torch\.export refuses.*Kernel size"):
        import_model(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 2, 7),))


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_padding_of_other_kinds_is_refused(mode):
    model = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    with pytest.raises(ModelError, match=rf"PAD.*'{mode}'; accepted: constant, reflect"):
        import_model(model, (torch.zeros(1, 3, 8, 7),))


def test_padding_of_other_kinds_is_refused_in_onnx():
    with pytest.raises(ModelError, match=r"\(Pad\): mode 'wrap'; accepted: constant, reflect, edge"):
        import_model(onnx_model([1, 3, 8, 7], helper.make_node("Pad", ["x", "pads"], ["p"], mode="wrap")))


def test_padding_by_reflection_is_computed():
    torch.manual_seed(0)
    model, images = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect").eval(), np.random.rand(2, 1, 3, 8, 7)
    images = images.astype("float32")
    library = Builder(model, [images], example_inputs=(torch.zeros(1, 3, 8, 7),)).build("fp32", options=EXACT)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images[0])).numpy()
    np.testing.assert_allclose(library(images[0]), wanted, rtol=1e-4, atol=1e-5)


def test_images_may_lie_channels_last_in_memory_but_not_in_shape():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 8, 7).to(memory_format=torch.channels_last)
    builder = Builder(model, [image.numpy()[None]], example_inputs=(image,))
    library = builder.build("fp32", options=EXACT)
    with torch.inference_mode():
        wanted = model(image).numpy()
    np.testing.assert_allclose(library(image.numpy()), wanted, rtol=1e-4, atol=1e-5)
    turned = image.numpy().transpose(0, 2, 3, 1)
    with pytest.raises(DataError, match=r"shape \(1, 8, 7, 3\).*accepted.*3, 8, 7"):
        library(turned)
    with pytest.raises(DataError, match=r"shape \(1, 1, 8, 7, 3\).*accepted.*3, 8, 7"):
        Builder(model, [turned[None]], example_inputs=(image,))
