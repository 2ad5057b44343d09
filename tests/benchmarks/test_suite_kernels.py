"""The kernels of suites, and the command that tunes them."""

from __future__ import annotations

import pytest

from benchmarks import suite_kernels, word_lm
from benchmarks.corpus import read_corpus
from schedules.cpu import native_isa
from schedules.families import Workload
from tvm_dual.errors import DataError, ModelError, PlanError
from tvm_dual.tuning import records
from tvm_dual.tuning.problem import Usage


def test_a_word_model_is_read_word_by_word_and_in_sequences(monkeypatch, corpus_folder, gru_checkpoint):
    monkeypatch.setattr(word_lm, "read_corpus", lambda _: read_corpus(corpus_folder))
    found = suite_kernels.word_lm_kernels(1, [gru_checkpoint])
    shapes = {(w.family, w.shape) for w in found}
    assert {("row_pairs_int8", (72, 24, 24)), ("rows_fp32", (72, 24, 1)), ("matmul_int8", (72, 24))} <= shapes
    assert {usage.vectors for w, usage in found.items() if w.family == "matmul_int8"} == {35}


def test_kernels_of_other_logs_need_no_model():
    found = suite_kernels.logged_kernels(1, ())
    assert Usage(0.2) == found[Workload("rows_fp32", (6000, 1500, 0), native_isa().records, 1)]
    assert suite_kernels.logged_kernels(99, ()) == {}


def test_checkpoints_must_be_there():
    with pytest.raises(ModelError, match="--checkpoint: not given"):
        suite_kernels.word_lm_kernels(1, ())
    with pytest.raises(DataError, match=r"no \.onnx file"):
        suite_kernels.fashion_kernels(1, ())


def test_single_layers_come_in_every_form():
    found = suite_kernels.layers_kernels(1, ())
    partly = {"conv2d_skip", "conv2d_gated", "conv2d_single", "conv2d_gated_int8"}
    assert {w.family for w in found} == {"conv2d", "conv2d_int8"} | partly
    assert all((usage.density < 1) == (w.family in partly) for w, usage in found.items())


def test_the_command_tunes_for_each_level_and_reports(monkeypatch, tmp_path, capsys):
    # What the records of this CPU's level are called: tiles have none of their own.
    level = native_isa().records
    kernels = {Workload("columns_fp32", (24, 16), level, 1): Usage(0.5)}
    monkeypatch.setitem(suite_kernels.SUITES, "shapes", lambda threads, checkpoints: kernels)
    suite_kernels.main(["shapes", "--targets", level, "avx2", "--trials", "2", "--logs", str(tmp_path)])
    folders = {folder.name.split("-")[0]: folder for folder in tmp_path.iterdir()}
    assert set(folders) == {level, "avx2"}
    for isa, folder in folders.items():
        assert {record.workload.isa for record in records.read(folder)} == {isa}
    assert "columns_fp32 24x16" in capsys.readouterr().out


def test_levels_are_checked_before_anything_takes_long():
    with pytest.raises(PlanError, match="target 'sparc' is not known"):
        suite_kernels.main(["nsnet2", "--targets", "sparc"])


@pytest.mark.parametrize(
    ("kernels", "inputs"),
    [(suite_kernels.crepe_kernels, (1, 1024)), (suite_kernels.ffdnet_kernels, (1, 5, 64, 64))],
)
def test_networks_that_are_written_here_are_of_the_size_that_is_timed(monkeypatch, kernels, inputs):
    asked = []
    monkeypatch.setattr(suite_kernels, "_network_kernels", lambda *given: asked.append(given) or {})
    kernels(1, ())
    model, calls, *_ = asked[0]
    extents = model.graph.input[0].type.tensor_type.shape.dim
    assert tuple(extent.dim_value for extent in extents)[-len(inputs) + 1 :] == inputs[1:]
    assert calls.shape[1:][-len(inputs) + 1 :] == inputs[1:] and len(calls) > 1


def test_networks_that_score_speech_are_found(monkeypatch):
    asked = []
    monkeypatch.setattr(suite_kernels, "_network_kernels", lambda path, *_: asked.append(path) or {})
    suite_kernels.dnsmos_kernels(1, ())
    assert [path.name for path in asked] == ["sig.onnx", "bak_ovr.onnx"]
    assert all(path.is_file() for path in asked)
