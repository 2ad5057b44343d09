"""``build`` on recurrent models that see whole sequences: values against PyTorch, gates, open extents, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tvm_dual
from tvm_dual.builder import Builder
from tvm_dual.observations import Observations
from tvm_dual.options import AdvancedOptions

torch = pytest.importorskip("torch")

K, H, STEPS, BATCH = 20, 37, 9, 2
CELLS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
DENSE = AdvancedOptions(mode="dense")


def make_model(kind: str, **options):
    """Return a recurrent layer with nearly low-rank weights, as trained ones are."""
    generator = torch.Generator().manual_seed(0)
    model = CELLS[kind](K, H, **options).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            n, k = weight.shape
            strong = torch.randn(n, 4, generator=generator) @ torch.randn(4, k, generator=generator)
            weight.data = (0.5 * strong + 0.1 * torch.randn(n, k, generator=generator)) / k**0.5
    return model


def sequences(count: int, steps: int, batch: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, steps, batch, 4)) @ rng.standard_normal((4, K)) / 2).astype("float32")


def wanted(model, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        y, states = model(torch.from_numpy(x))
    return [value.numpy() for value in (y, *(states if isinstance(states, tuple) else (states,)))]


def any_length():
    dim = torch.export.Dim
    return ({0: dim("steps", min=1, max=500), 1: dim("batch", min=1, max=50)},)


def check(library, model, x: np.ndarray, tolerance: float) -> None:
    found = library(x)
    for ours, theirs in zip(found, wanted(model, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.fixture(scope="module", params=CELLS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind)


@pytest.fixture(scope="module")
def builder(model) -> Builder:
    return Builder(
        model,
        [sequences(5, STEPS, BATCH, seed) for seed in range(4)],
        example_inputs=(torch.zeros(STEPS, BATCH, K),),
        dynamic_shapes=any_length(),
    )


@pytest.fixture(scope="module", params=["rows", "dense"], ids=["both", "state"])
def dual(request, builder, dense):
    """Return the library whose state's matrix is gated, and the input's too or computed for all steps at once."""
    forms = {
        "input": request.param,
        "hidden": "rows",
        "rule": "damage",
        "limit": {"rows": 0.05, "dense": 0.005}[request.param],
    }
    sites = tuple(replace(site, **forms) for site in dense.report.plan.sites)
    return builder.build("int8", plan=replace(dense.report.plan, sites=sites))


@pytest.fixture(scope="module")
def dense(builder):
    return builder.build("fp32", options=DENSE)


@pytest.mark.parametrize(("steps", "batch"), [(STEPS, BATCH), (1, 1), (1, 3), (23, 1)])
def test_dense_is_exact_at_any_length_and_batch(dense, model, steps, batch):
    check(dense, model, sequences(1, steps, batch, 9)[0], 1e-5)


def test_dense_int8_is_close(builder, model):
    check(builder.build("int8", options=DENSE), model, sequences(1, STEPS, BATCH, 9)[0], 0.05)


def test_effort_reaches_from_the_little_module_to_every_row(dual, model):
    x = sequences(1, 15, 3, 9)[0]
    errors = {}
    for effort in (0.0, 1.0, float("inf")):
        dual.effort = effort
        errors[effort] = float(np.abs(dual(x)[0] - wanted(model, x)[0]).max())
        opened, rows = sum(dual.last_open_rows().values()), sum(dual.all_rows().values())
        assert (opened == 0) if effort == 0 else (opened == rows) if effort > 1 else (0 < opened < rows)
    dual.effort = 1.0
    assert errors[float("inf")] < 0.05 and errors[float("inf")] < errors[0.0]


def test_fixed_extents(kind, model):
    calibration = [sequences(6, STEPS, 1, seed) for seed in range(2)]
    library = tvm_dual.build(
        model, calibration, example_inputs=(torch.zeros(STEPS, 1, K),), precision="fp32", options=DENSE
    )
    check(library, model, sequences(1, STEPS, 1, 9)[0], 1e-5)
    with pytest.raises(tvm_dual.TvmDualError, match="shape"):
        library(sequences(1, STEPS + 1, 1)[0])


def test_streamed_calls_of_several_steps_go_on_where_the_last_one_ended(kind, model):
    program = torch.export.export(model, (torch.zeros(STEPS, 1, K),))
    library = tvm_dual.build(program, [sequences(8, STEPS, 1)], streaming=True, precision="fp32", options=DENSE)
    calls, step = sequences(3, STEPS, 1, 9), library.stream()
    found = np.concatenate([step(call) for call in calls])
    np.testing.assert_allclose(found, wanted(model, np.concatenate(calls))[0], atol=1e-5)


def test_streamed_sequences_are_observed_as_one_run(kind, model):
    program = torch.export.export(model, (torch.zeros(STEPS, 1, K),))
    observed = Builder(program, [sequences(8, STEPS, 1, s) for s in range(2)], streaming=True)._observations[f"{kind}0"]
    assert observed.runs == (0, 8 * STEPS)


def test_layers_and_directions(kind):
    model = make_model(kind, num_layers=2, bidirectional=True)
    library = tvm_dual.build(
        model,
        [sequences(6, STEPS, BATCH)],
        example_inputs=(torch.zeros(STEPS, BATCH, K),),
        precision="fp32",
        options=DENSE,
    )
    check(library, model, sequences(1, STEPS, BATCH, 9)[0], 1e-5)
    assert [(site.name, site.input) for site in library.report.plan.sites] == [
        (f"{kind}{i}", "dense") for i in range(4)
    ]


def test_what_is_observed_are_the_states_before_each_step(builder, model, kind):
    observed: Observations = builder._observations[f"{kind}0"]
    x = np.concatenate([sequences(5, STEPS, BATCH, seed) for seed in range(4)])
    assert observed.runs == tuple(range(0, len(x) * BATCH * STEPS, STEPS))
    # The third call's second sample.
    one = slice((2 * BATCH + 1) * STEPS, (2 * BATCH + 2) * STEPS)
    np.testing.assert_array_equal(observed.inputs[0][one], x[2, :, 1])
    for t in (0, 1, STEPS - 1):
        states = [np.zeros((1, H))] * len(observed.inputs[1:]) if t == 0 else wanted(model, x[2, :t, 1])[1:]
        for found, state in zip(observed.inputs[1:], states, strict=True):
            np.testing.assert_allclose(found[one][t], state.reshape(-1), atol=1e-5)


def test_a_loaded_library_gives_the_same_bits(dual, tmp_path):
    x = sequences(1, 7, 2, 9)[0]
    loaded = tvm_dual.load(dual.export_library(tmp_path / "sequence.so"))
    for before, after in zip(dual(x), loaded(x), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("gated", "form"), [(0.5, "rows"), (2.0, "dense")])
def test_a_plan_for_large_batches_stays_dense_where_that_is_faster(monkeypatch, gated, form):
    """Half of the rows closed; but a gate is each sample's own, and reads its rows for each of them."""

    def times(libraries, *_, **__):
        return [gated if library.metadata.thresholds else 1.0 for library in libraries]

    for part in ("search", "planner"):
        monkeypatch.setattr(f"tvm_dual.{part}.median_microseconds", times)
    k, steps, batch = 256, 4, 16
    layer = torch.nn.LSTM(k, k).eval()
    rng = np.random.default_rng(0)
    calibration = [rng.standard_normal((3, steps, batch, k)).astype("float32") for _ in range(2)]
    options = AdvancedOptions(rule="damage", dimension_share=0.5, closed_share=0.5)
    library = tvm_dual.build(
        *(layer, calibration),
        example_inputs=(torch.zeros(steps, batch, k),),
        options=options,
    )
    (site,) = library.report.plan.sites
    assert form in (site.input, site.hidden) and site.gated == (form == "rows")
