"""Builds of networks whose convolutions are not all sites: in groups, depthwise, transposed, or read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tvm_dual.builder import Builder
from tvm_dual.options import AdvancedOptions

#: Every layer exact.
EXACT = AdvancedOptions(mode="skip")


class Blocks(nn.Module):
    """Convolutions with batch normalization, a residual block, groups, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.body, self.body_norm = nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.head, self.up = nn.Conv2d(12, 5, 1), nn.ConvTranspose2d(5, 2, 2, 2)

    def forward(self, x):
        y = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.body_norm(self.body(y)) + y)
        y = nn.functional.relu6(self.depthwise(nn.functional.max_pool2d(y, 2)))
        return self.up(torch.sigmoid(self.head(y)))


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    torch.manual_seed(0)
    model = Blocks().eval()
    for norm in (model.stem_norm, model.body_norm):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


def test_a_torch_module_with_residuals_groups_and_transposed_convolutions(blocks):
    images = np.random.default_rng(2).standard_normal((4, 3, 18, 20)).astype("float32")
    library = Builder(blocks, [images], example_inputs=(torch.zeros(1, 3, 18, 20),)).build("fp32", options=EXACT)
    sites = {site.name: site.input for site in library.report.plan.sites}
    # The transposed one: of so few products either form may be faster.
    assert sites.pop("conv2d3") in ("dense", "columns")
    assert sites == {"conv2d0": "dense", "conv2d1": "columns", "conv2d2": "dense"}
    with torch.inference_mode():
        wanted = blocks(torch.from_numpy(images[:1])).numpy()
    np.testing.assert_allclose(library(images[:1]), wanted, rtol=1e-4, atol=1e-5)


class Residuals(nn.Module):
    """Sums that are read twice: a block of inverted residuals, SiLU, and a gate of a dense layer; layouts change."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(17, 16, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.each, self.back = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 16, 1)
        self.last, self.head = nn.Conv2d(16, 24, 3), nn.Linear(24, 10)

    def forward(self, x):
        y = self.narrow(x)
        y = y + self.back(nn.functional.relu6(self.each(nn.functional.relu6(self.wide(y)))))
        y = nn.functional.silu(self.last(y))
        z = self.head(y.mean((2, 3)))
        return z * torch.sigmoid(z)


def test_sums_that_are_read_twice_are_given_by_themselves():
    torch.manual_seed(4)
    model, images = Residuals().eval(), np.random.default_rng(4).standard_normal((3, 17, 9, 8)).astype("float32")
    library = Builder(model, [images], example_inputs=(torch.zeros(1, 17, 9, 8),)).build("fp32", options=EXACT)
    assert {site.name for site in library.report.plan.sites} == {*(f"conv2d{i}" for i in range(4)), "dense0"}
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images[:1])).numpy()
    np.testing.assert_allclose(library(images[:1]), wanted, rtol=1e-4, atol=1e-5)


def test_images_change_their_layout_around_convolutions_in_groups():
    torch.manual_seed(3)
    first, last = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 20, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=2), nn.ReLU(), last).eval()
    images = np.random.default_rng(3).standard_normal((3, 16, 9, 7)).astype("float32")
    library = Builder(model, [images], example_inputs=(torch.zeros(1, 16, 9, 7),)).build("fp32", options=EXACT)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images[:1])).numpy()
    np.testing.assert_allclose(library(images[:1]), wanted, rtol=1e-4, atol=1e-5)
