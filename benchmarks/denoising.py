"""Denoising with a library, and how close its speech is to the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.audio.frontend import NSNET2_48K
from benchmarks.audio.mixing import NoisyClip
from benchmarks.audio.quality import score
from tvm_dual.library import DualLibrary

#: How far from the dense fp32 model a user may end: mean SI-SDR, mean PESQ, SI-SDR of one condition.
SI_SDR_TOLERANCE_DB, PESQ_TOLERANCE, CONDITION_TOLERANCE_DB = 0.1, 0.02, 0.3


class Speech:
    """Noisy clips with their spectrograms, ready to be denoised."""

    def __init__(self, clips: Sequence[NoisyClip]) -> None:
        """Analyse the clips."""
        self.clips = list(clips)
        self._spectra = [NSNET2_48K.analyse(clip.noisy) for clip in clips]
        self.features = [NSNET2_48K.features(spectrum) for spectrum in self._spectra]

    def waves(self, gains: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the denoised waves for gains ``float32 (frames, bins)`` of each clip."""
        return [
            NSNET2_48K.synthesise(spectrum, gain, len(clip.noisy))
            for clip, spectrum, gain in zip(self.clips, self._spectra, gains, strict=True)
        ]

    def score(self, gains: Sequence[np.ndarray]) -> dict[str, float]:
        """Return SI-SDR and PESQ, means and per condition; see `benchmarks.audio.quality.score`."""
        return score(zip(self.clips, self.waves(gains), strict=True))

    def gains(self, run: Callable[[], Callable[[np.ndarray], np.ndarray]]) -> list[np.ndarray]:
        """Return the gains of each clip; `run` gives a fresh stream."""
        found = []
        for features in self.features:
            step = run()
            found.append(np.stack([step(frame).reshape(-1) for frame in features]))
        return found


class SameSpeech:
    """``evaluate``: how far speech is from the dense model's, as a share of what is allowed.

    0 is no difference, -1 uses the whole allowance of one respect. A better mean counts as a difference too: a
    gated model tends to let less babble through than the dense one, and that must not buy errors elsewhere.
    """

    def __init__(self, speech: Speech) -> None:
        """Judge on `speech`; the first library judged is the dense model."""
        self._speech = speech
        self._dense: dict[str, float] | None = None

    def __call__(self, library: DualLibrary) -> float:
        """Return the quality of a library."""
        found = self._speech.score(self._speech.gains(library.stream))
        if self._dense is None:
            self._dense = found
        return -deviation(found, self._dense)


def deviation(found: dict[str, float], dense: dict[str, float]) -> float:
    """Return the largest share of an allowance: of mean SI-SDR and mean PESQ either way, of conditions' SI-SDR lost."""
    lost = [dense[name] - found[name] for name in dense if name.startswith("si_sdr_db/")]
    return max(
        abs(found["si_sdr_db"] - dense["si_sdr_db"]) / SI_SDR_TOLERANCE_DB,
        abs(found["pesq_wb"] - dense["pesq_wb"]) / PESQ_TOLERANCE,
        max(lost) / CONDITION_TOLERANCE_DB,
    )
