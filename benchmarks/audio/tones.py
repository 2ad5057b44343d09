"""Tones whose pitch is known: steady, gliding and with vibrato, of random harmonics, in noise. All seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.audio.noise import mix, pink_noise, white_noise
from tvm_dual.errors import DataError

RATE = 16_000
#: Of the tones, Hz: from a low voice to a soprano.
LOWEST_HZ, HIGHEST_HZ = 65.0, 900.0
#: Harmonics at most, all of them below half the rate.
HARMONICS = 24
#: Ratios of tone to noise in dB, by turns; None is without noise.
SNRS_DB = (None, 20, 10, 0)
MOTIONS = ("steady", "glide", "vibrato")
#: Hz and cents of a vibrato, and octaves a second of a glide.
_VIBRATO_HZ, _VIBRATO_CENTS, _GLIDE_OCTAVES = (4.0, 7.0), (20.0, 80.0), 1.0


@dataclass(frozen=True, eq=False)
class Tone:
    """One tone.

    Attributes
    ----------
    wave : ndarray, float32, (samples,)
        At `RATE`.
    pitch : ndarray, float64, (samples,)
        Frequency of the first harmonic, Hz, at each sample.
    motion : str
        One of `MOTIONS`.
    snr_db : int or None
    """

    wave: np.ndarray
    pitch: np.ndarray
    motion: str
    snr_db: int | None


def tones(count: int, seed: int, seconds: float = 1.0) -> list[Tone]:
    """Return `count` tones; motions and levels of noise take turns, so that twelve have each of both.

    Raises
    ------
    DataError
        If `count` is less than one, or `seconds` less than a tenth.
    """
    if count < 1 or seconds < 0.1:
        raise DataError(f"tones: found {count} of {seconds} s; needed: at least 1, of 0.1 s or more")
    return [_tone(i, np.random.default_rng((seed, i)), (seed, i), round(seconds * RATE)) for i in range(count)]


def _tone(index: int, random: np.random.Generator, seed: tuple[int, int], samples: int) -> Tone:
    motion, snr = MOTIONS[index % len(MOTIONS)], SNRS_DB[index // len(MOTIONS) % len(SNRS_DB)]
    time = np.arange(samples) / RATE
    octaves = np.zeros(samples)
    if motion == "glide":
        octaves = random.choice([-1, 1]) * random.uniform(0.2, _GLIDE_OCTAVES) * (time - time[-1] / 2)
    elif motion == "vibrato":
        swing = random.uniform(*_VIBRATO_CENTS) / 1200
        octaves = swing * np.sin(2 * np.pi * (random.uniform(*_VIBRATO_HZ) * time + random.random()))
    reach = np.abs(octaves).max()
    low, high = np.log2(LOWEST_HZ) + reach, np.log2(HIGHEST_HZ) - reach
    pitch = 2 ** (random.uniform(low, high) + octaves)
    wave = _harmonics(random, pitch)
    if snr is not None:
        noise = pink_noise(samples, seed) if random.random() < 0.5 else white_noise(samples, seed)
        wave = mix(wave, noise, snr)
    return Tone(wave.astype("float32"), pitch, motion, snr)


def _harmonics(random: np.random.Generator, pitch: np.ndarray) -> np.ndarray:
    """Return a sum of harmonics, each at random phase and level, falling by 3 to 12 dB an octave."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tilt = random.uniform(0.5, 2.0)
    wave = np.zeros(len(pitch))
    for number in range(1, HARMONICS + 1):
        if number * pitch.max() >= RATE / 2:
            break
        level = number**-tilt * 10 ** (random.uniform(-6, 6) / 20)
        wave += level * np.sin(number * phase + random.uniform(0, 2 * np.pi))
    return wave
