"""Speech quality: SI-SDR and wideband PESQ of denoised clips."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

import numpy as np
import scipy.signal

from benchmarks.audio.mixing import NoisyClip
from tvm_dual.errors import DataError, SetupError

PESQ_RATE = 16_000


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio, in dB; higher is better.

    Le Roux, Wisdom, Erdogan and Hershey, "SDR - half-baked or well done?", ICASSP 2019, equations 4 and 5:
    the reference is scaled to fit the estimate best; what remains is distortion. As in the paper, means
    are not removed.

    Parameters
    ----------
    estimate, reference
        Real, of one shape (samples,).

    Returns
    -------
    float
        ``inf`` if the estimate is a scaled reference, ``-inf`` if it is orthogonal to it.

    Raises
    ------
    DataError
        If shapes differ, a sample is not finite, or either is silent.
    """
    estimate, reference = _checked(estimate, reference)
    target = (estimate @ reference) / (reference @ reference) * reference
    distortion = estimate - target
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(target @ target) - np.log10(distortion @ distortion)))


def pesq_wb(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Predicted listening quality, wideband PESQ, from about 1.0 to 4.64; higher is better.

    ITU-T P.862.2 (2007), as the ``pesq`` package computes it at 16 kHz; other rates are resampled.

    Parameters
    ----------
    estimate, reference
        Real, of one shape (samples,).
    rate
        Their sample rate, Hz.

    Returns
    -------
    float
        MOS-LQO.

    Raises
    ------
    DataError
        If shapes differ, a sample is not finite, either is silent, or PESQ finds no speech in them.
    SetupError
        If the ``pesq`` package is missing.
    """
    try:
        import pesq
    except ImportError as error:
        raise SetupError("pesq: not installed; run 'pip install pesq', or score without PESQ") from error
    estimate, reference = _checked(estimate, reference)
    if rate <= 0:
        raise DataError(f"rate: found {rate}; needed: a positive sample rate in Hz")
    divisor = gcd(int(rate), PESQ_RATE)
    up, down = PESQ_RATE // divisor, int(rate) // divisor
    estimate = scipy.signal.resample_poly(estimate, up, down).astype(np.float32)
    reference = scipy.signal.resample_poly(reference, up, down).astype(np.float32)
    try:
        return float(pesq.pesq(PESQ_RATE, reference, estimate, "wb"))
    except pesq.PesqError as error:
        raise DataError(
            f"PESQ: cannot compare these {len(reference) / PESQ_RATE:.2f} s clips ({error}); "
            "needed: at least 0.25 s that hold speech"
        ) from error


def score(denoised_by_clip: Iterable[tuple[NoisyClip, np.ndarray]], with_pesq: bool = True) -> dict[str, float]:
    """Score denoised clips against their clean originals.

    Parameters
    ----------
    denoised_by_clip
        Pairs of a clip and its denoised wave, shape (samples,), at the clip's rate; a dictionary's
        ``items()`` will do.
    with_pesq
        Whether to compute PESQ, which takes nearly all of the time.

    Returns
    -------
    dict
        ``si_sdr_db`` and ``pesq_wb``, means over all clips, then the means of every condition that occurs,
        as ``si_sdr_db/white_0``.

    Raises
    ------
    DataError
        If there is no pair, or a wave cannot be scored; the message names the clip.
    """
    values: dict[str, list[float]] = {}
    measures = ("si_sdr_db", "pesq_wb") if with_pesq else ("si_sdr_db",)
    overall: dict[str, list[float]] = {measure: [] for measure in measures}
    for clip, denoised in denoised_by_clip:
        try:
            scores = [si_sdr_db(denoised, clip.clean)]
            if with_pesq:
                scores.append(pesq_wb(denoised, clip.clean, clip.rate))
        except DataError as error:
            raise DataError(f"clip {clip.name}, {clip.condition.label}: {error}") from error
        for measure, value in zip(measures, scores, strict=True):
            overall[measure].append(value)
            values.setdefault(f"{measure}/{clip.condition.label}", []).append(value)
    if not values:
        raise DataError("score: found no clips; pass at least one pair of a clip and its denoised wave")
    return {name: float(np.mean(all_values)) for name, all_values in (overall | values).items()}


def _checked(estimate: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimate, reference = np.asarray(estimate, np.float64), np.asarray(reference, np.float64)
    if estimate.ndim != 1 or estimate.shape != reference.shape:
        raise DataError(
            f"estimate has shape {estimate.shape}, reference {reference.shape}; needed: one shape (samples,)"
        )
    for name, wave in (("estimate", estimate), ("reference", reference)):
        if not np.isfinite(wave).all():
            raise DataError(f"{name}: holds NaN or infinity; every sample must be finite")
        if not wave.any():
            raise DataError(f"{name}: is silent (or empty); needed: a sample that is not zero")
    return estimate, reference
