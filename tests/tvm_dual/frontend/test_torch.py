"""The PyTorch importer: recurrent layers agree with PyTorch at any length and batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay_passes.expose_inputs import ExposeInputs
from relay_passes.pipeline import prepare_pipeline
from tests.tvm_dual.frontend.conftest import compiled_module, stream
from tvm_dual.frontend.dispatch import import_model
from tvm_dual.sites import find_sites

torch = pytest.importorskip("torch")
Dim = torch.export.Dim
ANY_TWO = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


class Recurrent(torch.nn.Module):
    """One recurrent layer, all of whose results are outputs."""

    def __init__(self, kind: str, inputs: int, hidden: int, **options) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(inputs, hidden, **options)

    def forward(self, x, h=None, c=None):
        start = h if c is None else (h, c)
        y, final = self.rnn(x, start)
        return (y, *final) if isinstance(final, tuple) else (y, final)


class WordModel(torch.nn.Module):
    """Token ids to log probabilities."""

    def __init__(self, kind: str, hidden: int = 20, layers: int = 2, words: int = 30) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(words, 8)
        self.rnn = getattr(torch.nn, kind)(8, hidden, layers, batch_first=True, dropout=0.3 * (layers > 1))
        self.out = torch.nn.Linear(hidden, words)

    def forward(self, ids, start=None):
        y, final = self.rnn(self.embedding(ids), start)
        return torch.log_softmax(self.out(y), -1), final


class Cells(torch.nn.Module):
    """An LSTM cell and a GRU cell over every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = torch.nn.LSTMCell(5, 19), torch.nn.GRUCell(19, 7, bias=False)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], 19)
        g, results = x.new_zeros(x.shape[1], 7), []
        for step in range(x.shape[0]):
            h, c = self.lstm(x[step], (h, c))
            g = self.gru(h, g)
            results.append(g)
        return torch.stack(results), h, c


def expected(model, *inputs) -> list[np.ndarray]:
    """Return PyTorch's results in evaluation mode, as one list."""
    with torch.no_grad():
        results = model.eval()(*inputs)
    return [value.numpy() for value in torch.utils._pytree.tree_leaves(results)]


def agree(found, wanted) -> None:
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["LSTM", "GRU"]),
    inputs=st.integers(1, 20),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    given_state=st.booleans(),
    calls=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=2, max_size=3),
)
def test_layers_of_any_form_at_any_length_and_batch(
    kind, inputs, hidden, layers, bidirectional, batch_first, bias, given_state, calls
):
    torch.manual_seed(hidden)
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    model = Recurrent(kind, inputs, hidden, num_layers=layers, **options)
    names = ("h", "c")[: (2 if kind == "LSTM" else 1) * given_state]

    def arguments(time, batch):
        x = torch.randn(*((batch, time) if batch_first else (time, batch)), inputs)
        return (x, *(torch.randn(layers * (1 + bidirectional), batch, hidden) for _ in names))

    axes = ("batch", "time") if batch_first else ("time", "batch")
    sizes = {name: Dim(name, min=1) for name in axes}
    dynamic = ({i: sizes[name] for i, name in enumerate(axes)}, *({1: sizes["batch"]} for _ in names))
    library, sites = compiled_module(import_model(model, arguments(4, 2), dynamic_shapes=dynamic))
    assert len(sites) == layers * (1 + bidirectional)
    for call in calls:
        values = arguments(*call)
        agree(library(*(value.numpy() for value in values)), expected(model, *values))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_fixed_shapes_and_an_exported_program(kind):
    model, x = Recurrent(kind, 6, 17, num_layers=2, bidirectional=True).eval(), torch.randn(5, 2, 6)
    wanted = expected(model, x)
    for source, example in ((model, (x,)), (torch.export.export(model, (x,)), None)):
        library, sites = compiled_module(import_model(source, example))
        assert [site.kind for site in sites] == [kind.lower()] * 4
        assert [site.rows_per_call for site in sites] == [10] * 4
        agree(library(x.numpy()), wanted)


def test_a_word_model_at_any_length():
    torch.manual_seed(0)
    model = WordModel("LSTM")
    assert model.training
    program = import_model(model, (torch.zeros(2, 4, dtype=torch.int64),), dynamic_shapes=(ANY_TWO,))
    assert model.training and model.rnn.training
    library, sites = compiled_module(program)
    assert [site.name for site in sites] == ["lstm0", "lstm1", "dense0"]
    assert [site.consumers for site in sites[:2]] == [("lstm1",), ("dense0",)]
    assert library.metadata.inputs[0].dtype == "int64"
    for shape in ((1, 1), (3, 9)):
        ids = torch.randint(0, 30, shape)
        agree(library(ids.numpy()), expected(model, ids))


def test_weights_of_a_site_are_in_the_order_of_onnx():
    model = Recurrent("LSTM", 3, 5)
    module = prepare_pipeline()(import_model(model, (torch.randn(4, 1, 3),)))
    (site,) = find_sites(module)
    i, f, g, o = model.rnn.weight_ih_l0.detach().numpy().reshape(4, 5, 3)
    np.testing.assert_array_equal(site.weight, np.concatenate([i, o, f, g]))
    assert site.recurrence.shape == (20, 5) and site.bias.shape == site.recurrent_bias.shape == (20,)
    assert (site.kind, site.hidden, site.rows_per_call) == ("lstm", 5, 4)
    assert list(ExposeInputs()(module)["main"].attrs["dual.observed"]) == ["lstm0.0", "lstm0.1", "lstm0.2", "lstm0.y"]


