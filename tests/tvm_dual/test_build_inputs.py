"""``build`` on models with several inputs: two features, and initial states that the caller gives."""

from __future__ import annotations

import numpy as np
import pytest

import tvm_dual
from tvm_dual.builder import Builder
from tvm_dual.options import AdvancedOptions

torch = pytest.importorskip("torch")

K, H, LAYERS = 8, 19, 2
EXACT = {"precision": "fp32", "options": AdvancedOptions(mode="dense")}


class Sum(torch.nn.Module):
    """Two features, added, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.rnn = torch.nn.Linear(K, 24), torch.nn.Linear(6, 24), torch.nn.GRU(24, H)

    def forward(self, x, z):
        return self.rnn(torch.relu(self.one(x) + self.other(z)))[0]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def test_two_features_streamed_from_the_calibration_to_the_file(tmp_path):
    torch.manual_seed(0)
    model = Sum().eval()
    calibration = [{"z": normal(40, 6, seed=s), "x": normal(40, K, seed=9 + s)} for s in range(2)]
    examples = (torch.zeros(1, 1, K), torch.zeros(1, 1, 6))
    library = tvm_dual.build(model, calibration, example_inputs=examples, streaming=True, **EXACT)
    again = tvm_dual.load(library.export_library(tmp_path / "sum.so"))
    x, z = normal(9, 1, K, seed=3), normal(9, 1, 6, seed=4)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x), torch.from_numpy(z)).numpy()
    for one in (library, again):
        step = one.stream()
        found = np.stack([step(*call)[0] for call in zip(x, z, strict=True)])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(tvm_dual.DataError, match="1 arrays; accepted: 2"):
        library.stream()(x[0])


@pytest.fixture(scope="module", params=["LSTM", "GRU"])
def layer(request):
    torch.manual_seed(0)
    return getattr(torch.nn, request.param)(K, H, LAYERS)


def called_with(layer, calls: int, steps: int, batch: int, seed: int = 0) -> tuple:
    """Return what the layer is called with, so many times: a sequence, and a state or two."""
    states = [0.3 * normal(calls, LAYERS, batch, H, seed=seed + i) for i in (1, 2)]
    return normal(calls, steps, batch, K, seed=seed), tuple(states) if isinstance(layer, torch.nn.LSTM) else states[0]


def test_initial_states_that_are_inputs(layer):
    tree = torch.utils._pytree
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    items = [called_with(layer, 3, 6, 2), called_with(layer, 2, 4, 1, seed=5)]
    example = tree.tree_map(lambda array: torch.from_numpy(array[0]), items[0])
    dynamic = ({0: steps, 1: batch}, tree.tree_map(lambda _: {1: batch}, items[0][1]))
    builder = Builder(layer, items, example_inputs=example, dynamic_shapes=dynamic)
    name = f"{type(layer).__name__.lower()}0"
    first = builder._observations[name].inputs[1:]
    for found, given in zip(first, tree.tree_leaves(items[0][1]), strict=True):
        np.testing.assert_array_equal(found[0], given[0, 0, 0])
    library = builder.build(**EXACT)
    assert library.report.plan.quality == pytest.approx(1, abs=1e-4)
    call = tree.tree_map(lambda array: array[0], called_with(layer, 1, 9, 3, seed=7))
    with torch.no_grad():
        wanted = tree.tree_leaves(layer(*tree.tree_map(torch.from_numpy, call)))
    for found, value in zip(library(*tree.tree_leaves(call)), wanted, strict=True):
        np.testing.assert_allclose(found, value.numpy(), rtol=0, atol=1e-5)
