"""The front end: waves to features and back."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from benchmarks.audio.frontend import NSNET2_16K, NSNET2_48K, FrontEnd
from tests.benchmarks.audio.conftest import tone_and_noise
from tvm_dual.errors import DataError

PRESETS = pytest.mark.parametrize("front_end", [NSNET2_48K, NSNET2_16K], ids=["48k", "16k"])


@PRESETS
@pytest.mark.parametrize("extra", [-1, 0, 1, 300])
def test_gain_one_rebuilds_every_sample(front_end, extra):
    wave = tone_and_noise(20 * front_end.hop + extra)
    spectrogram = front_end.analyse(wave)
    rebuilt = front_end.synthesise(spectrogram, np.ones(spectrogram.shape, np.float32), len(wave))
    assert rebuilt.shape == wave.shape and rebuilt.dtype == np.float32
    np.testing.assert_allclose(rebuilt, wave, atol=2e-6)


@PRESETS
@pytest.mark.parametrize("samples", [1, 2, 159, 513])
def test_gain_one_rebuilds_short_waves(front_end, samples):
    wave = tone_and_noise(samples, seed=1)
    spectrogram = front_end.analyse(wave)
    np.testing.assert_allclose(front_end.synthesise(spectrogram, np.ones(spectrogram.shape), samples), wave, atol=2e-6)


@PRESETS
def test_frames_and_features_have_the_model_shape(front_end):
    wave = tone_and_noise(10 * front_end.hop)
    spectrogram = front_end.analyse(wave)
    features = front_end.features(spectrogram)
    bins = {48_000: 513, 16_000: 161}[front_end.rate]
    assert spectrogram.shape == features.shape == (front_end.frame_count(len(wave)), bins)
    assert (spectrogram.dtype, features.dtype) == (np.complex64, np.float32)


@PRESETS
def test_a_frame_is_the_windowed_transform_of_its_samples(front_end):
    wave = tone_and_noise(6 * front_end.hop)
    start = 3 * front_end.hop - front_end.delay
    square = scipy.signal.windows.hann(front_end.frame, sym=not front_end.periodic)
    expected = np.fft.rfft(wave[start : start + front_end.frame] * np.sqrt(square), n=front_end.fft)
    np.testing.assert_allclose(front_end.analyse(wave)[3], expected, atol=1e-4)


@PRESETS
def test_a_frame_needs_no_later_samples(front_end):
    wave = tone_and_noise(8 * front_end.hop)
    early = front_end.analyse(wave[: 4 * front_end.hop])[:4]
    np.testing.assert_allclose(front_end.analyse(wave)[:4], early, atol=1e-5)


def test_features_are_log_power_with_a_floor():
    spectrogram = np.zeros((2, NSNET2_48K.bins), np.complex64)
    spectrogram[1] = 3 + 4j
    features = NSNET2_48K.features(spectrogram)
    np.testing.assert_allclose(features[0], -12)
    np.testing.assert_allclose(features[1], np.log10(25), rtol=1e-6)


@pytest.mark.parametrize(
    "wave",
    [np.zeros(0), np.zeros((2, 100)), np.zeros(100, np.int16), np.full(100, np.nan), np.zeros(9, complex)],
    ids=["empty", "stereo", "int16", "nan", "complex"],
)
def test_analyse_refuses_bad_waves(wave):
    with pytest.raises(DataError, match="wave"):
        NSNET2_48K.analyse(wave)


def test_synthesise_refuses_what_does_not_fit():
    spectrogram = NSNET2_48K.analyse(tone_and_noise(4000))
    ones = np.ones(spectrogram.shape, np.float32)
    with pytest.raises(DataError, match="gains"):
        NSNET2_48K.synthesise(spectrogram, ones[:-1], 4000)
    with pytest.raises(DataError, match="gains"):
        NSNET2_48K.synthesise(spectrogram, ones * np.inf, 4000)
    with pytest.raises(DataError, match="length"):
        NSNET2_48K.synthesise(spectrogram, ones, 9000)
    with pytest.raises(DataError, match="spectrogram"):
        NSNET2_16K.features(spectrogram)
    with pytest.raises(DataError, match="spectrogram"):
        NSNET2_48K.features(spectrogram.real)


@pytest.mark.parametrize("sizes", [(960, 0, 1024), (960, 961, 1024), (960, 512, 512), (960, 960, 1024)])
def test_front_end_refuses_sizes_it_cannot_invert(sizes):
    frame, hop, fft = sizes
    with pytest.raises(DataError, match="front end"):
        FrontEnd(48_000, frame, hop, fft)
