"""Denoising with a library, and how close its speech is to the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.audio.frontend import NSNET2_48K
from benchmarks.audio.mixing import NoisyClip
from benchmarks.audio.quality import score
from tvm_dual.library import DualLibrary

#: What a user may lose against the dense fp32 model: mean SI-SDR, mean PESQ, SI-SDR of one condition.
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
    """``evaluate``: how much worse speech is than the dense model's, as a share of what is allowed.

    0 is nowhere worse, -1 uses the whole allowance of one respect. Conditions that become better make
    up for none that become worse: a gated model tends to let less babble through than the dense one,
    and that must not buy errors elsewhere.
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
        return -loss(found, self._dense)


def loss(found: dict[str, float], dense: dict[str, float]) -> float:
    """Return the largest share of an allowance that `found` loses, over mean SI-SDR, mean PESQ and conditions."""
    lost = {name: max(0.0, dense[name] - found[name]) for name in dense if "/" in name}
    si_sdr = [value for name, value in lost.items() if name.startswith("si_sdr_db/")]
    pesq = [value for name, value in lost.items() if name.startswith("pesq_wb/")]
    return max(
        float(np.mean(si_sdr)) / SI_SDR_TOLERANCE_DB,
        float(np.mean(pesq)) / PESQ_TOLERANCE,
        max(si_sdr) / CONDITION_TOLERANCE_DB,
    )
