"""Training at a tiny size: it learns, and goes on after an interruption as if there had been none."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from benchmarks.word_model import load_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "word_lm" / "train.py"
TINY = ["--hidden", "12", "--words", "12", "--epochs", "4", "--rate", "0.05", "--threads", "1", "--save-minutes", "0"]


@pytest.fixture(scope="module")
def train():
    specification = importlib.util.spec_from_file_location("word_lm_train", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    # Its dataclass looks its module up.
    import sys

    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    del sys.modules[specification.name]


def run(train, monkeypatch, out, corpus, *options):
    monkeypatch.setattr("sys.argv", ["train.py", "--out", str(out), "--corpus", str(corpus), *TINY, *options])
    return train.main()


@pytest.mark.parametrize("options", [["--cell", "LSTM", "--candidates", "0"], ["--cell", "GRU", "--candidates", "6"]])
def test_it_learns(train, monkeypatch, tmp_path, corpus_folder, options, capsys):
    assert run(train, monkeypatch, tmp_path / "a.pt", corpus_folder, *options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    model = load_checkpoint(tmp_path / "a.pt")
    assert model.cell == options[1] and model.hidden == 12 and len(model.vocab) == 12
    found = torch.load(tmp_path / "a.pt", weights_only=True)["valid_ppl"]
    # The corpus has 11 tokens; which follows which is what there is to learn.
    assert 1 < found < 7 and f"{found:.2f}" in capsys.readouterr().out


def test_an_interrupted_training_ends_as_an_uninterrupted_one(train, monkeypatch, tmp_path, corpus_folder, capsys):
    options = ["--cell", "LSTM", "--dropout", "0.3", "--candidates", "6"]
    assert run(train, monkeypatch, tmp_path / "whole.pt", corpus_folder, *options) == 0
    step, seen = train.Training.step, []

    def interrupted(training):
        seen.append(training.done)
        if len(seen) == 20:
            raise KeyboardInterrupt
        step(training)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "step", interrupted)
        assert run(train, patch, tmp_path / "parts.pt", corpus_folder, *options) == 130
    assert not (tmp_path / "parts.pt").exists()
    assert run(train, monkeypatch, tmp_path / "parts.pt", corpus_folder, "--cell", "GRU") == 2
    assert "was begun as" in capsys.readouterr().err
    assert run(train, monkeypatch, tmp_path / "parts.pt", corpus_folder, *options) == 0
    assert "goes on from step 19" in capsys.readouterr().out
    whole, parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["valid_ppl"] == parts["valid_ppl"]
    for name, value in whole["state"].items():
        assert torch.equal(value, parts["state"][name]), name


def test_the_estimate_over_some_words_is_near_the_loss_over_all(train):
    torch.manual_seed(0)
    words, rows = 50, 4000
    losses = {}
    for count in (0, 5000):
        recipe = train.Recipe("GRU", 8, 1, words, 0.0, 1e-3, count, 32, 1)
        training = train.Training(recipe, list(map(str, range(words))), torch.arange(100 * words).numpy() % words)
        generator = torch.Generator().manual_seed(2)
        found = torch.randn(rows, 8, generator=generator)
        targets = torch.randint(words, (rows,), generator=generator)
        with torch.inference_mode():
            losses[count] = float(training._loss(found, targets))
    assert abs(losses[0] - math.log(words)) < 2
    # So many draws take every word, and then the two are the same.
    assert losses[5000] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("options", [["--hidden", "0"], ["--dropout", "1"], ["--rate", "0"], ["--words", "1"]])
def test_options_out_of_range(train, monkeypatch, tmp_path, corpus_folder, options, capsys):
    with pytest.raises(SystemExit) as caught:
        run(train, monkeypatch, tmp_path / "a.pt", corpus_folder, *options)
    assert caught.value.code == 2 and "accepted" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["absent/a.pt"])
def test_a_folder_that_is_not_there(train, monkeypatch, tmp_path, corpus_folder, out, capsys):
    assert run(train, monkeypatch, tmp_path / out, corpus_folder) == 2
    assert "folder does not exist" in capsys.readouterr().err
