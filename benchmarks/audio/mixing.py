"""Noisy speech: the clips of ``examples/data`` mixed with white, pink and babble noise.

Everything is seeded, so every engine and every run sees the same samples. Speech and noise are made at
16 kHz, the rate of the recordings, then resampled to the model's rate and mixed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.signal
import soundfile

from benchmarks.audio.noise import babble_noise, mix, pink_noise, white_noise
from tvm_dual.errors import DataError

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
DATA_RATE = 16_000
SEEDS = {"calibration": 1, "evaluation": 2, "judging": 3}


class Condition(NamedTuple):
    """A noise kind (``white``, ``pink`` or ``babble``) and a signal-to-noise ratio in dB."""

    noise: str
    snr_db: int

    @property
    def label(self) -> str:
        """Name in reports, as in ``white_0``."""
        return f"{self.noise}_{self.snr_db}"


@dataclass(frozen=True, eq=False)
class NoisyClip:
    """One clean clip under one condition.

    Parameters
    ----------
    name
        The clip's file name without suffix.
    condition
        The noise and its level.
    clean, noisy
        float32, shape (samples,), full scale 1.0; a mixture is not clipped and may exceed it.
    rate
        Sample rate, Hz.
    """

    name: str
    condition: Condition
    clean: np.ndarray
    noisy: np.ndarray
    rate: int


def conditions() -> tuple[Condition, ...]:
    """All conditions: each noise at 0 and 10 dB."""
    return tuple(Condition(noise, snr_db) for noise in ("white", "pink", "babble") for snr_db in (0, 10))


def calibration_clips(rate: int = 48_000, folder: Path | None = None) -> list[NoisyClip]:
    """Clips to fit a library on: every calibration clip under three of the conditions, by turns 0 and 10 dB.

    More speech does more for a fit than more noise of the same speech. Shares no speech, no babble and no noise
    seed with `judging_clips` and `evaluation_clips`.

    Parameters
    ----------
    rate
        Sample rate of the result, Hz.
    folder
        Folder laid out as ``examples/data``, which is the default.

    Raises
    ------
    DataError
        If the folder lacks its clips, a clip is not 16 kHz mono, or ``rate`` is not positive.
    """
    return _clips("calibration", rate, folder)


def judging_clips(rate: int = 48_000, folder: Path | None = None) -> list[NoisyClip]:
    """Clips to choose thresholds on; see `calibration_clips` for the parameters and errors.

    What little modules were fitted on would make them look better than they are.
    """
    return _clips("judging", rate, folder)


def evaluation_clips(rate: int = 48_000, folder: Path | None = None) -> list[NoisyClip]:
    """Clips to score a library on; see `calibration_clips` for the parameters and errors."""
    return _clips("evaluation", rate, folder)


def clip_files(part: str, kind: str, folder: Path | None = None) -> list[Path]:
    """Files of one part (a key of `SEEDS`) and kind (``speech``, ``babble``), sorted.

    Raises
    ------
    DataError
        If there are none.
    """
    found = sorted(((folder or DATA) / part).glob(f"{kind}-*.ogg"))
    if not found:
        raise DataError(f"{(folder or DATA) / part}: found no {kind}-*.ogg; run examples/data/make_clips.py")
    return found


def _clips(part: str, rate: int, folder: Path | None) -> list[NoisyClip]:
    if rate <= 0:
        raise DataError(f"rate: found {rate}; needed: a positive sample rate in Hz")
    groups = _talkers(clip_files(part, "babble", folder))
    clips = []
    for clip_index, path in enumerate(clip_files(part, "speech", folder)):
        wave, talkers = _read(path), groups[clip_index % len(groups)]
        clean = _resample(wave, rate)
        for condition_index, condition in enumerate(conditions()):
            # Pairs of clips take turns, so that every second clip alone has both levels too.
            if part == "calibration" and condition_index % 2 != clip_index // 2 % 2:
                continue
            seed = (SEEDS[part], clip_index, condition_index)
            noise = _resample(_noise(condition.noise, len(wave), seed, talkers), rate)
            noisy = mix(clean, noise, condition.snr_db).astype(np.float32)
            clips.append(NoisyClip(path.stem, condition, clean, noisy, rate))
    return clips


def _talkers(files: Sequence[Path]) -> list[list[np.ndarray]]:
    """Return the voices of each babble prompt, in all its languages."""
    prompts: dict[str, list[np.ndarray]] = {}
    for path in files:
        prompts.setdefault(path.stem.split("-", 2)[-1], []).append(_read(path))
    return list(prompts.values())


def _noise(kind: str, samples: int, seed: Sequence[int], talkers: Sequence[np.ndarray]) -> np.ndarray:
    if kind == "babble":
        return babble_noise(samples, seed, talkers)
    return white_noise(samples, seed) if kind == "white" else pink_noise(samples, seed)


def _read(path: Path) -> np.ndarray:
    try:
        wave, rate = soundfile.read(path, dtype="float64")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: cannot be read as audio ({error}); run examples/data/make_clips.py") from error
    if rate != DATA_RATE or wave.ndim != 1:
        channels = 1 if wave.ndim == 1 else wave.shape[1]
        raise DataError(f"{path}: found {rate} Hz, {channels} channels; needed: {DATA_RATE} Hz mono")
    return wave


def _resample(wave: np.ndarray, rate: int) -> np.ndarray:
    divisor = gcd(rate, DATA_RATE)
    return scipy.signal.resample_poly(wave, rate // divisor, DATA_RATE // divisor).astype(np.float32)
