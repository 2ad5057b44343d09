"""The suites of the word model, from the command line to their files, at a tiny size."""

import json
from dataclasses import replace
from functools import partial

import pytest

from benchmarks import word_lm, word_lm_sweep
from benchmarks.word_lm import Size
from schedules.cpu import available_cores
from tvm_dual.cli import main
from tvm_dual.options import AdvancedOptions

# Bytes alone move the perplexity of a few words by 0.4 %.
TINY = Size(
    1,
    8,
    (4, 80),
    (4, 20),
    (4, 21),
    exact_peers=True,
    max_drop=5,
    options=AdvancedOptions("dual", "damage", search_steps=0),
)


@pytest.fixture
def few(monkeypatch):
    """Make the suites tiny, with few peers: what each computes is tested elsewhere, and its process takes seconds."""
    whole = word_lm.all_peers

    def some(*arguments):
        return [spec for spec in whole(*arguments) if (spec.engine, spec.precision) == ("onnxruntime", "fp32")]

    monkeypatch.setattr(word_lm, "SHORT", TINY)
    monkeypatch.setattr(word_lm, "all_peers", some)
    monkeypatch.setattr(word_lm, "measure_loading", partial(word_lm.measure_loading, repeats=1))
    monkeypatch.setattr(word_lm_sweep, "SHORT", replace(TINY, options=replace(TINY.options, finetune_steps=2)))
    monkeypatch.setattr(word_lm_sweep, "all_peers", lambda *arguments: [])
    curves = word_lm_sweep.curves
    monkeypatch.setattr(word_lm_sweep, "curves", lambda *arguments: curves(*arguments)[:: len(curves(*arguments)) - 1])
    monkeypatch.setattr(word_lm_sweep, "SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(word_lm_sweep, "TRAINED_SHARES", (0.5,))
    monkeypatch.setattr(word_lm_sweep, "SIZES", (0.5,))


def command(suite, folder, corpus, checkpoint):
    options = ["--checkpoint", checkpoint, "--corpus", corpus, "--json", folder / "out.json", "--short"]
    return ["bench", suite, *map(str, options)]


def test_suite(few, tmp_path, corpus_folder, gru_checkpoint, capsys):
    assert main(command("word-lm", tmp_path, corpus_folder, gru_checkpoint)) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["suite"] == "word-lm"
    usual = [row for row in document["rows"] if "threads" not in row]
    rows = {(row["engine"], row["mode"], row["precision"], row.get("sequence", 1)): row for row in usual}
    ours = [("dual", "int8"), ("dual", "fp32"), ("dense", "fp32"), ("dense", "int8"), ("little", "int8")]
    assert set(rows) == {
        *(("tvm_dual", *form, sequence) for form in ours for sequence in (1, 35)),
        *(("onnxruntime", "dense", "fp32", sequence) for sequence in (1, 35)),
    }
    on_two = {row["precision"]: row for row in document["rows"] if "threads" in row}
    assert set(on_two) == ({"int8", "fp32"} if available_cores() > 1 else set())
    for precision, row in on_two.items():
        one = rows["tvm_dual", "dual", precision, 1]
        assert row["threads"] == 2 and row["quality"]["perplexity"] == pytest.approx(one["quality"]["perplexity"])
    exact = rows["tvm_dual", "dense", "fp32", 1]["quality"]
    assert abs(exact["change_percent"]) < 1e-3
    assert rows["tvm_dual", "dense", "fp32", 35]["quality"]["perplexity"] == pytest.approx(
        exact["perplexity"], rel=1e-5
    )
    for key, row in rows.items():
        assert "error" not in row and 0 < row["median_ms"] <= row["p95_ms"]
        if key[2] == "fp32" and key[1] == "dense":
            assert row["quality"]["perplexity"] == pytest.approx(exact["perplexity"], rel=1e-5)
    out = capsys.readouterr().out
    assert "gru0" in out and "steps a call" in out and "fastest fp32 peer / dual" in out
    assert "fastest fp32 peer, 35 steps a call" in out and "perplexity of dual int8 against dense" in out


def test_sweep(few, tmp_path, corpus_folder, gru_checkpoint, capsys):
    assert main(command("word-lm-sweep", tmp_path, corpus_folder, gru_checkpoint)) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    *points, alone, trained_alone = [row for row in rows if "curve" in row]
    assert (alone["curve"], alone["mode"]) == ("little alone", "little") and alone["dimensions"] > 0
    assert (trained_alone["curve"], trained_alone["mode"]) == ("little alone, trained", "little")
    assert trained_alone["quality"] != alone["quality"] and trained_alone["dimensions"] > 0
    assert not any("error" in row for row in rows) and (tmp_path / "out.png").stat().st_size > 10_000
    exact = next(row for row in rows if (row["mode"], row["precision"]) == ("dense", "fp32"))["quality"]
    *points, trained = points
    assert [row["curve"] for row in points] == ["damage fp32"] * 3
    assert trained["curve"] == "damage int8, trained" and trained["closed"] == pytest.approx(0.5, abs=0.05)
    assert points[0]["quality"]["perplexity"] == pytest.approx(exact["perplexity"], rel=1e-4)
    assert [row["closed"] for row in points] == pytest.approx([0, 0.5, 1], abs=0.05)
    read = [row["weight_bytes_read"] for row in points]
    assert read == sorted(read, reverse=True)
    assert "damage fp32" in capsys.readouterr().out


def test_curves_are_those_of_the_papers_table():
    found = {curve.name: curve for curve in word_lm_sweep.curves(AdvancedOptions())}
    coarse = found.pop("paper, random 0.5, 2 bit fp32").options
    assert (coarse.projection, coarse.epsilon, coarse.little_bits) == ("random", 0.5, 2)
    sizes = {
        c.options.site_size("lstm0", 3000, rows=6000): c for c in found.values() if c.options.projection == "random"
    }
    # The paper's Table 5 has 966, 417 and 266 directions for its LSTM of 1500 units.
    assert list(sizes) == [966, 417, 266]
    assert all(c.rule == "activation" and c.precision == "fp32" and 0.5 in c.shares for c in sizes.values())
    assert {0.0, 0.1, 0.3, 0.5, 0.7, 0.9} < set(sizes[417].shares) == set(found["damage int8"].shares)
    assert {c.options.little_bits for name, c in found.items() if name.startswith("little")} == {32, 8, 4, 2}


@pytest.mark.parametrize(
    "options, text",
    [
        (["word-lm"], "--checkpoint: not given"),
        (["word-lm", "--checkpoint", "absent.pt"], "absent.pt"),
        (["nsnet2", "--checkpoint", "absent.pt"], "suite 'nsnet2' does not take it"),
    ],
)
def test_files_that_are_not_there_or_not_wanted(tmp_path, capsys, options, text):
    assert main(["bench", *options, "--json", str(tmp_path / "a.json")]) == 2
    assert text in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_absent_corpus_is_named(tmp_path, capsys, gru_checkpoint):
    assert main(command("word-lm", tmp_path, tmp_path / "absent", gru_checkpoint)) == 2
    assert "absent" in capsys.readouterr().err
