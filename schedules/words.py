"""Products of bytes that are added up in 16 bits: how many, and weights that keep every such sum exact.

Without VNNI two products of unsigned and signed bytes become a word (``vpmaddubsw``), and two words a sum of 32 bits
(``vpmaddwd``), which takes as long. So words of two groups of taps are added up first, which is exact if those of
their four weights that have the same sign add up to little enough: 255 x 128 is within 16 bits. Each row gets as many
levels as its fullest word bears, 64 or so; without words being added up 64 are all that two large weights bear.
"""

from __future__ import annotations

import hashlib

import numpy as np

from schedules.cpu import Isa
from schedules.quantize import QuantizedRows, quantize_rows

#: Taps whose products become one sum of 32 bits; their neighbours in twos become one word.
GROUP = 4
#: Groups whose words are added up before they become sums of 32 bits. Of four, weights of networks lose 3 dB beside
#: those of two, whose error is that of seven bits, and kernels gain a tenth.
_GROUPS = 2
#: What weights of one word and one sign may add up to.
_MOST = 32767 // 255
#: Which of the groups' taps meet in which word: (taps, words).
_WORDS = np.tile(np.repeat(np.eye(GROUP // 2, dtype="float32"), 2, axis=0), (_GROUPS, 1))
#: Largest level of a row. The last is exact whatever the others are, and holds weights of four bits as they are.
LEVELS = (127, 117, 108, 100, 92, 84, 77, 70, 64, 59, 54, 49, 45, 41, 38, 35, 32, 28)

#: What was quantized lately, by digest, and bytes that it takes at most.
_QUANTIZED: dict[tuple, QuantizedRows] = {}
_MOST_KEPT = 256 << 20


def word_groups(isa: Isa, run: int) -> int:
    """Return how many groups of taps have their products added up in words, of `run` taps that lie side by side.

    One where taps do not fill the groups: which taps meet in a word would depend on how the image is read.
    """
    return 1 if isa.vnni or run % (GROUP * _GROUPS) else _GROUPS


def sure_level(isa: Isa, run: int) -> int:
    """Return the level that any row may have as its largest one; for `run` see `word_groups`."""
    return LEVELS[-1] if word_groups(isa, run) > 1 else 2 ** (_bits_alone(isa) - 1) - 1


def quantize_taps(isa: Isa, weight: np.ndarray, run: int) -> QuantizedRows:
    """Quantize each row of a convolution's weights symmetrically, so that its words are exact for any unsigned bytes.

    A row that is quantized already stays as it is.

    Parameters
    ----------
    isa : Isa
        Level whose products are to be exact.
    weight : ndarray, float32, (n, taps)
    run : int
        Taps that lie side by side in the image (`schedules.conv2d_shape.Conv2d.runs`).
    """
    groups = word_groups(isa, run)
    if groups == 1:
        return quantize_rows(weight, _bits_alone(isa))
    # Planning asks for the same weights again and again, of each library that it judges.
    key = hashlib.blake2b(np.ascontiguousarray(weight), digest_size=16).digest(), weight.shape
    if key not in _QUANTIZED:
        _QUANTIZED[key] = _quantized(weight)
        while sum(rows.values.size for rows in _QUANTIZED.values()) > _MOST_KEPT and len(_QUANTIZED) > 1:
            _QUANTIZED.pop(next(iter(_QUANTIZED)))
    return _QUANTIZED[key]


def _quantized(weight: np.ndarray) -> QuantizedRows:
    """Return rows of as many levels as leave the least error and keep words exact."""
    largest = np.abs(weight).max(axis=1, initial=0)
    values, scale = np.zeros(weight.shape, "int8"), np.zeros(len(weight), "float32")
    least, rounded, left = np.full(len(weight), np.inf), np.empty_like(weight), np.empty_like(weight)
    for levels in LEVELS:
        step = (largest / levels).astype("float32")[:, None]
        np.rint(np.divide(weight, np.where(step > 0, step, 1), out=rounded), out=rounded)
        np.subtract(np.multiply(rounded, step, out=left), weight, out=left)
        error = np.einsum("ij,ij->i", left, left)
        better = (error < least) & (_fullest_words(rounded) <= _MOST)
        values[better], scale[better], least[better] = rounded[better], step[better, 0], error[better]
    values.flags.writeable = scale.flags.writeable = False
    return QuantizedRows(values, scale)


def stored_taps(isa: Isa, weight: np.ndarray, run: int) -> np.ndarray:
    """Return what is left of weights, float32 (n, taps), as the bytes of `quantize_taps`."""
    return quantize_taps(isa, weight, run).dequantized()


def _fullest_words(levels: np.ndarray) -> np.ndarray:
    """Return for each row the largest sum of levels of one sign that meet in a word: float32 (n,)."""
    # A product of matrices takes a twentieth of the time of sums over axes as short as these.
    taps = levels.reshape(-1, _GROUPS * GROUP)
    both, either = taps @ _WORDS, np.abs(taps) @ _WORDS
    return ((np.abs(both) + either) / 2).reshape(len(levels), -1).max(axis=1, initial=0)


def _bits_alone(isa: Isa) -> int:
    """Return the bits of weights if no two words are added up: 255 x 63 x 2 is within 16 bits."""
    return 8 if isa.vnni else 7
