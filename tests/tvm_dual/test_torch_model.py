"""A marked model in PyTorch: it gives what the model gives, for many calls at once, and layers can be replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from relay_passes.pipeline import prepare_pipeline
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.sites import find_sites
from tvm_dual.torch_model import TorchModel, translatable


class Residual(nn.Module):
    """An addition of two branches, of which one has a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(5, 24, 3, padding=1, stride=2), nn.Conv2d(24, 24, (3, 1), padding=(1, 0))
        self.side = nn.Conv2d(5, 24, 1, stride=2, bias=False)

    def forward(self, x):
        return torch.relu(self.two(torch.relu(self.one(x))) + self.side(x))


NETWORKS = {
    "residual, mean, softmax": nn.Sequential(
        Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7), nn.Softmax(1)
    ),
    "normalized, pooled, sigmoid": nn.Sequential(
        nn.Conv2d(5, 16, 3, dilation=2),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 8, 1),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
    ),
    "groups, relu6, windows with padding": nn.Sequential(
        nn.Conv2d(5, 10, 3, padding=1, groups=5), nn.ReLU6(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(10, 4, 3), nn.Tanh()
    ),
    "asymmetric padding": nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(5, 6, 3), nn.ReLU()),
}


def module_of(network: nn.Module):
    imported = import_model(network.eval(), (torch.zeros(1, 5, 14, 11),))
    return prepare_pipeline()(imported)


def images(calls: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((calls, 1, 5, 14, 11)).astype("float32"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("calls", [1, 3])
def test_it_gives_what_the_model_gives(name, calls):
    torch.manual_seed(0)
    network, x = NETWORKS[name], images(calls)
    module = module_of(network)
    assert translatable(module)
    with torch.no_grad():
        (found,) = TorchModel(torch, module).run([x])
        wanted = torch.stack([network(one) for one in x])
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_sums_of_a_layer_are_replaced_before_what_follows_them():
    network, x = NETWORKS["normalized, pooled, sigmoid"], images(2)
    module = module_of(network)
    names = [site.name for site in find_sites(module)]
    model = TorchModel(torch, module)
    shape = (1, 10, 7, 16)
    added = torch.full(shape, -1.5, requires_grad=True)
    (found,) = model.run([x], {names[0]: lambda *_: added})
    # ReLU leaves nothing, so that the second convolution sees what batch normalization makes of zeros.
    normalized = network[2](torch.zeros(1, 16, 10, 7))
    wanted = network[6](network[5](network[4](normalized[:, :, :5, :3])))
    np.testing.assert_allclose(found[0].detach(), wanted.detach(), rtol=1e-4, atol=1e-5)


def test_the_exact_sums_and_what_is_added_are_given():
    network, x = NETWORKS["residual, mean, softmax"], images(2)
    module, seen = module_of(network), []
    model = TorchModel(torch, module)
    wanted = model.run([x])

    def halved(_image, added, exact):
        seen.append(None if added is None else tuple(added.shape))
        return exact() if added is None else (exact() - added) / 2 + added / 2

    names = [site.name for site in find_sites(module)]
    (found,) = model.run([x], dict.fromkeys(names[:3], halved))
    assert seen.count(None) == 2 and (1, 7, 6, 24) in seen
    assert not np.allclose(found.detach(), wanted[0].detach())


def test_gradients_reach_what_replaces_a_layer():
    network, x = NETWORKS["residual, mean, softmax"], images(2)
    module, weight = module_of(network), torch.ones((), requires_grad=True)
    model = TorchModel(torch, module)
    (found,) = model.run([x], {"conv2d0": lambda image, *_: image[:, ::2, ::2, :1].expand(-1, -1, -1, 24) * weight})
    found.square().sum().backward()
    assert weight.grad is not None and weight.grad != 0


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Conv2d(5, 6, 3), nn.MaxPool2d(3, 2, ceil_mode=True)), "windows that PyTorch rounds up"),
        (nn.Sequential(nn.Conv2d(5, 6, 3), nn.GELU()), "an operator that is not known"),
    ],
)
def test_what_is_not_known_is_said_before(network, why):
    assert not translatable(module_of(network)), why
