"""Compiled code is shared by layers of one shape, and what it is given is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from schedules import compiling
from tvm_dual.builder import Builder
from tvm_dual.model import Model

SHAPE = (1, 24, 9, 8)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    layers = [nn.Conv2d(24, 24, 3, padding=1) for _ in range(4)]
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
    images = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")
    return Builder(network, [images[:, 0]], example_inputs=(torch.zeros(SHAPE),)).model("fp32")


def test_layers_of_one_shape_are_compiled_once(model, monkeypatch):
    made = []
    plain = compiling.compiled
    monkeypatch.setattr(compiling, "compiled", lambda *given: made.append(given) or plain(*given))
    names = ("conv2d1", "conv2d2")
    forms = [model.site_forms({name: ("dense", "")}) for name in names]
    first, second = (model.compiler.of_site(name).compile(form) for name, form in zip(names, forms, strict=True))
    assert len(made) == 1
    # Each has weights, inputs and results of its own.
    for name, library, other in (("conv2d1", first, second), ("conv2d2", second, first)):
        site, call = model.sites[name], model.observations[name].examples[0]
        found = library(*call)
        other(*(np.ones_like(x) for x in call))
        np.testing.assert_array_equal(found, library(*call))
        # Alone, layers read and write images channels last.
        layer = nn.functional.conv2d(
            torch.from_numpy(call[0]).permute(0, 3, 1, 2),
            torch.from_numpy(site.weight).reshape(24, 3, 3, 24).permute(0, 3, 1, 2),
            torch.from_numpy(site.bias),
            padding=1,
        )
        wanted = layer.relu().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_differs_in_its_weights_alone_is_compiled_once(model, monkeypatch):
    forms = model.site_forms(dict.fromkeys(model.sites, ("dense", "")))
    first = model.compiler.compile(forms)
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled again"))
    network = nn.Sequential(*(part for _ in range(4) for part in (nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()))).eval()
    images = np.random.default_rng(1).standard_normal((4, *SHAPE)).astype("float32")
    other = Builder(network, [images], example_inputs=(torch.zeros(SHAPE),)).model("fp32").compiler.compile(forms)
    image = images[0]
    assert not np.allclose(first(image), other(image), atol=1e-2)
    np.testing.assert_allclose(other(image), network(torch.from_numpy(image)).detach(), rtol=1e-4, atol=1e-4)


def test_code_that_was_not_asked_for_in_a_while_is_forgotten(model, monkeypatch):
    monkeypatch.setattr(compiling, "_MOST", 1)
    monkeypatch.setattr(compiling, "compiled", lambda module, *_: object())
    once, (first, second) = compiling.CompiledOnce(), (model.compiler.of_site(n).module for n in ("conv2d0", "conv2d1"))
    isa, code = model.compiler._isa, object()
    code = once(first, isa)
    assert once(first, isa) is code and once(first, isa, 2) is not code
    assert once(first, isa) is not code
    assert once(second, isa) is not once(first, isa)
