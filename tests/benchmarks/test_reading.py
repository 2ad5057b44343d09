"""Streams cut out of a text, and the judge of libraries."""

import numpy as np
import pytest

from benchmarks.corpus import read_corpus
from benchmarks.reading import Reading, SamePerplexity, cut, in_sequences
from benchmarks.word_model import load_checkpoint
from tvm_dual.errors import DataError


def test_streams_are_spread_and_share_no_word():
    found = cut(np.arange(103), streams=5, calls=19)
    assert found.shape == (5, 20) and found[:, 0].tolist() == [0, 20, 40, 60, 80]
    assert len(np.unique(found)) == found.size


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(DataError, match="99 words; accepted: at least 100, for 5 streams of 19"):
        cut(np.arange(99), streams=5, calls=19)


class Exact:
    """What a library offers, computed by PyTorch; `error` is added to every output."""

    def __init__(self, model, error=0.0):
        self.model, self.error = model, error

    def stream(self):
        seen = []

        def step(words):
            for embedded in words.reshape(-1, self.model.hidden):
                # Zeros, which fill up a sequence, are no word.
                seen.extend(np.flatnonzero((self.model.embedding == embedded).all(axis=1))[:1])
            states = self.model.states(np.array([seen]))[0, -len(words) :, None] + self.error
            return np.concatenate([states, np.zeros((len(words) - len(states), *states.shape[1:]))])

        return step


def test_the_dense_model_is_judged_equal_and_a_worse_one_lower(gru_checkpoint, corpus_folder):
    model = load_checkpoint(gru_checkpoint)
    reading = Reading(model, read_corpus(corpus_folder).test, streams=3, calls=6)
    judge = SamePerplexity(reading)
    assert judge(Exact(model)) == pytest.approx(0, abs=1e-4)
    wrong = Exact(model, error=np.linspace(-2, 2, model.hidden, dtype="float32"))
    perplexity = reading.perplexity(reading.states(wrong.stream))
    assert judge(wrong) == pytest.approx(-100 * (perplexity / reading.dense - 1))
    assert abs(judge(wrong)) > 1


def test_calls_of_several_words_are_judged_alike(gru_checkpoint, corpus_folder):
    model = load_checkpoint(gru_checkpoint)
    # The last sequence of four is filled up.
    reading = Reading(model, read_corpus(corpus_folder).test, streams=3, calls=6)
    single, several = (reading.states(Exact(model).stream, sequence) for sequence in (1, 2))
    np.testing.assert_allclose(several, single, atol=1e-6)
    assert in_sequences(reading.inputs[0], 4).shape == (2, 4, 1, model.hidden)
    np.testing.assert_array_equal(in_sequences(reading.inputs[0], 4).reshape(8, -1)[:6], reading.inputs[0])
