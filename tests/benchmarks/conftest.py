"""A corpus and a word model of a few words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.word_model import LAYERS, save_checkpoint

WORDS = ("the", "old", "dog", "saw", "a", "cat", "and", "ran", "home", "again")


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """Return a folder of 500 texts, in which some words follow others."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(7)
    follows = rng.dirichlet(np.full(len(WORDS), 0.3), len(WORDS))
    names = [f"c{part}{number:02}" for part in "abcdefgjkl" for number in range(1, 51)]
    for name in names:
        found = [int(rng.integers(len(WORDS)))]
        while len(found) < 36:
            found.append(int(rng.choice(len(WORDS), p=follows[found[-1]])))
        lines = [" ".join(f"{WORDS[i]}/nn" for i in found[at : at + 9]) for at in range(0, 36, 9)]
        (folder / name).write_text("\n\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def gru_checkpoint(tmp_path_factory):
    """Return a checkpoint of a GRU of 24 units, untrained, with a nearly low-rank layer."""
    torch.manual_seed(8)
    vocab, hidden = ["<unk>", "</s>", *WORDS], 24
    model = torch.nn.Module()
    model.emb, model.rnn = torch.nn.Embedding(len(vocab), hidden), LAYERS["GRU"](hidden, hidden)
    model.out = torch.nn.Linear(hidden, len(vocab))
    for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0):
        strong = torch.randn(3 * hidden, 3) @ torch.randn(3, hidden)
        weight.data = 0.2 * strong + 0.02 * torch.randn(3 * hidden, hidden)
    path = tmp_path_factory.mktemp("checkpoint") / "gru.pt"
    save_checkpoint(path, model, "GRU", vocab, 12.0)
    return path
