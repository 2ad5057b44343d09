"""NSNet2's front end: a wave to log-power features, and gains back to a wave.

NSNet2 (Braun and Tashev, "Data augmentation and loss normalization for deep noise suppression", 2020)
sees the log-power spectrum of a windowed frame and answers with one gain per frequency bin. The wave is
rebuilt by windowing the inverse transform again and adding the overlapping frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from tvm_dual.errors import DataError

POWER_FLOOR = 1e-12


@dataclass(frozen=True)
class FrontEnd:
    """Short-time Fourier analysis and synthesis with exact reconstruction.

    The wave is taken as preceded by ``frame - hop`` zeros, as a streaming denoiser's empty buffer is:
    frame ``n`` ends with samples ``n * hop ... n * hop + hop - 1`` of the wave. So a stream emits one
    frame for every ``hop`` samples, and the synthesised wave lies where the input lay, with no shift.

    Parameters
    ----------
    rate
        Sample rate, Hz.
    frame
        Samples per frame.
    hop
        Samples between the starts of frames; at most ``frame``.
    fft
        Transform length; at least ``frame``. Frames are followed by zeros up to this length.
    periodic
        Whether the Hann window under the square root has period ``frame`` (True) or is symmetric (False).

    Raises
    ------
    DataError
        If the sizes do not fit each other, or leave a sample that no frame sees.
    """

    rate: int
    frame: int
    hop: int
    fft: int
    periodic: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not 0 < self.hop <= self.frame <= self.fft or self.rate <= 0:
            raise DataError(
                f"front end: rate {self.rate}, hop {self.hop}, frame {self.frame}, FFT {self.fft} do not fit; "
                "needed: rate > 0 and 0 < hop <= frame <= fft"
            )
        if np.min(self._overlapped_power()) < 1e-6:
            raise DataError(
                f"front end: with hop {self.hop} and frame {self.frame} some samples fall where the window is zero "
                "and cannot be rebuilt; choose a shorter hop"
            )

    @property
    def bins(self) -> int:
        """Frequency bins of a frame."""
        return self.fft // 2 + 1

    @property
    def delay(self) -> int:
        """Samples of the past in every frame, and so a stream's delay beyond one hop."""
        return self.frame - self.hop

    def frame_count(self, length: int) -> int:
        """Frames that ``length`` samples give: every frame that holds at least one of them."""
        return (length - 1 + self.delay) // self.hop + 1

    def window(self) -> np.ndarray:
        """Square root of a Hann window: float64, shape (frame,)."""
        period = self.frame if self.periodic else self.frame - 1
        return np.sin(np.pi * np.arange(self.frame) / period)

    def analyse(self, wave: np.ndarray) -> np.ndarray:
        """Transform a wave into spectra.

        Parameters
        ----------
        wave
            Real floating point, shape (samples,), full scale 1.0.

        Returns
        -------
        numpy.ndarray
            complex64, shape (frames, bins).

        Raises
        ------
        DataError
            If ``wave`` is not one-dimensional, real floating point, finite and non-empty.
        """
        wave = np.asarray(wave)
        if wave.ndim != 1 or wave.size == 0 or not np.issubdtype(wave.dtype, np.floating):
            raise DataError(
                f"wave: found {wave.dtype} of shape {wave.shape}; needed: floating point of shape (samples,), "
                "at least one sample, full scale 1.0"
            )
        if not np.isfinite(wave).all():
            raise DataError("wave: holds NaN or infinity; every sample must be finite")
        frames = self.frame_count(len(wave))
        padded = np.zeros((frames - 1) * self.hop + self.frame, np.float32)
        padded[self.delay : self.delay + len(wave)] = wave
        framed = np.lib.stride_tricks.sliding_window_view(padded, self.frame)[:: self.hop]
        return scipy.fft.rfft(framed * self.window().astype(np.float32), n=self.fft, axis=1)

    def features(self, spectrogram: np.ndarray) -> np.ndarray:
        """Log-power features, the network's input.

        Parameters
        ----------
        spectrogram
            Complex, shape (frames, bins).

        Returns
        -------
        numpy.ndarray
            float32, shape (frames, bins): log10 of the power, not below -12.

        Raises
        ------
        DataError
            If ``spectrogram`` has another shape or is not complex.
        """
        spectrogram = self._checked(spectrogram)
        power = spectrogram.real**2 + spectrogram.imag**2
        return np.log10(np.maximum(power, POWER_FLOOR)).astype(np.float32, copy=False)

    def synthesise(self, spectrogram: np.ndarray, gains: np.ndarray, length: int) -> np.ndarray:
        """Apply gains and rebuild the wave; with gains of 1 the result is the analysed wave.

        Parameters
        ----------
        spectrogram
            Complex, shape (frames, bins), from `analyse`.
        gains
            Real, shape (frames, bins), the network's output.
        length
            Samples of the analysed wave.

        Returns
        -------
        numpy.ndarray
            float32, shape (length,), aligned with the analysed wave.

        Raises
        ------
        DataError
            If shapes differ, a gain is not finite, or ``length`` does not fit the number of frames.
        """
        spectrogram = self._checked(spectrogram)
        gains = np.asarray(gains)
        if gains.shape != spectrogram.shape or not np.isrealobj(gains):
            raise DataError(
                f"gains: found {gains.dtype} of shape {gains.shape}; needed: real, one per bin of every frame, "
                f"shape {spectrogram.shape}"
            )
        if not np.isfinite(gains).all():
            raise DataError("gains: hold NaN or infinity; every gain must be finite")
        frames = len(spectrogram)
        if length < 1 or self.frame_count(length) != frames:
            raise DataError(f"length: {length} samples do not give {frames} frames; pass the analysed wave's length")
        scaled = spectrogram * gains.astype(np.float32, copy=False)
        framed = scipy.fft.irfft(scaled, n=self.fft, axis=1)[:, : self.frame] * self._synthesis_window()
        # Every frame is cut into hop-long pieces; piece k of all frames is added in one go.
        pieces = -(-self.frame // self.hop)
        framed = np.pad(framed, ((0, 0), (0, pieces * self.hop - self.frame)))
        wave = np.zeros((frames + pieces - 1, self.hop), np.float32)
        for piece in range(pieces):
            wave[piece : piece + frames] += framed[:, piece * self.hop : (piece + 1) * self.hop]
        return wave.reshape(-1)[self.delay : self.delay + length]

    def _checked(self, spectrogram: np.ndarray) -> np.ndarray:
        spectrogram = np.asarray(spectrogram)
        if spectrogram.ndim != 2 or spectrogram.shape[1] != self.bins or not np.iscomplexobj(spectrogram):
            raise DataError(
                f"spectrogram: found {spectrogram.dtype} of shape {spectrogram.shape}; needed: complex of shape "
                f"(frames, {self.bins})"
            )
        return spectrogram

    def _overlapped_power(self) -> np.ndarray:
        """Sum of the squared windows of all frames that meet at each offset of a hop: shape (hop,)."""
        squares = np.zeros(-(-self.frame // self.hop) * self.hop)
        squares[: self.frame] = self.window() ** 2
        return squares.reshape(-1, self.hop).sum(axis=0)

    def _synthesis_window(self) -> np.ndarray:
        """Window over the overlapped power, so that analysis and synthesis together give exactly 1."""
        offsets = np.arange(self.frame) % self.hop
        return (self.window() / self._overlapped_power()[offsets]).astype(np.float32)


NSNET2_48K = FrontEnd(rate=48_000, frame=960, hop=512, fft=1024, periodic=True)
NSNET2_16K = FrontEnd(rate=16_000, frame=320, hop=160, fft=320, periodic=False)