def test_an_lstm_of_one_step_can_be_rewritten():
    (site,) = find_sites(prepare_pipeline()(import_model(Recurrent("LSTM", 3, 5), (torch.randn(1, 1, 3),))))
    assert site.rows_per_call == 1 and site.can_rewrite and site.can_gate


def test_loops_over_cells():
    model, x = Cells(), torch.randn(3, 2, 5)
    module = import_model(model, (x,))
    library, sites = compiled_module(module)
    assert [site.kind for site in sites] == ["lstm", "gru"] * 3
    agree(library(x.numpy()), expected(model, x))


def test_import_does_not_grow_with_the_length():
    def size(module):
        bindings = sum(len(block.bindings) for block in module["main"].body.blocks)
        return len(module.functions), bindings

    model = WordModel("LSTM", layers=1).eval()
    sizes = {size(import_model(model, (torch.zeros(1, steps, dtype=torch.int64),))) for steps in (10, 1000)}
    assert len(sizes) == 1


def test_the_last_step_and_the_last_state():
    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(4, 6, num_layers=2, batch_first=True)

        def forward(self, x):
            y, final = self.rnn(x)
            return y[:, -1], final[-1], y[:, -1:], y[:, :-1], final[-2:]

    model, x = Last(), torch.randn(2, 3, 4)
    library, _ = compiled_module(import_model(model, (x,), dynamic_shapes=(ANY_TWO,)))
    for shape in ((3, 7, 4), (1, 2, 4)):
        x = torch.randn(shape)
        agree(library(x.numpy()), expected(model, x))


def test_weights_that_are_not_contiguous_and_are_changed_later():
    model = torch.nn.Sequential(torch.nn.Linear(6, 9))
    model[0].weight = torch.nn.Parameter(torch.randn(6, 9).t())
    x = torch.randn(2, 6)
    wanted = expected(model, x)
    module = import_model(model, (x,))
    with torch.no_grad():
        model[0].weight.zero_()
    library, _ = compiled_module(module)
    agree(library(x.numpy()), wanted)
    agree(library(np.asfortranarray(x.numpy())), wanted)


# Streaming.


@pytest.mark.parametrize("kind, states", [("LSTM", ["state0_h", "state0_c", "state1_h", "state1_c"]), ("GRU", None)])
@pytest.mark.parametrize("start", [False, True])
def test_a_stream_equals_the_whole_sequence(kind, states, start):
    torch.manual_seed(1)
    model, ids = WordModel(kind, hidden=19), torch.randint(0, 30, (1, 8))
    zero = torch.zeros(2, 1, 19)
    given = ((zero, zero.clone()) if kind == "LSTM" else zero,) if start else ()
    library, _ = compiled_module(import_model(model, (ids.expand(3, 8), *_widened(given)), streaming=True))
    described = library.metadata
    assert [tensor.name for tensor in described.states] == (states or ["state0_h", "state1_h"])
    assert [tensor.shape for tensor in described.inputs] == [(1, 1)]
    assert [tensor.shape for tensor in described.outputs] == [(1, 1, 30)]
    found = stream(library, ids[0].numpy())
    np.testing.assert_allclose(found, expected(model, ids)[0][0], rtol=0, atol=1e-5)


def _widened(states: tuple) -> tuple:
    """Give initial states a batch of three."""
    return torch.utils._pytree.tree_map(lambda state: state.expand(-1, 3, -1).contiguous(), states)


def test_open_extents_become_one_step():
    model, x = Recurrent("GRU", 4, 6), torch.randn(7, 1, 4)
    module = import_model(model, (x.repeat(1, 2, 1),), dynamic_shapes=(ANY_TWO,), streaming=True)
    library, _ = compiled_module(module)
    assert library.metadata.inputs[0].shape == (1, 1, 4)
    np.testing.assert_allclose(stream(library, x.numpy()), expected(model, x)[0][:, 0], rtol=0, atol=1e-5)


def test_a_program_of_one_step_streams():
    model, x = Recurrent("LSTM", 4, 6).eval(), torch.randn(7, 1, 4)
    library, _ = compiled_module(import_model(torch.export.export(model, (x[:1],)), streaming=True))
    np.testing.assert_allclose(stream(library, x.numpy()), expected(model, x)[0][:, 0], rtol=0, atol=1e-5)


def test_a_stream_starts_from_the_constants_of_the_model():
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.start = torch.nn.GRU(4, 6), torch.nn.Parameter(torch.randn(1, 1, 6))

        def forward(self, x):
            return self.rnn(x, self.start)[0]

    model, x = Learned(), torch.randn(5, 1, 4)
    library, _ = compiled_module(import_model(model, (x,), streaming=True))
    np.testing.assert_array_equal(library.initial_state()[0], model.start.detach().numpy())
    for _ in range(2):
        np.testing.assert_allclose(stream(library, x.numpy()), expected(model, x)[0][:, 0], rtol=0, atol=1e-5)


def test_cells_stream_one_step_at_a_time():
    model, x = Cells(), torch.randn(4, 1, 5)
    library, sites = compiled_module(import_model(model, (x,), streaming=True))
    assert [site.name for site in sites] == ["lstm0", "gru0"]
    np.testing.assert_allclose(stream(library, x.numpy()), expected(model, x)[0][:, 0], rtol=0, atol=1e-5)
