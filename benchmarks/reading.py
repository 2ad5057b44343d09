"""Streams of text that a word model reads, and how well it predicts them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from benchmarks.corpus import numbers
from benchmarks.word_model import WordModel
from tvm_dual.errors import DataError
from tvm_dual.library import DualLibrary


def cut(words: np.ndarray, streams: int, calls: int) -> np.ndarray:
    """Return streams of words, evenly spread over a text, int64 (streams, calls + 1): the last is read by none.

    Raises
    ------
    DataError
        If the text is too short for streams that share no word.
    """
    if streams * (calls + 1) > len(words):
        raise DataError(
            f"text: {len(words)} words; accepted: at least {streams * (calls + 1)}, for {streams} streams of {calls}"
        )
    starts = np.arange(streams) * (len(words) // streams)
    return words[starts[:, None] + np.arange(calls + 1)]


def in_sequences(words: np.ndarray, sequence: int) -> np.ndarray:
    """Return words ``(calls, hidden)`` as calls of ``(sequence, 1, hidden)``; zeros fill up the last."""
    missing = -len(words) % sequence
    return np.pad(words, ((0, missing), (0, 0))).reshape(-1, sequence, 1, words.shape[-1])


class Reading:
    """Streams of text with what the recurrent layer reads and what should be predicted from its outputs.

    Attributes
    ----------
    inputs : ndarray, float32, (streams, calls, hidden)
        Embedded words.
    """

    def __init__(self, model: WordModel, text: tuple[str, ...], streams: int, calls: int) -> None:
        """Cut streams out of a text; every stream starts from state zero."""
        words = cut(numbers(text, model.vocab), streams, calls)
        self._model, self._words, self._targets = model, words[:, :-1], words[:, 1:]
        self.inputs = model.embedding[self._words]

    @cached_property
    def dense(self) -> float:
        """Perplexity of the model in fp32, computed by PyTorch."""
        return self.perplexity(self._model.states(self._words))

    def perplexity(self, states: np.ndarray) -> float:
        """Return the perplexity given the layer's outputs, float32 (streams, calls, hidden)."""
        return self._model.perplexity(states, self._targets)

    def change(self, perplexity: float) -> float:
        """Return how much higher a perplexity is than the dense model's, in percent."""
        return 100 * (perplexity / self.dense - 1)

    def states(self, fresh: Callable[[], Callable[[np.ndarray], np.ndarray]], sequence: int = 1) -> np.ndarray:
        """Return the layer's outputs; `fresh` gives a stream, a function of `sequence` embedded words."""
        found = np.empty_like(self.inputs)
        for stream, outputs in zip(self.inputs, found, strict=True):
            step = fresh()
            for call, words in enumerate(in_sequences(stream, sequence)):
                part = outputs[call * sequence : (call + 1) * sequence]
                part[...] = step(words).reshape(sequence, -1)[: len(part)]
        return found


class SamePerplexity:
    """``evaluate``: how much lower a library's perplexity is than the dense model's, in percent; 0 is equal."""

    def __init__(self, reading: Reading, sequence: int = 1) -> None:
        """Judge on `reading`, by libraries that read `sequence` words a call."""
        self._reading, self._sequence = reading, sequence

    def __call__(self, library: DualLibrary) -> float:
        """Return the quality of a library."""
        return -self._reading.change(self._reading.perplexity(self._reading.states(library.stream, self._sequence)))
