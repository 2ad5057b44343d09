"""DNSMOS, first version: what its networks read, and the opinion scores that follow from what they give.

The front end and the polynomials are those of the DNS challenge's ``dnsmos_local.py``.
"""

from __future__ import annotations

import numpy as np
import scipy.signal

RATE = 16_000
_SECONDS, _FFT, _HOP = 9, 320, 160
_FLOOR = 1e-12
#: From a network's output to a score, lowest power first.
_POLYNOMIALS = {
    "sig": (0.9651228012789437, 0.6592637550310214, 0.0757237237295562),
    "bak": (-3.7334600111017817, 2.700114234092929, -0.17213329073408228),
    "ovr": (0.8924546794696789, 0.6609981731940616, 0.07600269530243180),
}
#: By network: the scores it gives and their places in its output.
SCORES = {"sig": {"sig": 0}, "bak_ovr": {"bak": 1, "ovr": 2}}


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """Return what the networks read of a clip: log power, ``float32 (901, 161)``.

    Parameters
    ----------
    wave : ndarray, (samples,)
        At `RATE`, full scale 1.0. Shorter clips are repeated, of longer ones the beginning is taken.
    """
    samples = _SECONDS * RATE
    wave = np.tile(wave.astype("float64"), -(-samples // len(wave)))[:samples]
    padded = np.pad(wave, _FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * scipy.signal.get_window("hann", _FFT), axis=1)
    return np.log10(np.maximum(np.abs(spectrum) ** 2, _FLOOR)).astype("float32")


def scores(network: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean opinion scores of some clips.

    Parameters
    ----------
    network : str
        A key of `SCORES`.
    outputs : ndarray, float32, (clips, outputs)
        What the network gave.
    """
    return {
        name: np.polynomial.polynomial.polyval(outputs[:, place].astype("float64"), _POLYNOMIALS[name])
        for name, place in SCORES[network].items()
    }
