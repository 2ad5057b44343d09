"""CREPE: what its network reads, the pitch that follows from what it gives, and how many pitches are right.

Facts of the network are those of Kim et al., "CREPE: a convolutional representation for pitch estimation", 2018.
"""

from __future__ import annotations

import numpy as np

from benchmarks.audio.tones import Tone

#: Samples of a frame.
FRAME = 1024
BINS = 360
#: Of the bins: cents above 10 Hz of the first, and between two of them.
_FIRST_CENTS, _CENTS_PER_BIN = 1997.3794084376191, 20.0
#: Bins on either side of the highest whose mean is taken.
_AROUND = 4
#: How far a pitch may be off, cents: a quarter tone.
TOLERANCE_CENTS = 50.0


def cents(hertz: np.ndarray) -> np.ndarray:
    """Return frequencies as cents above 10 Hz."""
    return 1200 * np.log2(np.asarray(hertz) / 10)


def labelled_frames(tones: list[Tone], per_tone: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames from all over each tone, and their pitch.

    Parameters
    ----------
    tones : list of Tone
        Of one frame or more.
    per_tone : int

    Returns
    -------
    frames : ndarray, float32, (frames, 1024)
        Each of mean 0 and standard deviation 1.
    pitch : ndarray, float64, (frames,)
        In the middle of each, cents above 10 Hz.
    """
    frames, pitches = [], []
    for tone in tones:
        for start in np.linspace(0, len(tone.wave) - FRAME, per_tone).astype(int):
            frames.append(normalized(tone.wave[start : start + FRAME]))
            pitches.append(cents(tone.pitch[start + FRAME // 2]))
    return np.stack(frames), np.array(pitches)


def normalized(frame: np.ndarray) -> np.ndarray:
    """Return a frame as the network reads it, float32."""
    frame = frame - frame.mean()
    return (frame / max(frame.std(ddof=1), 1e-10)).astype("float32")


def pitches(outputs: np.ndarray) -> np.ndarray:
    """Return the pitch of each frame, cents above 10 Hz: the mean of the bins around the highest one.

    `outputs` are what the network gave, ``float32 (frames, 360)``, each from 0 to 1.
    """
    rows, highest = np.arange(len(outputs))[:, None], outputs.argmax(axis=1)[:, None]
    bins = highest + np.arange(-_AROUND, _AROUND + 1)
    weights = outputs[rows, bins.clip(0, BINS - 1)] * ((bins >= 0) & (bins < BINS))
    bin_cents = _FIRST_CENTS + _CENTS_PER_BIN * bins
    return (weights * bin_cents).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)


def raw_pitch_accuracy(outputs: np.ndarray, pitch: np.ndarray) -> float:
    """Return the percentage of frames whose pitch is within 50 cents of the true one; see `pitches`."""
    return float((np.abs(pitches(outputs) - pitch) <= TOLERANCE_CENTS).mean() * 100)
