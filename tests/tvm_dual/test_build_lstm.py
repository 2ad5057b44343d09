"""``build`` on a streamed LSTM of two layers: values against PyTorch, gates of both rules, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tvm_dual
from tvm_dual.builder import Builder
from tvm_dual.options import AdvancedOptions

torch = pytest.importorskip("torch")

K, H, OUTPUTS = 24, 37, 8
ROWS = {"lstm0": 4 * H, "lstm1": 4 * H}


class Model(torch.nn.Module):
    """Two LSTM layers and a linear one; nearly low-rank weights, as trained ones are."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = torch.nn.LSTM(K, H, 2), torch.nn.Linear(H, OUTPUTS)
        generator = torch.Generator().manual_seed(0)
        for weight in self.rnn.parameters():
            if weight.dim() == 2:
                n, k = weight.shape
                strong = torch.randn(n, 4, generator=generator) @ torch.randn(4, k, generator=generator)
                weight.data = (0.5 * strong + 0.15 * torch.randn(n, k, generator=generator)) / k**0.5
            else:
                weight.data = 0.2 * torch.randn(weight.shape, generator=generator)

    def forward(self, x, states=None):
        y, states = self.rnn(x, states)
        return self.out(y), *states


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return Model().eval()


@pytest.fixture(scope="module")
def streams() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((4, K)) / 2
    return [(rng.standard_normal((150, 4)) @ mixing).astype("float32") for _ in range(2)]


@pytest.fixture(scope="module")
def exact(model, streams):
    """Return outputs ``(calls, OUTPUTS)`` and final states h and c ``(2, H)`` of the first stream."""
    with torch.no_grad():
        y, h, c = model(torch.tensor(streams[0])[:, None])
    return y[:, 0].numpy(), h[:, 0].numpy(), c[:, 0].numpy()


@pytest.fixture(scope="module")
def builder(model, streams) -> Builder:
    return Builder(model, streams, example_inputs=(torch.zeros(1, 1, K),), streaming=True)


@pytest.fixture(scope="module")
def dense(builder):
    return builder.build("fp32", options=AdvancedOptions(mode="dense"))


@pytest.fixture(scope="module", params=["damage", "activation"])
def gated(request, builder, dense):
    """Return the int8 library in which both matrices of both layers are gated, by each rule."""
    forms = {"input": "rows", "hidden": "rows", "rule": request.param, "limit": 0.05}
    sites = [replace(site, **forms) if site.kind == "lstm" else site for site in dense.report.plan.sites]
    return builder.build("int8", plan=replace(dense.report.plan, sites=tuple(sites)))


@pytest.fixture(scope="module")
def state_gated(builder, dense):
    """Return the fp32 library in which the state's matrices alone are gated."""
    forms = {"input": "dense", "hidden": "rows", "rule": "damage", "limit": 0.01}
    sites = [replace(site, **forms) if site.kind == "lstm" else site for site in dense.report.plan.sites]
    return builder.build("fp32", plan=replace(dense.report.plan, sites=tuple(sites)))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square error relative to the deviation of what is wanted."""
    return float(np.sqrt(((found - wanted) ** 2).mean() / wanted.var()))


def opened(library, stream, effort) -> int:
    library.effort, step, total = effort, library.stream(), 0
    for frame in stream:
        step(frame)
        total += sum(library.last_open_rows().values())
    library.effort = 1.0
    return total


def test_every_row_in_fp32_is_the_model(dense, streams, exact, run_stream):
    np.testing.assert_allclose(run_stream(dense, streams[0]), exact[0], rtol=0, atol=2e-6)
    assert [site.name for site in dense.report.plan.sites] == ["lstm0", "lstm1", "dense0"]
    assert [(site.input, site.hidden) for site in dense.report.plan.sites] == [("dense", "dense")] * 2 + [("dense", "")]


def test_both_states_of_both_layers_are_the_model_s(dense, streams, exact):
    names = [state.name for state in dense.metadata.states]
    assert names == ["state0_h", "state0_c", "state1_h", "state1_c"]
    states = dense.initial_state()
    for frame in streams[0]:
        _, *states = dense(frame.reshape(dense.metadata.inputs[0].shape), *states)
    _, h, c = exact
    for found, wanted in zip(states, (h[0], c[0], h[1], c[1]), strict=True):
        np.testing.assert_allclose(found.reshape(-1), wanted, rtol=0, atol=2e-6)


def test_a_step_is_one_kernel_that_updates_both_states_in_place(gated):
    """The region's layout: where a state is read is where it is written."""
    described = gated.metadata
    first = len(described.inputs) + len(described.states) + len(described.thresholds) + len(described.weights)
    first += len(described.outputs)
    n = len(described.inputs)
    states = described.offsets[n : n + 4]
    assert len(set(states)) == 4 and described.offsets[first : first + 4] == states


def test_a_build_stays_within_its_budget(builder, streams, exact, run_stream):
    library = builder.build("int8", max_drop=0.1, options=AdvancedOptions(search_steps=0))
    plan = library.report.plan
    assert plan.quality >= 0.9 and {trial.rule for trial in plan.trials} == {"damage", "activation"}
    assert error(run_stream(library, streams[0]), exact[0]) <= 0.12


def test_open_rows_grow_with_effort(gated, streams):
    efforts = gated.metadata.plan.efforts
    found = [opened(gated, streams[0][:40], effort) for effort in efforts]
    assert found == sorted(found) and found[0] == 0 and 0 < found[efforts.index(1.0)] < found[-1]
    assert gated.all_rows() == ROWS and found[-1] == 40 * sum(ROWS.values())


def test_the_error_falls_with_effort(gated, streams, exact, run_stream):
    found = {}
    for effort in (0.0, 0.25, 1.0, float("inf")):
        gated.effort = effort
        found[effort] = run_stream(gated, streams[0])
    gated.effort = 1.0
    assert error(found[float("inf")], exact[0]) < 0.05
    # Against every row open: the rounding of bytes, which both share, may go either way against float32.
    errors = {effort: error(values, found[float("inf")]) for effort, values in found.items()}
    assert 0 == errors[float("inf")] < errors[1.0] < errors[0.25] <= errors[0.0] < 1


def test_the_state_s_matrix_gated_alone(state_gated, streams, exact, run_stream):
    state_gated.effort = float("inf")
    np.testing.assert_allclose(run_stream(state_gated, streams[0]), exact[0], rtol=0, atol=2e-6)
    state_gated.effort = 1.0
    assert 0 < opened(state_gated, streams[0][:40], 1.0) < 40 * sum(ROWS.values())
    assert error(run_stream(state_gated, streams[0]), exact[0]) < 0.5


def test_little_modules_alone(builder, streams, exact, run_stream):
    library = builder.build("int8", options=AdvancedOptions(mode="little", dimension_share=0.5))
    assert [(s.input, s.hidden) for s in library.report.plan.sites[:2]] == [("little", "little")] * 2
    assert error(run_stream(library, streams[0]), exact[0]) < 0.5


def test_a_reloaded_library_gives_the_same_bits(gated, streams, run_stream, tmp_path):
    again = tvm_dual.load(gated.export_library(tmp_path / "lstm.so"))
    assert again.metadata == gated.metadata
    np.testing.assert_array_equal(run_stream(again, streams[0]), run_stream(gated, streams[0]))
