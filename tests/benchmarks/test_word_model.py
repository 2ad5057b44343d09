"""The word model: checkpoints that are none, the layer as ONNX, and perplexity by its definition."""

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.word_model import layer_onnx, load_checkpoint, save_checkpoint
from tvm_dual.errors import ModelError

WORDS, HIDDEN = 30, 12


class Tied(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        torch.manual_seed(3)
        self.emb = torch.nn.Embedding(WORDS, HIDDEN)
        self.rnn = getattr(torch.nn, cell)(HIDDEN, HIDDEN, batch_first=True)
        self.out = torch.nn.Linear(HIDDEN, WORDS)
        self.out.weight = self.emb.weight


def vocab():
    return ["<unk>", *(f"word{i}" for i in range(1, WORDS))]


def checkpoint(folder, kind="LSTM", **changes):
    path = folder / "model.pt"
    save_checkpoint(path, Tied(kind), kind, vocab(), 10.0)
    if changes:
        values = torch.load(path, weights_only=True)
        values["state"] |= changes.pop("state", {})
        values |= changes
        torch.save({name: value for name, value in values.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_perplexity_is_that_of_the_whole_model(tmp_path, cell):
    path = checkpoint(tmp_path, cell)
    model = load_checkpoint(path)
    assert (model.cell, model.hidden, model.vocab) == (cell, HIDDEN, tuple(vocab()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    words = np.random.default_rng(0).integers(0, WORDS, (3, 400))
    # The same in float64, from the stored weights, without any of our code.
    state = {name: value.double() for name, value in torch.load(path, weights_only=True)["state"].items()}
    layer = getattr(torch.nn, cell)(HIDDEN, HIDDEN, batch_first=True).double()
    layer.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("rnn.")})
    found = layer(state["emb.weight"][torch.from_numpy(words[:, :-1])])[0]
    chances = torch.log_softmax(found @ state["emb.weight"].T + state["out.bias"], dim=-1)
    picked = torch.gather(chances, 2, torch.from_numpy(words[:, 1:])[..., None])
    assert model.perplexity(model.states(words[:, :-1]), words[:, 1:]) == pytest.approx(
        float(torch.exp(-picked.detach().mean())), rel=1e-5
    )


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_layer_as_onnx(tmp_path, cell):
    model = load_checkpoint(checkpoint(tmp_path, cell))
    words = np.arange(20)[None]
    session = onnxruntime.InferenceSession(layer_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": model.embedding[words[0]][:, None]})[0]
    np.testing.assert_allclose(found[:, 0], model.states(words)[0], atol=1e-5)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"cell": "RNN"}, "cell 'RNN'; accepted: LSTM, GRU"),
        ({"cell": "GRU"}, r"rnn\.weight_ih_l0 is torch.float16 \(48, 12\); accepted: floating point \(36, 12\)"),
        ({"cell": None}, "no 'cell' of type str"),
        ({"hidden": 13}, r"emb\.weight is torch.float16 \(30, 12\); accepted: floating point \(30, 13\)"),
        ({"hidden": "12"}, "no 'hidden' of type int"),
        ({"vocab": vocab()[:-1]}, r"emb\.weight is .* accepted: floating point \(29, 12\)"),
        ({"vocab": ["the"] * WORDS}, "list of different words"),
        ({"state": {"out.bias": None}}, "out.bias is missing"),
        ({"state": {"out.bias": torch.zeros(WORDS, dtype=torch.int64)}}, "out.bias is torch.int64"),
        ({"state": {"rnn.bias_hh_l0": torch.full((48,), float("nan"))}}, "rnn.bias_hh_l0 holds NaN"),
        ({"state": {"emb.weight": torch.full((WORDS, HIDDEN), float("inf"))}}, "emb.weight holds NaN or infinity"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, changes, text):
    with pytest.raises(ModelError, match=text):
        load_checkpoint(checkpoint(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken", b"\x80\x02."])
def test_what_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.pt"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2]])
def test_a_file_of_something_else(tmp_path, value):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="no 'cell'"):
        load_checkpoint(tmp_path / "a.pt")


def test_an_absent_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(ModelError, match=r"train\.py"):
        load_checkpoint(tmp_path / "absent.pt")
