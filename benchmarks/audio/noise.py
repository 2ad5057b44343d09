"""Noise to mix speech with: white, pink, and babble made of other voices. All seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

from tvm_dual.errors import DataError

PINK_LOWEST_HZ = 20.0


def white_noise(samples: int, seed: int | Sequence[int]) -> np.ndarray:
    """Gaussian white noise: float64, shape (samples,), RMS 1.

    Raises
    ------
    DataError
        If ``samples`` is not positive. The same holds for `pink_noise` and `babble_noise`.
    """
    return _unit_rms(np.random.default_rng(seed).standard_normal(_positive(samples)))


def pink_noise(samples: int, seed: int | Sequence[int], rate: int = 16_000) -> np.ndarray:
    """Gaussian noise of power 1/f: float64, shape (samples,), RMS 1.

    White noise is shaped in the frequency domain. Below 20 Hz the spectrum stays flat, and there is no
    constant part.
    """
    spectrum = scipy.fft.rfft(np.random.default_rng(seed).standard_normal(_positive(samples)))
    spectrum /= np.sqrt(np.maximum(scipy.fft.rfftfreq(samples, 1 / rate), PINK_LOWEST_HZ))
    if samples > 1:
        spectrum[0] = 0
    return _unit_rms(scipy.fft.irfft(spectrum, n=samples))


def babble_noise(samples: int, seed: int | Sequence[int], talkers: Sequence[np.ndarray]) -> np.ndarray:
    """Several voices at once: float64, shape (samples,), RMS 1.

    Every talker is heard twice, equally loud, each time from a random place and repeated as needed.

    Parameters
    ----------
    samples
        Length of the noise.
    seed
        Seeds the places where talkers start.
    talkers
        Speech, each of shape (talker samples,).

    Raises
    ------
    DataError
        If there is no talker, or one of them is silent, empty or not finite.
    """
    _positive(samples)
    if len(talkers) == 0:
        raise DataError("babble: found no talkers; pass at least one speech clip")
    generator = np.random.default_rng(seed)
    total = np.zeros(samples)
    for talker in [*talkers, *talkers]:
        voice = _unit_rms(talker)
        total += np.resize(np.roll(voice, -generator.integers(len(voice))), samples)
    return _unit_rms(total)


def mix(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise at a signal-to-noise ratio, taken over the whole clip.

    Parameters
    ----------
    clean, noise
        Real, of one shape (samples,).
    snr_db
        Ratio of the clean power to the noise power in the mixture, dB.

    Returns
    -------
    numpy.ndarray
        Shape (samples,): ``clean`` plus scaled noise.

    Raises
    ------
    DataError
        If the shapes differ, either is silent or not finite, or ``snr_db`` is not finite.
    """
    clean, noise = np.asarray(clean), np.asarray(noise)
    if clean.ndim != 1 or clean.shape != noise.shape:
        raise DataError(f"mix: clean has shape {clean.shape}, noise {noise.shape}; needed: one shape (samples,)")
    if not np.isfinite(snr_db):
        raise DataError(f"mix: found an SNR of {snr_db} dB; needed: a finite number")
    return clean + _unit_rms(noise) * (_rms(clean) * 10 ** (-snr_db / 20))


def _positive(samples: int) -> int:
    if samples < 1:
        raise DataError(f"samples: found {samples}; needed: at least 1")
    return samples


def _rms(wave: np.ndarray) -> float:
    if np.size(wave) == 0:
        raise DataError("audio: found no samples; needed: at least 1")
    rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    if not (np.isfinite(rms) and rms > 0):
        raise DataError(f"audio: its RMS is {rms}; needed: finite samples that are not all zero")
    return rms


def _unit_rms(wave: np.ndarray) -> np.ndarray:
    return wave / _rms(wave)
