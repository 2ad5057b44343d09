"""What the PyTorch importer does not take, it names."""

from __future__ import annotations

import pytest

from tvm_dual.errors import ModelError
from tvm_dual.frontend.dispatch import import_model

torch = pytest.importorskip("torch")
nn = torch.nn
weight_norm = nn.utils.parametrizations.weight_norm


class Wrapped(nn.Module):
    """A layer called ``memory``, and a function from the layer and the inputs to the outputs."""

    def __init__(self, layer, call) -> None:
        super().__init__()
        self.memory, self._call = layer, call

    def forward(self, *inputs):
        return self._call(self.memory, *inputs)


def output(layer, *inputs):
    return layer(*inputs)[0]


def packed(layer, x):
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
    return nn.utils.rnn.pad_packed_sequence(layer(sequence)[0])[0]


def computed_state(layer, x):
    return layer(x, x.mean(dim=0, keepdim=True))[0]


@pytest.mark.parametrize(
    "layer, call, text",
    [
        (nn.LSTM(4, 6, proj_size=2), output, r"layer 'memory' \(LSTM\): proj_size is 2; accepted: 0"),
        (nn.RNN(4, 6), output, r"layer 'memory' \(RNN\).*accepted recurrent layers: LSTM and GRU"),
        (nn.GRU(4, 6), packed, "packed sequences.*accepted: plain tensors"),
        (nn.GRU(4, 6).double(), output, r"'memory\.weight_ih_l0'.*float64.*accepted: float32.*model\.float\(\)"),
        (nn.LSTM(4, 6).bfloat16(), output, r"'memory\.weight_ih_l0'.*bfloat16.*accepted: float32"),
        (nn.GRU(5, 6), output, r"torch\.export refuses it.*\(3, 2, 4\)"),
        (weight_norm(nn.GRU(4, 6), "weight_hh_l0"), output, r"'memory'.*computed by the model.*accepted: parameters"),
    ],
)  # fmt: skip
def test_modules(layer, call, text):
    with pytest.raises(ModelError, match=text):
        import_model(Wrapped(layer, call), (torch.zeros(3, 2, 4),))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_numbers(value):
    model = nn.LSTM(4, 6)
    with torch.no_grad():
        model.weight_hh_l0[3, 2] = float(value)
    program = torch.export.export(model.eval(), (torch.zeros(3, 2, 4),))
    for source, example in ((model, (torch.zeros(3, 2, 4),)), (program, None)):
        with pytest.raises(ModelError, match=r"'weight_hh_l0'.*NaN or infinity.*accepted"):
            import_model(source, example)


def test_a_mask_may_hold_infinity():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

        def forward(self, x):
            return torch.softmax(x + self.mask, -1)

    assert "main" in [target.name_hint for target in import_model(Masked(), (torch.zeros(1, 2),)).functions]


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4)])
def test_sequences_without_steps_or_samples(shape):
    with pytest.raises(
        ModelError, match=rf"input 'input': shape \({shape[0]}, {shape[1]}, 4\); accepted: extents from 1"
    ):
        import_model(nn.LSTM(4, 6), (torch.zeros(shape),))


def test_complex_weights():
    with pytest.raises(ModelError, match=r"'weight': torch\.complex64; accepted: float32"):
        import_model(nn.Linear(4, 6).to(torch.complex64), (torch.zeros(3, 4),))


def test_an_exported_program_as_a_module():
    program = torch.export.export(nn.LSTM(4, 6).eval(), (torch.zeros(3, 2, 4),))
    with pytest.raises(ModelError, match=r"torch\.export refuses it"):
        import_model(program.module(), (torch.zeros(3, 2, 4),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_inputs_of_other_dtypes(dtype):
    with pytest.raises(ModelError, match=rf"input 0.*{dtype}.*accepted.*float32"):
        import_model(nn.LSTM(4, 6), (torch.zeros(3, 2, 4, dtype=dtype),))


@pytest.mark.parametrize("inputs, text", [(("x",), "input 0: str"), ((3,), "input 0: int"), (None, "example_inputs")])
def test_inputs_that_are_no_tensors(inputs, text):
    with pytest.raises(ModelError, match=text):
        import_model(nn.LSTM(4, 6), inputs)


def test_example_inputs_for_what_needs_none(tmp_path):
    program = torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),))
    for model in (program, tmp_path / "model.onnx"):
        with pytest.raises(ModelError, match=r"example_inputs.*accepted.*nn\.Module"):
            import_model(model, (torch.zeros(1, 2),))


def test_programs():
    x = torch.zeros(3, 2, 4)
    program = torch.export.export(nn.LSTM(4, 6, 2, dropout=0.5).train(), (x,))
    with pytest.raises(ModelError, match=r"layer 'lstm' \(LSTM\).*training mode.*model\.eval"):
        import_model(program)
    program = torch.export.export(nn.LSTM(4, 6, proj_size=2).eval(), (x,))
    with pytest.raises(ModelError, match=r"LSTM.*proj_size 0"):
        import_model(program)
    program = torch.export.export(nn.RNN(4, 6).eval(), (x,))
    with pytest.raises(ModelError, match=r"RNN.*accepted recurrent layers"):
        import_model(program)


def test_a_module_that_keeps_its_state_to_itself():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6)
            self.register_buffer("state", torch.zeros(1, 1, 6))

        def forward(self, x):
            y, final = self.rnn(x, self.state)
            self.state.copy_(final)
            return y

    with pytest.raises(ModelError, match=r"'state'.*accepted.*output"):
        import_model(Stateful(), (torch.zeros(3, 1, 4),))


def test_an_operator_that_tvm_does_not_import():
    with pytest.raises(ModelError, match="TVM cannot import"):
        import_model(Wrapped(nn.Identity(), lambda _, x: torch.linalg.det(x)), (torch.zeros(2, 3, 3),))


@pytest.mark.parametrize(
    "layer, call, text",
    [
        (nn.LSTM(4, 6, bidirectional=True), output, r"layer 'memory' \(LSTM\).*backwards.*accepted"),
        (nn.GRU(4, 4), computed_state, r"layer 'memory' \(GRU\).*state h that the model computes.*accepted"),
    ],
)
def test_what_cannot_be_streamed(layer, call, text):
    with pytest.raises(ModelError, match=text):
        import_model(Wrapped(layer, call), (torch.zeros(3, 2, 4),), streaming=True)
