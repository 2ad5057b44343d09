"""``build`` on recurrent models from PyTorch: token ids, models that are one layer."""

from __future__ import annotations

import numpy as np
import pytest

import tvm_dual
from tvm_dual.errors import DataError, ModelError
from tvm_dual.options import AdvancedOptions

torch = pytest.importorskip("torch")


class WordModel(torch.nn.Module):
    """Token ids to log probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = torch.nn.Embedding(50, 16), torch.nn.LSTM(16, 33, batch_first=True)
        self.out = torch.nn.Linear(33, 50)

    def forward(self, ids):
        return torch.log_softmax(self.out(self.rnn(self.embedding(ids))[0]), -1)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, 80)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WordModel()


@pytest.fixture(scope="module")
def library(model, ids):
    """Return the streamed model in fp32, every row computed."""
    example = (torch.zeros(1, 1, dtype=torch.int64),)
    options = AdvancedOptions(mode="dense")
    return tvm_dual.build(model, [ids], example_inputs=example, streaming=True, precision="fp32", options=options)


def test_a_streamed_word_model(library, model, ids):
    with torch.no_grad():
        wanted = model.eval()(torch.tensor(ids)[None])[0].numpy()
    step = library.stream()
    np.testing.assert_allclose([step(word).reshape(-1) for word in ids[:, None]], wanted, rtol=0, atol=1e-5)
    assert {site.name: site.input for site in library.report.plan.sites} == {"dense0": "dense", "lstm0": "dense"}


def test_token_ids_survive_the_file(library, ids, tmp_path):
    again = tvm_dual.load(library.export_library(tmp_path / "words.so"))
    assert again.metadata == library.metadata
    (described,) = again.metadata.inputs
    assert (described.dtype, described.below) == ("int64", 50)
    one, other = library.stream(), again.stream()
    np.testing.assert_array_equal([one(word) for word in ids[:9, None]], [other(word) for word in ids[:9, None]])


@pytest.mark.parametrize(
    "data, text",
    [
        ([np.zeros(3, "float32")], r"'ids'.*dtype float32.*int64"),
        ([np.array([1, 50])], r"'ids'.*1 to 50.*accepted: 0 to 49"),
        ([np.array([-1, 2])], r"'ids'.*-1 to 2.*accepted: 0 to 49"),
    ],
)
def test_calibration_with_wrong_ids(library, data, text):
    with pytest.raises(DataError, match=text):
        tvm_dual.calibration.check_calibration(data, library.metadata.inputs)


def test_a_model_that_is_one_layer():
    model, x = torch.nn.LSTM(5, 9), np.random.default_rng(0).standard_normal((60, 1, 1, 5)).astype("float32")
    settings = {"streaming": True, "precision": "fp32", "options": AdvancedOptions(mode="dense")}
    library = tvm_dual.build(model, [x], example_inputs=(torch.zeros(1, 1, 5),), **settings)
    with torch.no_grad():
        wanted = model(torch.tensor(x[:, 0]))[0].numpy()
    step = library.stream()
    np.testing.assert_allclose([step(frame) for frame in x], wanted[:, None], rtol=0, atol=1e-5)


def test_a_module_without_example_inputs(model, ids):
    with pytest.raises(ModelError, match=r"WordModel.*example_inputs"):
        tvm_dual.build(model, [ids], streaming=True)
